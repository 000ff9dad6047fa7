"""Published weights by name: where they are, networks with them, a classifier of pictures."""
