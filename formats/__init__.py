"""Files of parameters: bytes, digests, bounded readers. NumPy and the standard library alone."""
