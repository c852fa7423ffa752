"""The eps of upstream's norms."""

TINY = 1e-24
"""Of an RMSNorm that is a plain l2 normalisation times sqrt(dim), as upstream's own."""

MACHINE = 1e-14
"""Of `torch.nn.RMSNorm`, whose default is that of the number format."""
