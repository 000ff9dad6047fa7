"""Starting the workers of a training: ``python -m training.launch``."""
