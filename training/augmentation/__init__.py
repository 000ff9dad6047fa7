"""Random changes of images and labels, in NumPy."""
