"""Measured time and memory of parts, side by side."""

from variform.bench.attention import Measured, Row, bench_attention

__all__ = ["Measured", "Row", "bench_attention"]
