"""Native mixers, which own their heads and mix a whole sequence, behind upstream's interface of attentions."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import make_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from variform.core.build import build
from variform.core.fields import fields_of
from variform.core.part import Part
from variform.core.registry import parts
from variform.core.spec import Spec
from variform.dialects.xformers.building import Key, native_keys
from variform.dialects.xformers.components.attention.base import Attention, AttentionConfig
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes, read_att_mask, read_padding
from variform.dialects.xformers.components.attention.native import superset_of
from variform.dialects.xformers.errors import CallError
from variform.dialects.xformers.utils import Item, same_tensor
from variform.ops.masks import Dense, Mask
from variform.parts.kinds import Mixer


class NativeMixer(Attention):
    """A native mixer as an attention without input projections; key and value are the query.

    A subclass translates upstream's keywords to the native part's in its constructor.

    Args:
        spec: the native part.
        **facts: what the surroundings provide (`dim`, `heads`, `max_seq_len`).
    """

    stands_for: ClassVar[str] = ""
    """The registered name of the native part, which then is not offered a second time under its own name."""

    native: Mixer

    def __init__(self, spec: Spec, **facts: Any) -> None:
        super().__init__()
        self.native = build(spec, **facts)
        part, args = type(self.native), dict(self.native.spec.args)
        can = part.abilities(args)
        self.causal = bool(getattr(self.native, "causal", facts.get("causal", False)))
        self.requires_input_projection = False
        self.requires_skip_multi_head = True
        self.requires_same_k_q_dimensions = True
        self.supports_attention_mask = can.attention_mask
        self.supports_key_padding_mask = can.key_padding
        near = {length: part.near_length(args, length) for length in (2, 7, 12)}
        self.requires_squared_context = all(n != m == math.isqrt(m) ** 2 for n, m in near.items())

    @property
    def spec(self) -> Spec:
        """The native mixer."""
        return self.native.spec

    def within(self, dim: int, bias: bool) -> Spec:
        """The native mixer as it stands within `MultiHeadDispatch`.

        Args:
            dim: features in and out.
            bias: the output projection has an offset, where there is one.
        """
        return self.spec

    def forward(
        self,
        q: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        att_mask: AttMask | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        mask: AttMask | None = None,
    ) -> Tensor:
        """Mix, as called on its own.

        Shapes:
            q: [B, S, dim_model] -> [B, S, dim_model]

        Args:
            q: the sequence.
            k: the same tensor, or None.
            v: the same tensor, or None.
            att_mask: what may attend to what; see `read_att_mask`.
            key_padding_mask: [B, S], which tokens are real; see `read_padding`.
            mask: another name of `att_mask`.
        """
        if mask is not None and att_mask is not None:
            raise CallError("mask is another name of att_mask: give one of them")
        if q.dim() != 3:
            raise CallError(f"the mixer {self.native.name!r} takes [B, S, dim_model], not {list(q.shape)}")
        keys = q.shape[1] if k is None else k.shape[1]
        padding = read_padding(key_padding_mask, q.shape[0], keys, "key_padding_mask")
        return self.mix(
            q, q if k is None else k, q if v is None else v, mask if att_mask is None else att_mask, padding
        )

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        att_mask: AttMask | None,
        padding: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Mix a sequence, or refuse what the native part cannot honour.

        Args:
            query: [B, S, dim_model].
            key: the same tensor: it mixes its own sequence.
            value: likewise.
            att_mask: as the caller gave it.
            padding: bool [B, S], True = a real token.
            positions: of the tokens, where they are not 0, 1, ...
        """
        if not (same_tensor(key, query) and same_tensor(value, query)):
            raise CallError(
                f"the mixer {self.native.name!r} mixes one sequence: key and value are the query itself, and others "
                "would be ignored; attend to another sequence with scaled_dot_product, say"
            )
        streams = self.streams(att_mask, padding, Sizes(query.shape[0], self.heads, query.shape[1], query.shape[1]))
        if positions is not None and "positions" in type(self.native).reads:
            streams["positions"] = positions
        return self.run(query, streams)

    def run(self, x: Tensor, streams: Mapping[str, Any]) -> Tensor:
        """The native part on a sequence."""
        out = self.native(x, streams)
        if not isinstance(out, Tensor):
            raise CallError(f"the mixer {self.native.name!r} publishes streams: it needs a native model around it")
        return out

    def streams(self, att_mask: AttMask | None, padding: Tensor | None, sizes: Sizes) -> dict[str, Any]:
        """The streams that masks stand for; refuses those that the native part cannot honour."""
        streams: dict[str, Any] = {}
        if padding is not None:
            if not self.supports_key_padding_mask:
                raise CallError(f"the attention {self.native.name!r} does not support key padding masks")
            streams["valid"] = padding
        if att_mask is not None:
            if not self.supports_attention_mask:
                raise CallError(f"the attention {self.native.name!r} does not support attention masks")
            streams["mask"] = self._allowed(att_mask, sizes)
        return streams

    def _allowed(self, att_mask: AttMask, sizes: Sizes) -> Mask | None:
        allowed, scores = read_att_mask(att_mask, sizes)
        if not scores:
            return allowed
        values = att_mask if isinstance(att_mask, Tensor) else getattr(att_mask, "values", None)
        if not isinstance(values, Tensor) or not bool(((values == 0) | (values == -torch.inf)).all()):
            raise CallError(
                f"the attention {self.native.name!r} takes masks that keep and drop; other floats than 0 and -inf have "
                "no scores here to be added to"
            )
        kept, _ = read_att_mask(values == 0, sizes)
        assert isinstance(kept, Dense)
        return kept

    @property
    def heads(self) -> int:
        """The heads that a mask may tell apart."""
        return int(self.native.spec.get("heads") or 1)


def mixer_items(taken: frozenset[str]) -> Mapping[str, Item]:
    """The library's own mixers of one sequence that no class of the dialect stands for, under their native names."""
    found = {name: part for (_, name), part in parts("mixer").items() if "context" not in part.reads}
    return {name: _item(part) for name, part in found.items() if name not in taken}


@functools.cache
def _item(part: type[Part]) -> Item:
    """A class of the dialect for a native mixer: its keys are the part's own fields."""
    own = [f.name for f in fields_of(part)]
    surroundings = {"dim_model": "dim", "num_heads": "heads", "dim_head": "dim_head", "seq_len": "max_seq_len"}
    if part.can.causal and "causal" not in own:
        surroundings["causal"] = "causal"  # its children's

    def init(self: NativeMixer, **given: Any) -> None:
        facts = {fact: given[key] for key, fact in surroundings.items() if key in given and key not in own}
        args = {key: value for key, value in given.items() if key in own}
        dropped = superset_of(part.name, keys, given)
        NativeMixer.__init__(self, Spec(part, args), **facts)
        self.dropped = dropped

    keys = {name: Key(name, Any, False, True) for name in surroundings} | native_keys(part)
    body: dict[str, Any] = {"__init__": init, "__doc__": part.__doc__, "stands_for": part.name}
    body["config_keys"] = {"name": Key("name", str, False, False), **keys}
    config = make_dataclass(f"{part.__name__}Config", [(name, Any, None) for name in keys], bases=(AttentionConfig,))
    body |= {"__module__": __name__, "__qualname__": f"{_PREFIX}{part.name}"}
    return Item(type(part.__name__, (NativeMixer,), body), config)


_PREFIX = "native_"


def __getattr__(name: str) -> Any:
    """The classes made for native mixers, by name, so that a pickled model finds them in another process."""
    item = mixer_items(frozenset()).get(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
    if item is None:
        raise AttributeError(name)
    return item.constructor
