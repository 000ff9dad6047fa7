"""Batches from images in memory or in files."""
