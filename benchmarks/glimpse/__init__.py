"""Speed of the glimpse model, against PyTorch."""
