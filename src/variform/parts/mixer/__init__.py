"""Mixers: parts that move information along the sequence."""
