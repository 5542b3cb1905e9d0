"""The version of widefov: shown by `--version`, stored in what the programs write."""

# CHANGELOG.md has a section for each release.
__version__ = "0.2.0.dev0"
