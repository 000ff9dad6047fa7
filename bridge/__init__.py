"""Networks that MXNet exported, computed and trained in PyTorch; without MXNet."""
