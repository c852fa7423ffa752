"""`AttentionPool`: learned queries that attend to a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.call import check_mask
from variform.dialects.x_transformers.errors import InputError
from variform.dialects.x_transformers.read import read_layers, resolved
from variform.dialects.x_transformers.table import REQUIRED, Route, Table, put, raise_any, values_of
from variform.errors import Problem
from variform.parts.head.pooled import AttentionPoolHead
from variform.parts.stream_ops.padding import ZeroPadding

POOL: Table = {
    "dim": Route(REQUIRED, put("dim"), types=(int,)),
    "num_pooled_tokens": Route(1, put("num_pooled_tokens"), types=(int,)),
    "dim_context": Route(None, put("dim_context"), types=(int,)),
    "add_residual": Route(False, put("add_residual")),
    "depth": Route(1, put("depth"), types=(int,)),
    "heads": Route(8, put("heads"), types=(int,)),
    "dim_head": Route(64, put("dim_head"), types=(int,)),
    "use_transformer_blocks": Route(None, put("use_transformer_blocks"), types=(bool,)),
    "squeeze_output": Route(None, put("squeeze_output"), types=(bool,)),
    "attn_kwargs": Route({}, put("attn_kwargs"), types=(dict,)),
}
"""The keywords of `AttentionPool`."""


class AttentionPool(nn.Module):
    """Learned queries attend to a sequence (Set Transformer, Lee et al. 2018, arXiv:1810.00825).

    What is built is a head of the core, `native`; `spec` is its full description.

    Shapes:
        context: [B, L, dim_context] -> [B, num_pooled_tokens, dim]; [B, dim] with `squeeze_output`

    Args:
        dim: features of the queries and the result.
        num_pooled_tokens: how many queries; 0 for queries that are given with each call.
        dim_context: features of the sequence; `dim` by default.
        add_residual: add the queries to the result.
        depth: layers of cross attention and feedforward; 1 is a cross attention alone, unless asked for otherwise.
        heads: number of heads.
        dim_head: features of one head.
        use_transformer_blocks: layers of cross attention and feedforward at depth 1 too.
        squeeze_output: leave out the axis of a single query.
        attn_kwargs: keywords of the attention, without a prefix.

    Raises:
        KeywordError: unknown keywords, and values that do not fit; all at once.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        given = values_of(type(self).__name__, POOL, keywords)
        blocks = given["depth"] > 1 if given["use_transformer_blocks"] is None else given["use_transformer_blocks"]
        raise_any(_problems(given, blocks))
        self.squeeze_output = bool(given["squeeze_output"])
        self.has_learned_queries = given["num_pooled_tokens"] > 0
        width = given["dim_context"] or given["dim"]
        spec = AttentionPoolHead.spec(
            body=_body(given, width, blocks),
            queries=given["num_pooled_tokens"] or 1,
            dim_query=given["dim"],
            dim=width,
            residual=given["add_residual"],
        )
        self.native: AttentionPoolHead = build(resolved(spec))
        if not self.has_learned_queries:
            self.native.register_parameter("queries", None)

    @property
    def spec(self) -> Spec:
        """The full description of the pool."""
        return self.native.spec

    def forward(self, context: Tensor, mask: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            context: the sequence.
            mask: [B, L] bool, True at real tokens.
            queries: [B, N, dim], in the place of those that are learned.
        """
        check_mask("mask", mask, context.shape[0], context.shape[1])
        if queries is None and not self.has_learned_queries:
            raise InputError("queries must be passed: the pool was built with num_pooled_tokens=0")
        pooled = self.native.attended(context, mask, queries)
        return pooled.squeeze(1) if self.squeeze_output else pooled


def _body(given: Mapping[str, Any], width: int, blocks: bool) -> Spec:
    """A cross attention, or layers of it."""
    attention = {f"cross_attn_{name}": value for name, value in given["attn_kwargs"].items()}
    layers = {
        **{"dim": given["dim"], "depth": given["depth"], "heads": given["heads"], "attn_dim_head": given["dim_head"]},
        **{"cross_attn_dim_context": width, "cross_attend": True, "only_cross": True, **attention},
    }
    _, spec = read_layers("AttentionPool", layers)
    if blocks:
        return spec
    step: Any = spec["layers"][0]["sublayers"][0]
    body: Spec = step["body"]
    return body["body"] if issubclass(body.part, ZeroPadding) else body  # queries have no padding


def _problems(given: Mapping[str, Any], blocks: bool) -> list[Problem]:
    found = []
    for name, least in (("dim", 1), ("num_pooled_tokens", 0), ("depth", 1), ("heads", 1), ("dim_head", 1)):
        if given[name] < least:
            found.append(Problem(name, f"at least {least} is needed", given[name]))
    if given["squeeze_output"] and given["num_pooled_tokens"] > 1:
        found.append(Problem("squeeze_output", "there are several queries, so there is no axis of 1 to leave out"))
    if not blocks and given["depth"] > 1:
        found.append(Problem("depth", "several layers need use_transformer_blocks=True", given["depth"]))
    if blocks and given["add_residual"]:
        found.append(Problem("add_residual", "layers add their queries already"))
    return found
