"""Attentions of the library inside models of other libraries: what stands in for what, and what changed."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from variform.core.build import build
from variform.core.codec import as_spec
from variform.core.registry import lookup, parts
from variform.core.spec import Spec
from variform.errors import ConfigError, ShapeError, did_you_mean
from variform.models.mixing import with_dropout
from variform.ops.masks import Dense, Mask
from variform.ops.scores import ScoreMod
from variform.parts.kinds import Attention, Sides

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]
"""Which modules: patterns of their paths (`blocks.*.attn`, shell style), or a function of path and module."""

With = str | Mapping[str, Any] | Spec | Mask | Tensor
"""What takes their place: the name or the spec of an attention, or a mask for softmax attention."""


@dataclass(frozen=True)
class Replaced:
    """One attention that was replaced.

    Args:
        path: of the module.
        before: its class.
        after: the attention that computes now.
        mask: the mask it was given, as text.
        kept: how many of the module's parameters stay in use.
        new: how many parameters came with the attention.
    """

    path: str
    before: str
    after: str
    mask: str
    kept: int
    new: int

    def __str__(self) -> str:
        masked = f" with {self.mask}" if self.mask else ""
        new = f", {self.new:,} new" if self.new else ""
        return f"{self.path}: {self.before} -> {self.after}{masked} ({self.kept:,} parameters kept{new})"


@dataclass(frozen=True)
class Report:
    """What `replace_attention` did.

    Args:
        replaced: each attention that was replaced, in the order of the model.
        left: the paths of attentions that were not asked for.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        lines = [str(one) for one in self.replaced]
        return "\n".join([*lines, f"left as they are: {', '.join(self.left)}"] if self.left else lines)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"replaced": [vars(one) for one in self.replaced], "left": list(self.left)}


def choose(found: Mapping[str, nn.Module], where: Where, kind: str) -> list[str]:
    """The paths asked for.

    Args:
        found: the attentions of the model by path.
        where: which of them.
        kind: what they are, for messages.

    Raises:
        ConfigError: the model has none, or a pattern fits none.
    """
    if not found:
        raise ConfigError(f"the model has no attention that is {kind}")
    if callable(where):
        return [path for path, module in found.items() if where(path, module)]
    patterns = [where] if isinstance(where, str) else list(where)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in found):
            raise ConfigError(f"no attention of the model fits {pattern!r}", hint=did_you_mean(pattern, list(found)))
    return [path for path in found if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)]


class Heads(nn.Module):
    """A head-level attention, with what it takes to be called from another library's module.

    Args:
        with_: the attention, or a mask for softmax attention.
        dropout: the rate of the module it stands in for, used where the description gives none.
        **facts: what the surroundings provide (`heads`, `kv_heads`, `dim_head`, `dim`, `causal`, `max_seq_len`).

    Raises:
        ConfigError: the attention does not fit.
    """

    def __init__(self, with_: With, dropout: float, **facts: Any) -> None:
        super().__init__()
        self.mask: Mask | None = Dense(with_) if isinstance(with_, Tensor) else None
        self.mask = with_ if isinstance(with_, Mask) else self.mask
        spec = with_dropout(_spec_of("softmax" if self.mask is not None else with_), dropout)
        self.attention: Attention = build(spec, **{k: v for k, v in facts.items() if v is not None})
        self.scale: float = facts["dim_head"] ** -0.5
        if facts.get("causal") and not self.can.causal:
            able = ", ".join(name for (_, name), part in parts("attention").items() if part.can.causal)
            message = f"the model is causal, and the attention {self.attention.name!r} has no causal form"
            raise ConfigError(message, hint=f"those that have: {able}")

    @property
    def can(self) -> Any:
        """What the attention can do."""
        return type(self.attention).abilities(dict(self.attention.spec.args))

    @property
    def label(self) -> str:
        """The attention's name."""
        return self.attention.name

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Mask | None = None,
        k_valid: Tensor | None = None,
        scores: tuple[ScoreMod, ...] = (),
        positions: tuple[Tensor, Tensor] | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """Attend.

        Shapes:
            q: [B, H, Lq, D], k: [B, Hk, Lk, D], v: [B, Hk, Lk, Dv] -> [B, H, Lq, Dv]

        Args:
            q: queries.
            k: keys.
            v: values.
            mask: what may attend to what, beside this attention's own mask.
            k_valid: [B, Lk] bool, which keys are real.
            scores: changes of scores.
            positions: of queries and keys, where they are not 0, 1, ... on both sides.
            scale: the factor on the scores that the other library uses, where it is not D^-0.5.

        Raises:
            ShapeError: something the attention cannot honour.
        """
        mask = _both(mask, self.mask)
        self._refuse("an attention mask", mask is not None and not self.can.attention_mask)
        self._refuse("key padding", k_valid is not None and not self.can.key_padding)
        self._refuse("scores that are changed", bool(scores) and not self.attention.takes_scores)
        if scale is not None and scale != self.scale:
            q = q * (scale / self.scale)
        q_positions, k_positions = positions or (None, None)
        q_valid = k_valid if k_valid is not None and q.shape[2] == k.shape[2] else None
        out = self.attention(q, k, v, Sides(q_positions, k_positions, None, None, q_valid, k_valid, mask, scores))
        assert isinstance(out, Tensor)
        return out

    def _refuse(self, what: str, refused: bool) -> None:
        if refused:
            raise ShapeError(f"the attention {self.attention.name!r} cannot honour {what}")


def line_of(path: str, before: str, module: nn.Module) -> Replaced:
    """The line of the report for a module that holds its new attention.

    Args:
        path: of the module.
        before: the class that stood there.
        module: what stands there now.
    """
    heads: Heads = getattr(module, SLOT)
    new = sum(p.numel() for p in heads.parameters())
    kept = sum(p.numel() for p in module.parameters()) - new
    mask = "" if heads.mask is None else f"the mask {type(heads.mask).__name__}"
    return Replaced(path, before, heads.label, mask, kept, new)


SLOT = "variform_heads"
"""The name under which a replaced module holds its attention."""


def _spec_of(with_: Any) -> Spec:
    if isinstance(with_, str):
        return Spec(lookup(with_, ("attention",)), {})
    spec = as_spec(with_)
    if spec.kind != "attention":
        message = f"{spec.kind} {spec.name!r} is no attention over heads: the model's weights have no place in it"
        raise ConfigError(message, hint=f"one of: {', '.join(name for _, name in parts('attention'))}")
    return spec


def _both(one: Mask | None, two: Mask | None) -> Mask | None:
    return two if one is None else one if two is None else one & two
