"""One treatment a file, found by its place: a docstring that says what it does, and a `TREATMENT`."""
