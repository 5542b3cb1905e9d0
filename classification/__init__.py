"""The classification task: whole images in, one label out, with the gradient of the whole image."""
