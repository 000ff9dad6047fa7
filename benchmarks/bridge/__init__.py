"""Whether networks compute and decide in PyTorch as in MXNet."""
