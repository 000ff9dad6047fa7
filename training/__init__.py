"""Everything about running a training that no network knows. It never imports `model`."""
