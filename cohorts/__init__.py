"""Which slides a run reads: pairing with labels, CAMELYON layouts, sets, splits, copies on the node."""
