"""Whole-slide prediction: windows over tissue, blending, outputs. Without TensorFlow: a network is a function."""
