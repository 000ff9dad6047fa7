"""Symbols of MXNet as modules of PyTorch."""
