"""Preparation of a data set, once before training: steps over all slides, their runner, and writers of their files."""
