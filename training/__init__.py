"""Optimisation: knows tensors and ranks, nothing of slides."""
