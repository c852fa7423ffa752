"""The xFormers dialect: a registry of parts, factories that take nested dicts, and whole models built from them.

The module paths below this root are those of xFormers up to 0.0.28, so that a file is ported by changing the import
root. The maths is done by the native parts of the library; `docs/differences.md` lists what differs from upstream.
"""

from __future__ import annotations

_is_functorch_available = False


def _is_triton_available() -> bool:
    """Whether Triton kernels are used: never, the library's attention backends take their place."""
    return False
