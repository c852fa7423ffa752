"""Dialects: the library under the names, keywords and module paths of the systems it unites."""
