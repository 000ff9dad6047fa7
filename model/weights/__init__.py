"""Parameters into networks: loading, names of other projects, conversion, indices."""
