"""How vectors, one a row, are stored: a module for each storage, and `registry` to find them by name."""
