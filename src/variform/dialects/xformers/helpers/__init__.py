"""Helpers around models: hierarchical configurations, and what tests of parts need."""
