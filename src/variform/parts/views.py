"""Bodies that read keys and values off other features than queries."""

from __future__ import annotations

from variform.core.spec import Spec, described
from variform.errors import Problem
from variform.parts.kinds import StreamPart


def view_problems(body: Spec, path: str) -> list[Problem]:
    """Why a body, described, cannot read its keys and values off other features than its queries; empty if it can.

    Such a body finds them in the streams `key_input` and `value_input`, [B, L, dim] each, which end with it.
    """
    while issubclass(body.part, StreamPart) and body.part.takes_views:
        inner = described(body.args.get("body"))
        if not isinstance(inner, Spec):
            return []
        body, path = inner, f"{path}.body"
    message = f"{body.kind} {body.name!r} reads its queries, keys and values off one input, and is handed three"
    return [Problem(path, message, hint="take multi_head, or one view")]
