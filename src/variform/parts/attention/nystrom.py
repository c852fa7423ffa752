"""Nystrom attention: softmax attention through landmarks, in linear time; causal in almost linear time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.inherit import inherit
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem, ShapeError
from variform.ops.causal_nystrom import Pyramid, attend_groups, build_pyramid, scheme
from variform.ops.exact import exact_attention
from variform.ops.nystrom import Inverse, landmark_attention, segment_means
from variform.ops.ranks import Front, front
from variform.ops.shapes import unflatten
from variform.parts.attention.nystrom_state import empty, extend_all, extend_rows, recent
from variform.parts.kinds import Attention, Sides, State

Size = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@register("nystrom")
class NystromAttention(Attention):
    """Nystrom attention (Xiong et al. 2021, arXiv:2102.03902): softmax attention through landmarks.

    Not causal: softmax(Q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ K^T) V, where the landmarks Q~, K~ are means over
    `landmarks` equal segments of the sequence; at most that many keys are softmax attention itself. Time O(L n).

    Causal: the published form sees the future, as the softmax of every landmark row runs over all keys. Here the
    kernel K(q, k) = exp(q . k / sqrt(D)) is approximated blockwise, so that no block reaches ahead: exact for the keys
    of the query's own chunk of n / 2 tokens and the one before, and for every segment c further back by the Nystrom
    factor of rank 1, K(q, k_j) ~ K(q, k~) K(q~, k~)^-1 K(q~, k_j), in numerator and denominator, with q~ the mean
    query of the segment and k~ the mean of its keys weighted by K(q~, k_j). Segments grow with their distance: chunks
    of n / 2, n, 2 n, ... tokens have n / 4 each, and a longer segment is made of its two halves by the same formula.
    All of it is one softmax over keys and landmarks. A sequence of at most `landmarks` tokens is exact; time is
    O(L n log(L / n)), and a step of decoding costs O(n log(L / n)). Grouped heads share a landmark query, their mean.

    Shapes:
        q: [B, H, Lq, D], k: [B, Hk, Lk, D], v: [B, Hk, Lk, Dv] -> [B, H, Lq, Dv]; Lq == Lk when causal

    Args:
        landmarks: how many landmarks n there are; for any length, whether or not it is a multiple.
        causal: position i attends to positions <= i.
        dropout: probability of zeroing a number of the result, in training.
        inverse: of the matrix between landmarks: "iterative" (products alone) or "exact" (singular values).
        iterations: how often the iterative inverse is improved.
        original_init: the iterative inverse begins with the smallest factor of a row's heads, as the paper's code does
            for the whole batch, not with each head's own, which converges faster.
        conv_kernel: add a convolution of the values along the sequence, of this odd size, one filter a head; when
            causal it reaches back alone. The paper adds one to help training.
        heads: number of heads, for these filters.
        pooling: makes landmarks [N, n, D] of queries or keys [N, L, D] (heads folded into N), in place of the means.
        skip: makes of the values [B, H, L, Dv] what is added to the result, in place of the convolution.

    Raises:
        ShapeError: padding with `pooling` or `skip`, which know nothing of it; unequal lengths when causal or where
            values are added to the result.
    """

    can: ClassVar[Can] = Can(attention_mask=False, packed=False)
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        landmarks: Size = 64,
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        inverse: Inverse = "iterative",
        iterations: Annotated[int, Field(ge=0)] = 6,
        original_init: bool = False,
        conv_kernel: Size | None = None,
        heads: Size | None = inherit(None),
        pooling: nn.Module | None = None,
        skip: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.causal = causal
        self.dropout = dropout
        self.inverse = inverse
        self.iterations = iterations
        self.original_init = original_init
        self.conv_kernel = conv_kernel
        self.pooling = pooling
        self.skip = skip
        self.filters = None if conv_kernel is None else nn.Parameter(torch.empty(heads or 1, 1, conv_kernel, 1))
        self.cut = scheme(landmarks)
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """What is not causal cannot be used where the rest is, and a filter to both sides has a middle."""
        found, size = [], facts["conv_kernel"]
        if facts["causal"]:
            for name, instead in (("pooling", "leave it out"), ("skip", "conv_kernel has a causal form")):
                if facts[name] is not None:
                    found.append(Problem(name, "a module that sees the whole sequence is not causal", hint=instead))
        elif size is not None and size % 2 == 0:
            hint = f"nearest: {size - 1} or {size + 1}"
            found.append(Problem("conv_kernel", "a filter to both sides has an odd size", size, hint))
        if size is not None and facts["skip"] is not None:
            found.append(Problem("skip", "it stands in place of the convolution", hint="leave out conv_kernel"))
        if size is not None and facts["heads"] is None:
            found.append(Problem("heads", "the convolution has one filter a head: how many heads are there?"))
        return found

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What is added to the result is as long as the values."""
        added = args.get("conv_kernel") is not None or args.get("skip") is not None
        return Can(attention_mask=False, packed=False, cross=not added)

    def reset_parameters(self) -> None:
        """Draw the filters, as torch does."""
        if self.filters is not None:
            bound = 1 / math.sqrt(self.filters.shape[2])
            nn.init.uniform_(self.filters, -bound, bound)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend; with a state, to everything before this chunk as well."""
        self._check(q, k, sides)
        if sides.state is not None and sides.cache is not None:
            return self._step(q, k, v, sides)
        exact = self.cut.exact if self.causal else self.landmarks
        own = None if sides.k_valid is None else front(sides.k_valid)
        if k.shape[2] <= exact:
            if sides.q_valid is not None:
                q = q.masked_fill(~sides.q_valid[:, None, :, None], 0)  # padding may hold anything
            y = exact_attention(q, k, v, sides.k_valid, self.causal)
        elif self.causal:
            y = self._causal(q, k, v, own)
        else:
            y = self._both_ways(q, k, v, sides.q_valid, own)
        return self._finish(y, v, own)

    def _finish(self, y: Tensor, v: Tensor, own: Front | None) -> Tensor:
        if self.filters is not None:
            values = v if own is None else own.gather(v)
            size = self.filters.shape[2]
            before, after = (size - 1, 0) if self.causal else (size // 2, size // 2)
            added = self._filtered(F.pad(values, (0, 0, before, after)), y.shape[1])
            y = y + (added if own is None else own.restore(added))
        elif self.skip is not None:
            y = y + self.skip(v.repeat_interleave(y.shape[1] // v.shape[1], 1))
        return F.dropout(y, self.dropout) if self.training and self.dropout else y

    def _filtered(self, v: Tensor, heads: int) -> Tensor:
        assert self.filters is not None
        return F.conv2d(v.repeat_interleave(heads // v.shape[1], 1), self.filters, groups=heads)

    # ---- not causal ----

    def _both_ways(self, q: Tensor, k: Tensor, v: Tensor, q_valid: Tensor | None, own: Front | None) -> Tensor:
        groups, n = q.shape[1] // k.shape[1], self.landmarks
        q = q * q.shape[-1] ** -0.5
        if own is not None:
            k, v = own.gather(k), own.gather(v)
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        asking = None if q_valid is None else front(q_valid)
        if asking is not None:
            q = asking.gather(q)
        q_landmarks, q_held = self._landmarks(q, min(n, q.shape[2]), asking)
        k_landmarks, k_held = self._landmarks(k, n, own)
        y = landmark_attention(
            q,
            k,
            v,
            q_landmarks,
            k_landmarks,
            self.inverse,
            self.iterations,
            self.original_init,
            None if own is None else own.real,
            q_held,
            k_held,
        )
        if own is not None:  # rows of few tokens are softmax attention, as they are on their own
            exact = exact_attention(q, k[:, :, :n], v[:, :, :n], own.real[:, :n], scale=1.0)
            y = torch.where((own.count <= n)[:, None, None, None], exact, y)
        return y if asking is None else asking.restore(y)

    def _landmarks(self, x: Tensor, count: int, ranks: Front | None) -> tuple[Tensor, Tensor | None]:
        if self.pooling is None:
            return segment_means(x, count, None if ranks is None else ranks.count)
        pooled: Tensor = self.pooling(x.flatten(0, 1))
        return unflatten(pooled, 0, x.shape[:2]), None

    # ---- causal ----

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, own: Front | None) -> Tensor:
        levels = self.cut.levels(q.shape[2])
        q = q * q.shape[-1] ** -0.5
        if own is not None:
            q, k, v = own.gather(q), own.gather(k), own.gather(v)
        pyramid = build_pyramid(_mean_query(q, k.shape[1]), k, v, levels)
        y = self._in_line(q, pyramid, 0, levels)
        return y if own is None else own.restore(y)

    def _step(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> tuple[Tensor, State]:
        """New tokens after those in the state: into the pyramid first, then each attends as in the whole sequence."""
        assert sides.cache is not None
        assert sides.state is not None
        cache, length = sides.cache, q.shape[2]
        # A start that is known as a number saves most of the work; a compiled step has one form for all starts.
        start = None if torch.compiler.is_compiling() else cache["start"]
        new = None if sides.q_valid is None or cache["start"] is not None else front(sides.q_valid)
        q = q * q.shape[-1] ** -0.5
        if new is not None:
            q, k, v = new.gather(q), new.gather(k), new.gather(v)
        levels, means = self.cut.levels(cache["length"]), _mean_query(q, k.shape[1])
        before = 0 if self.filters is None else self.filters.shape[2] - 1
        if start is not None:
            pyramid, state = extend_all(sides.state, means, k, v, start, self.cut)
            y = self._in_line(q, pyramid, start, levels)
            values = F.pad(state["v"][:, :, max(0, start - before) : start + length], (0, 0, max(0, before - start), 0))
        else:
            seen = _seen(cache, new, q)
            pyramid, state = extend_rows(sides.state, means, k, v, seen, new, self.cut)
            y = self._row_by_row(q, pyramid, seen, levels)
            values = recent(state, seen, length, before, self.cut)
        if self.filters is not None:
            y = y + self._filtered(values, y.shape[1])
        y = y if new is None else new.restore(y)
        return (F.dropout(y, self.dropout) if self.training and self.dropout else y), state

    def _in_line(self, q: Tensor, pyramid: Pyramid, start: int, levels: int) -> Tensor:
        """Queries of the ranks from `start` on. One alone is a group of its own; more stand in their chunks."""
        length = q.shape[2]
        size = 1 if length == 1 else self.cut.chunk
        begin = start // size * size
        offset = start - begin
        groups = (offset + length + size - 1) // size
        padded = F.pad(q, (0, 0, offset, groups * size - offset - length))
        first = begin + torch.arange(groups, device=q.device) * size
        y = attend_groups(unflatten(padded, 2, (groups, size)), pyramid, first, self.cut, levels)
        return y.flatten(2, 3)[:, :, offset : offset + length]

    def _row_by_row(self, q: Tensor, pyramid: Pyramid, seen: Tensor, levels: int) -> Tensor:
        """The same where each row has a start of its own, `[B]`."""
        length = q.shape[2]
        size = 1 if length == 1 else self.cut.chunk
        groups = 1 if length == 1 else (length + size - 2) // size + 1
        begin = seen // size * size
        offset = (seen - begin)[:, None]
        place = (torch.arange(groups * size, device=q.device) - offset).clamp(0, length - 1)
        grouped = unflatten(_at(q, place), 2, (groups, size))
        first = begin[:, None] + torch.arange(groups, device=q.device) * size
        y = attend_groups(grouped, pyramid, first, self.cut, levels).flatten(2, 3)
        return _at(y, offset + torch.arange(length, device=q.device))

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Keys, values and queries of the tokens and of all segments, twice as many entries as tokens."""
        return empty(batch, max_len, like, heads, dim_key, dim_value, self.cut)

    def _check(self, q: Tensor, k: Tensor, sides: Sides) -> None:
        if (self.pooling is not None or self.skip is not None) and sides.k_valid is not None:
            raise ShapeError(
                "padding cannot be kept from a pooling or skip module of your own; leave the module out "
                "(landmarks are means by default, conv_kernel adds a convolution), or pass rows without padding"
            )
        added = self.filters is not None or self.skip is not None
        if q.shape[2] != k.shape[2] and (self.causal or added):
            why = "causal attention" if self.causal else "a convolution or skip of the values"
            raise ShapeError(f"{why} needs as many queries as keys, not {q.shape[2]} and {k.shape[2]}")


def _mean_query(q: Tensor, kv_heads: int) -> Tensor:
    """One query for each key head."""
    return q if q.shape[1] == kv_heads else unflatten(q, 1, (kv_heads, -1)).mean(2)


def _at(x: Tensor, place: Tensor) -> Tensor:
    """`[B, H, L, D]` at `[B, n]`."""
    return x.gather(2, place[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _seen(cache: Mapping[str, Any], new: Front | None, like: Tensor) -> Tensor:
    """How many tokens each row had before this call."""
    if cache["start"] is not None:
        return torch.full((like.shape[0],), cache["start"], dtype=torch.long, device=like.device)
    total: Tensor = cache["valid"].sum(1)
    return total - (like.shape[2] if new is None else new.count)
