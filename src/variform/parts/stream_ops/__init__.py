"""Parts that publish streams and read them back."""
