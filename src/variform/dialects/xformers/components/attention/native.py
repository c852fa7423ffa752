"""Attentions whose maths is a native part: upstream's interface outside, the library's backends inside."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import make_dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.core.fields import fields_of
from variform.core.part import Part
from variform.core.registry import parts
from variform.core.spec import Spec
from variform.dialects.xformers.building import Key, native_keys, superset_keys
from variform.dialects.xformers.components.attention.base import Attention, AttentionConfig
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes, read_att_mask, read_padding
from variform.dialects.xformers.errors import CallError, Wrong, config_error
from variform.dialects.xformers.utils import Item
from variform.errors import BackendError
from variform.parts.kinds import Attention as NativePart
from variform.parts.kinds import Sides


class NativeAttention(Attention):
    """A native head-level attention behind upstream's interface.

    A subclass translates upstream's keywords to the native part's in its constructor; that is all an upstream
    attention needs here once the library has the part.

    Args:
        spec: the native part.
        **facts: what the surroundings provide (`heads`, `dim_head`, `max_seq_len`).
    """

    stands_for: ClassVar[str] = ""
    """The registered name of the native part, which then is not offered a second time under its own name."""

    native: NativePart

    def __init__(self, spec: Spec, **facts: Any) -> None:
        super().__init__()
        part: NativePart = build(spec, **facts)
        rate = getattr(part, "dropout", None)
        self.attn_drop = None if rate is None else nn.Dropout(rate)
        self.native = part
        can = type(part).abilities(dict(part.spec.args))
        self.requires_same_k_q_dimensions = not can.cross
        self.supports_attention_mask = can.attention_mask
        self.supports_key_padding_mask = can.key_padding

    @property
    def causal(self) -> bool:
        """Whether position i attends to positions <= i only."""
        return bool(getattr(self.native, "causal", False))

    @property
    def own_heads(self) -> int | None:
        """The number of heads that it was made for, where it was told one."""
        heads: int | None = getattr(self, "num_heads", None)
        return heads

    @property
    def spec(self) -> Spec:
        """The native part that computes this attention."""
        spec = self.native.spec
        rate = self.attn_drop.p if self.attn_drop is not None else 0.0
        return spec if self.attn_drop is None or spec["dropout"] == rate else spec.replace(dropout=rate)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        """Attend with separate heads.

        Shapes:
            q: [B, heads, Sq, D], k: [B, heads, Sk, D], v: [B, heads, Sk, Dv] -> [B, heads, Sq, Dv]
        """
        if self.attn_drop is not None and getattr(self.native, "dropout", None) != self.attn_drop.p:
            cast(Any, self.native).dropout = self.attn_drop.p  # a rate that was changed on the upstream module
        out = self.native(q, k, v, sides)
        assert isinstance(out, Tensor)
        return out

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: AttMask | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        mask: AttMask | None = None,
    ) -> Tensor:
        """Attend, as called on its own.

        Shapes:
            q, k, v: [N, S, D] with heads folded into N, or [B, heads, S, D]; the result has q's form

        Args:
            q: queries.
            k: keys.
            v: values.
            att_mask: what may attend to what; see `read_att_mask`.
            key_padding_mask: [N, Sk], which keys are real; see `read_padding`.
            mask: another name of `att_mask`.
        """
        if mask is not None and att_mask is not None:
            raise CallError("mask is another name of att_mask: give one of them")
        if q.dim() not in (3, 4) or q.dim() != k.dim() or q.dim() != v.dim():
            shapes = [list(t.shape) for t in (q, k, v)]
            raise CallError(f"q, k, v are all [N, S, D] or all [B, heads, S, D], not {shapes}")
        folded = q.dim() == 3
        if folded:
            q, k, v = (self._unfolded(t) for t in (q, k, v))
            if isinstance(key_padding_mask, Tensor) and key_padding_mask.dim() == 2 and q.shape[1] > 1:
                key_padding_mask = key_padding_mask[:: len(key_padding_mask) // q.shape[0] or 1]
        sizes = Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2], self.requires_head_dimension)
        padding = read_padding(key_padding_mask, sizes.batch, sizes.keys, "key_padding_mask")
        y = self.attend(q, k, v, self.sides(mask if att_mask is None else att_mask, padding, sizes))
        return y.flatten(0, 1) if folded else y

    def _unfolded(self, x: Tensor) -> Tensor:
        """[B * heads, S, D] with the heads apart for parts whose heads are not alike; else as rows of one head each."""
        heads = getattr(self.native, "heads", 1)
        if x.shape[0] % heads:
            name = self.native.name
            raise CallError(
                f"the attention {name!r} has {heads} heads, which {x.shape[0]} folded rows do not divide into"
            )
        return x.reshape(-1, heads, *x.shape[1:])

    def sides(
        self, att_mask: AttMask | None, padding: Tensor | None, sizes: Sizes, positions: Tensor | None = None
    ) -> Sides:
        """What the native part is told beside q, k and v; refuses what it cannot honour.

        Args:
            att_mask: as the caller gave it.
            padding: bool [B, Sk], True = a real key.
            sizes: of the call.
            positions: of the tokens, in a self-attention where they are not 0, 1, ...
        """
        if sizes.queries != sizes.keys:
            self._refuse_unequal(sizes)
        if padding is not None and not self.supports_key_padding_mask:
            raise CallError(f"the attention {self.native.name!r} does not support key padding masks")
        if att_mask is not None and not self.supports_attention_mask:
            raise CallError(f"the attention {self.native.name!r} does not support attention masks")
        allowed, scores = read_att_mask(att_mask, sizes)
        if scores and not self.native.takes_scores:
            raise CallError(f"the attention {self.native.name!r} has no scores that a float att_mask could be added to")
        own = padding if sizes.queries == sizes.keys else None
        return Sides(
            q_positions=positions, k_positions=positions, q_valid=own, k_valid=padding, mask=allowed, scores=scores
        )

    def _refuse_unequal(self, sizes: Sizes) -> None:
        lengths = f"{sizes.queries} queries and {sizes.keys} keys"
        if self.requires_same_k_q_dimensions:
            raise CallError(f"the attention {self.native.name!r} needs as many queries as keys, not {lengths}")
        if self.causal:
            raise CallError(f"causality between sequences of different lengths is not defined: {lengths}")


class SparseFirst(NativeAttention):
    """A native attention over a pattern, which can be told to visit the pattern's tiles alone, however many there are.

    Calls that the sparse backend refuses (compiled graphs, other devices, given positions) run on the fastest one.
    """

    force_sparsity: bool = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor:
        """Attend with separate heads."""
        native = cast(Any, self.native)
        if not self.force_sparsity or torch.compiler.is_compiling() or native.backend != "auto":
            return super().attend(q, k, v, sides)
        native.backend = "block_sparse"
        try:
            return super().attend(q, k, v, sides)
        except BackendError:
            native.backend = "auto"
            return super().attend(q, k, v, sides)
        finally:
            native.backend = "auto"


def superset_of(name: str, keys: Mapping[str, Key], given: Mapping[str, Any]) -> tuple[str, ...]:
    """The keywords of a native part's constructor that only other attentions know; those that nobody knows raise."""
    from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY

    return superset_keys(ATTENTION_REGISTRY, {key: value for key, value in given.items() if key not in keys}, name)


