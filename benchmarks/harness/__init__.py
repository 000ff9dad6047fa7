"""Interleaved measurements in processes of their own, and their statistics."""
