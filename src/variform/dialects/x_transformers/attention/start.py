"""Keywords of how the output map of an attention begins; the function is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from variform.core.spec import Spec
from variform.dialects.x_transformers.table import Route, Table, keep
from variform.errors import Problem
from variform.parts.stream_ops.branch import BranchStart

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention.draft import AttentionDraft

ROUTES: Table = {
    "zero_init_output": Route(False, keep("zero_init_output")),
    "output_proj_depth": Route(None, keep("output_proj_depth"), types=(int,)),
}
"""Keyword (without `attn_`) -> what it does to an `AttentionDraft`."""


def check(draft: AttentionDraft, cross: bool) -> list[Problem]:
    """The rules that concern several keywords."""
    depth, at = draft.options["output_proj_depth"], draft.prefix
    if depth is None:
        return []
    if draft.options["zero_init_output"]:
        message = f"the output map starts at zero or scaled with depth: {at}zero_init_output or output_proj_depth"
        return [Problem(f"{at}output_proj_depth", message, depth)]
    return [Problem(f"{at}output_proj_depth", "at least 1: a place in the depth", depth)] if depth < 1 else []


def attention(draft: AttentionDraft, spec: Spec) -> Spec:
    """The head-level attention as it is."""
    return spec


def mixer(draft: AttentionDraft, spec: Spec) -> Spec:
    """The mixer, whose output map begins at zero, or the smaller the deeper it stands."""
    depth = draft.options["output_proj_depth"]
    if depth is not None:
        return BranchStart.spec(body=spec, scale=(2 * depth) ** -0.5)
    return BranchStart.spec(body=spec) if draft.options["zero_init_output"] else spec
