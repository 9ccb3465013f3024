"""Storage of vectors, one per row: a module for each storage, and `registry` to look them up by name."""
