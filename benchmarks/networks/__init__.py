"""Speed of classifiers, against PyTorch."""
