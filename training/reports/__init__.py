"""Curves, comparisons and tables of finished runs."""
