"""The segmentation task: inputs, losses, pixel counts, validation, resuming."""
