"""Parts: what models are made of, one folder a kind, one file a family."""
