"""Sublayers, layers, stacks, programs and models: parts that hold other parts."""
