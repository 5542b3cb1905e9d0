"""Steps that run once per data set: pairing, standard layouts, splits, checks. Imports only `slides`."""
