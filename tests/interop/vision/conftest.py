"""These tests run in a process of their own, see ../test_vision.py."""

from tests.interop.with_timm import declare_operators

declare_operators()
