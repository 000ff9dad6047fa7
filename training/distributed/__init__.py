"""Several workers of one training."""
