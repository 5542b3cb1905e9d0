"""Evaluation of predictions: what is read, one slide, outputs, the report."""
