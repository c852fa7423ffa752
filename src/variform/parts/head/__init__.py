"""Heads: what a model answers with."""
