"""Devices, precisions and optimizers."""