def native_items(taken: frozenset[str]) -> Mapping[str, Item]:
    """The library's own attentions that no class of the dialect stands for, under their native names.

    Blocks here hand on features alone: what goes on with an earlier layer's scores or values, or rotates by the
    positions of a context, has no place in them.
    """
    found = {name: part for (_, name), part in parts("attention").items() if name not in taken}
    alone = {name: part for name, part in found.items() if "context_positions" not in part.reads}
    return {name: _item(part) for name, part in alone.items() if not part.publishes({})}


ALIASES: dict[str, dict[str, str]] = {"longformer": {"window_size": "window"}}
"""Keys of the dialect for fields of native parts: what sweeps pass to `local` fits the same pattern elsewhere."""


@functools.cache
def _item(part: type[Part]) -> Item:
    """A class of the dialect for a native part: its keys are the part's own fields."""
    own = [f.name for f in fields_of(part)]
    surroundings = {"num_heads": "heads", "dim_head": "dim_head", "dim_model": "dim", "seq_len": "max_seq_len"}

    def init(self: NativeAttention, **given: Any) -> None:
        for name in aliases.keys() & given.keys():
            if given.setdefault(aliases[name], given[name]) != given[name]:
                message = f"is another name of {aliases[name]} = {given[aliases[name]]}"
                raise config_error([Wrong(name, message, given[name], "give one of them")])
        facts = {fact: given[key] for key, fact in surroundings.items() if key in given and key not in own}
        facts |= {"kv_heads": facts["heads"]} if "heads" in facts else {}
        args = {key: value for key, value in given.items() if key in own}
        dropped = superset_of(part.name, keys, given)
        NativeAttention.__init__(self, Spec(part, args), **facts)
        self.dropped = dropped

    keys = {name: Key(name, Any, False, True) for name in surroundings} | native_keys(part)
    aliases = ALIASES.get(part.name, {})
    for name, own_name in aliases.items():
        keys[name] = replace(keys[own_name], name=name, required=False)
        keys[own_name] = replace(keys[own_name], required=False)  # the part itself asks for one of them
    body: dict[str, Any] = {"__init__": init, "__doc__": part.__doc__, "stands_for": part.name}
    body["config_keys"] = {"name": Key("name", str, False, False), **keys}
    config = make_dataclass(f"{part.__name__}Config", [(name, Any, None) for name in keys], bases=(AttentionConfig,))
    body |= {"__module__": __name__, "__qualname__": f"{_PREFIX}{part.name}"}
    return Item(type(part.__name__, (NativeAttention,), body), config)


_PREFIX = "native_"


def __getattr__(name: str) -> Any:
    """The classes made for native parts, by name, so that a pickled model finds them in another process."""
    item = native_items(frozenset()).get(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
    if item is None:
        raise AttributeError(name)
    return item.constructor
