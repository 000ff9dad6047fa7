"""Getting files, and knowing them by their digests."""
