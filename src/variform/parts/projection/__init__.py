"""Maps of features: linear, of low rank, gated, none."""
