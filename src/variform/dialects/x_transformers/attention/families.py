"""Families of attention keywords, in the order in which they act; each is a module of this folder.

A family has `ROUTES` (keyword without prefix -> what it does to the draft), `check(draft, cross)` for rules that
concern several keywords, `attention(draft, spec)` and `mixer(draft, spec)` for what they change of the two.
"""

from __future__ import annotations

from types import ModuleType

from variform.dialects.x_transformers.attention import heads, scores, start

FAMILIES: tuple[ModuleType, ...] = (scores, heads, start)
