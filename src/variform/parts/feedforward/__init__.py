"""Feedforwards: transformations of each token on its own."""
