"""Preparation of a data set, once before training: steps over all slides, their runner, and writers of their files."""

import system.start  # noqa: F401  # first: it says what to do where packages are missing
