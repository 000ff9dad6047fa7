"""Getting files: resumable, checked against digests, whole or not at all."""
