"""Position codes: added to embeddings, rotating queries and keys, or biasing scores."""
