"""A model on disk: metadata, checkpoints, loading, export."""
