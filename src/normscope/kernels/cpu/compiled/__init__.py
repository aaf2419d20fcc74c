"""Sources that Numba compiles. Only the offers in the folder above import them, when one is first called."""
