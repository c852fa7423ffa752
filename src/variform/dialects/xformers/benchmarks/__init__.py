"""Benchmarks under the names that upstream gave them."""
