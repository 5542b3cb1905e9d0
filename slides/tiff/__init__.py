"""TIFF pyramids: reading and writing."""
