"""Speed of input, of whole epochs and of several workers."""
