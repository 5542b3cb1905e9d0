"""Scores from predictions and truth. NumPy and SciPy only; imports nothing else of ours."""
