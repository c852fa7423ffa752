"""What stands in a standalone file for the library's machinery: the same computation, as a plain forward pass."""
