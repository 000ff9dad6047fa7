"""What networks are made of, and the tables of their variants."""
