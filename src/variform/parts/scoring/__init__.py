"""Changes of attention scores that depend on queries, keys and tokens."""
