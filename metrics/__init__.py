"""Numbers of an evaluation, in NumPy."""
