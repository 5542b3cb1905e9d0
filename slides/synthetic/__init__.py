"""Small slides made up for tests, the demo and studies."""
