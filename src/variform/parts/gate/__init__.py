"""What the branches of a gated unit pass before they are multiplied."""
