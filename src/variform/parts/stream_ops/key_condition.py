"""Keys and values of a token that know more than its query."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.parts.kinds import FeedForward, Layer, Mixer, Output, Streams, call
from variform.parts.linear import Linear
from variform.parts.norm.adaptive import by_token
from variform.parts.views import view_problems

Size = Annotated[int, Field(gt=0)]


@register("key_condition")
class KeyCondition(Layer):
    """Runs an attention whose keys and values are of x + W c, its queries of x; c is the stream `condition`.

    So a latent reaches a decoder in the Free Transformer (Fleuret 2025, arXiv:2510.17558). With `added` off, keys and
    values are of W c alone: features of the same tokens that are not on the residual stream.

    Shapes:
        x: [B, L, dim] -> [B, L, dim]; condition: [B, dim_condition], [B, 1, dim_condition] or [B, L, dim_condition]

    Args:
        body: the mixer, or what runs one, that reads keys and values apart (multi_head).
        added: whether x is in keys and values too; then the condition may be missing, which adds nothing.
        project: whether there is a map W; without it, the condition has the features of x.
        dim: features.
        dim_condition: features of the condition.

    Raises:
        ShapeError: there is no condition, and keys are of nothing else; or it does not fit.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"condition"})
    takes_views: ClassVar[bool] = True

    def __init__(
        self,
        body: Mixer | FeedForward | Layer,
        added: bool = True,
        project: bool = True,
        dim: Size = INHERIT,
        dim_condition: Size | None = INHERIT,
    ) -> None:
        super().__init__()
        self.map = Linear(dim_condition or dim, dim, bias=False) if project else None
        self.body = body
        self.added = added

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The body must read keys apart, and a condition without a map fit."""
        found = view_problems(facts["body"], "body")
        if not facts["project"] and facts["dim_condition"] not in (None, facts["dim"]):
            message = f"without a map the condition has the {facts['dim']} features of the keys' input"
            found.append(Problem("dim_condition", message, facts["dim_condition"], "set project"))
        return found

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Run."""
        published: dict[str, Any] = {}
        condition = streams.get("condition")
        if condition is not None:
            streams = {**streams, **self._views(x, condition, streams)}
        elif not self.added:
            raise ShapeError("key_condition reads keys and values off the stream 'condition', which is missing")
        y = call(self.body, x, streams, "body", published)
        return (y, published) if published else y

    def _views(self, x: Tensor, condition: Tensor, streams: Streams) -> dict[str, Tensor]:
        size = x.shape[2] if self.map is None else self.map.in_features
        told = by_token(condition, x, size, "an attention whose keys know a condition")
        told = (told if self.map is None else self.map(told)).to(x.dtype).expand_as(x)
        if not self.added:
            return {"key_input": told, "value_input": told}
        return {name: streams.get(name, x) + told for name in ("key_input", "value_input")}
