"""Models as code of their own: a standalone PyTorch file."""
