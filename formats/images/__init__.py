"""Pictures: files to pixels, and what a network expects of them. NumPy and Pillow."""
