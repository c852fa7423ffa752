"""Functions of the inner features of a feedforward that have settings or parameters of their own."""
