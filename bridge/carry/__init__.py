"""Files in pieces, for machines that take small files only."""
