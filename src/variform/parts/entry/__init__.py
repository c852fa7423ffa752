"""What the branch of a residual step reads beyond the residual stream as it stands."""
