"""Truth of a slide: annotations, masks, labels of patches."""
