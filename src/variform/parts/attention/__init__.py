"""Head-level attentions: what happens between the heads' queries, keys and values."""
