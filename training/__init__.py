"""Training of any task: knows tensors and ranks, nothing of slides, labels or losses."""
