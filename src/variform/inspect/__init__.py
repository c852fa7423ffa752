"""Looking at models: what they cost, which backends serve them, whether a description is sound."""

from variform.inspect.check import Report, check
from variform.inspect.describe import Description, Memory, describe
from variform.inspect.rows import Row

__all__ = ["Description", "Memory", "Report", "Row", "check", "describe"]
