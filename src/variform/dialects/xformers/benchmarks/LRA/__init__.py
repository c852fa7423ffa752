"""The Long Range Arena (arXiv:2011.04006) with xFormers' commands."""
