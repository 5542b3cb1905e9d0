"""Which slides: pairing with labels, CAMELYON's layouts, sets, splits, staging."""
