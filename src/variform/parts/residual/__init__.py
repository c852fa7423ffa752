"""Ways to join a branch to the residual stream."""
