"""Everything about running a training, of classifiers and of the glimpse model."""
