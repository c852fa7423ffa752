"""Every registered part keeps every promise of the contract suite: registry x checks."""

from variform.testing.test_parts import pytest_generate_tests, test_part

__all__ = ["pytest_generate_tests", "test_part"]
