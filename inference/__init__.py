"""Whole-slide prediction: maps of a slide, and what is made of them. Imports `slides` and `samplers` only."""
