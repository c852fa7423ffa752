"""Dialects: the library under the names, keywords and module paths of the systems it unites."""

from variform.dialects.alias import alias

__all__ = ["alias"]
