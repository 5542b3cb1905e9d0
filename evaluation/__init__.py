"""Scores from predictions and truth. NumPy only; imports nothing else of ours."""
