"""Whole-slide prediction: windows over tissue, blending, and its outputs. No TensorFlow: a network is a function."""
