"""Upstream's way of decoding, `model(x, cache=intermediates)`, over decode states of the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from variform.dialects.x_transformers.beside import CROSS
from variform.dialects.x_transformers.call import placing
from variform.dialects.x_transformers.errors import InputError
from variform.errors import ConfigError
from variform.ops.masks import Dense
from variform.parts.beside import Beside
from variform.parts.kinds import State
from variform.stack.model import Transformer
from variform.stack.state import room

KEPT = ("context", "context_mask", "context_positions")
"""What a decode state has read before the first token."""

FIRST = ("prefix", "prefix_valid", "mask", "bias", "two_way")
"""What goes with the tokens of the first call alone: tokens after them see all of them, with nothing added."""

ONCE = (*KEPT, "prefix", "prefix_valid", "two_way", "passes")
"""What may be given with the first call alone, and is what it was in a later one."""

BY_TOKEN = ("valid", "added", "numbers")
CONDITIONS = ("condition", "injected")
"""Streams that are the same for all tokens of a row, or of each."""

CALLED = {
    "mask": "attn_mask or self_attn_kv_mask",
    "bias": "attn_bias",
    "context_positions": "context_pos",
    "prefix": "prepend_embeds",
    "prefix_valid": "prepend_mask",
    "two_way": "prefix_attn_len",
    "passes": "number of passes",
    "added": "sum_embeds",
    "numbers": "x_num",
    "embedding_options": "token_emb_kwargs",
}
"""What upstream calls streams of the core."""


@dataclass
class Cache:
    """What a model has read, from which it goes on; the decode state is made when it is first used.

    A cache may be used several times, and none becomes void: where its state was taken by another call already, or is
    full, what was read is read again.

    Args:
        ids: [B, L] or features [B, L, n], what was read.
        streams: what was given with it, over all tokens; `prefix`, `context` and their masks.
        positions: [L] or [B, L] of the tokens; None for 0, 1, ...
        order: of the sublayers, that the call asked for.
        state: that has read the tokens; None as long as there is none.
    """

    ids: Tensor
    streams: dict[str, Any] = field(default_factory=dict)
    positions: Tensor | None = None
    order: tuple[int, ...] | None = None
    state: State | None = None

    @property
    def length(self) -> int:
        """How many tokens were read."""
        return self.ids.shape[1]

    def read(self, model: Transformer, new: Tensor, streams: dict[str, Any]) -> tuple[Tensor, Cache]:
        """The hidden states of the next tokens, and the cache after them.

        Args:
            model: the model.
            new: [B, N] token ids.
            streams: `positions` and those by token, of the new tokens alone; others hold for all.
        """
        count = new.shape[1]
        state = self.state
        if state is None or state["clock"][0] != state["turn"] or room(state) < count:
            state = self._state(model, count)
        # Nothing but the first call reads what stands before the tokens, and the state holds the context.
        given = {name: x for name, x in streams.items() if name not in (*KEPT, *FIRST, "passes")}
        hidden, state = model(new, state=state, hidden=True, **given)
        ids = torch.cat((self.ids, new), 1)
        return hidden, Cache(ids, self._streams(streams, count), self._positions(streams, count), self.order, state)

    def _state(self, model: Transformer, count: int) -> State:
        """A decode state that has read the tokens so far, with room for as many more."""
        limit = model.max_seq_len
        if limit is not None and self.length + count > limit:
            message = f"{self.length} tokens were read and {count} more do not fit: absolute positions end at {limit}"
            raise InputError(message)
        capacity = limit or 2 * (self.length + count)
        prefix = self.streams.get("prefix")
        kept = {name: x for name, x in self.streams.items() if name in (*KEPT, "passes") and x is not None}
        ahead = 0 if prefix is None else prefix.shape[1]
        try:
            state: State = model.init_state(self.ids.shape[0], capacity, ahead=ahead, **kept)
        except ConfigError as error:
            raise InputError(f"this model cannot go on from a cache: {error}") from None
        rest = {name: x for name, x in self.streams.items() if name not in KEPT}
        _, state = model(self.ids, state=state, hidden=True, positions=self.positions, **rest)
        return state

    def _streams(self, new: dict[str, Any], count: int) -> dict[str, Any]:
        """What was given with all tokens."""
        joined = {name: x for name, x in self.streams.items() if name != "further_ids"}
        for name in BY_TOKEN:
            before, now = self.streams.get(name), new.get(name)
            if name == "valid" and (before is None) != (now is None):
                rows = self.ids.shape[:2]
                before = self.ids.new_ones(rows, dtype=torch.bool) if before is None else before
                now = before.new_ones(before.shape[0], count) if now is None else now
            elif (before is None) != (now is None):
                raise InputError(f"{CALLED[name]} must be given with all tokens, or with none")
            joined[name] = None if before is None or now is None else torch.cat((before, now), 1)
        prefix = self.streams.get("prefix")
        read = self.length + (0 if prefix is None else prefix.shape[1])
        joined |= {name: _spread(self.streams.get(name), new.get(name), read, count) for name in CONDITIONS}
        joined |= {name: _grown(name, self.streams.get(name), count) for name in ("mask", "bias")}
        ids = self.streams.get("further_ids")
        if ids is not None:
            joined["further_ids"] = {name: torch.cat((ids[name], new["further_ids"][name]), 1) for name in ids}
        if self.streams.get("beside") is not None:
            joined["beside"] = {mixer: _longer(one, new["beside"][mixer]) for mixer, one in joined["beside"].items()}
        return joined

    def _positions(self, new: dict[str, Any], count: int) -> Tensor | None:
        now = new.get("positions")
        if self.positions is None and now is None:
            return None
        counted = torch.arange(self.length + count, device=self.ids.device)
        before = counted[: self.length] if self.positions is None else self.positions
        now = counted[self.length :] if now is None else now
        rows = max(before.dim(), now.dim())
        before, now = (x.expand(self.ids.shape[0], -1) if x.dim() < rows else x for x in (before, now))
        return torch.cat((before, now), -1)


def _grown(name: str, of: Any, count: int) -> Any:
    """A mask or bias of pairs over `count` more tokens, which see all that they may."""
    if isinstance(of, Dense):
        return replace(of, tensor=_grown(name, of.tensor, count))
    return F.pad(of, (0, count, 0, count), value=True if name == "mask" else 0.0) if isinstance(of, Tensor) else of


def _longer(before: Beside, now: Beside) -> Beside:
    """What tokens were given beside their input, with that of further ones."""
    if before.added is None or now.added is None:
        return before
    return before._replace(added=torch.cat((before.added, now.added), 1))


def _spread(before: Tensor | None, now: Tensor | None, read: int, count: int) -> Tensor | None:
    """What the tokens so far and the new ones went by, [B, read + count, n]; left as it is where that is the same."""
    like = before if now is None else now
    if like is None:
        return None
    empty = torch.zeros_like(like[:, :1] if like.dim() == 3 else like)
    first, last = (empty if x is None else x for x in (before, now))
    of_rows = first.dim() == 2 or first.shape[1] == 1
    if of_rows and first.shape == last.shape and torch.equal(first, last):
        return first
    parts = [(x.unsqueeze(1) if x.dim() == 2 else x, n) for x, n in ((first, read), (last, count))]
    return torch.cat([x.expand(-1, n, -1) for x, n in parts], 1)


def cache_of(given: Any) -> Cache:
    """What an earlier call has read.

    Raises:
        InputError: it is not what a call gave.
    """
    found = getattr(given, "cache", None)
    if not isinstance(found, Cache):
        unchanged = "in a call without causal=..., given angles and changed features"
        raise InputError(f"the cache is what this model gave with return_intermediates=True, {unchanged}")
    return found


@dataclass(frozen=True)
class Steps:
    """The next tokens of a call with a cache.

    Args:
        x: [B, L] token ids or features [B, L, n]: the new ones, or all.
        cache: what was read before.
        alone: whether x is the new tokens alone.
        age: how many are said to be new; 1 is not checked.
        causal: whether the layers are.
        order: of the sublayers, that this call asks for.
    """

    x: Tensor
    cache: Cache
    alone: bool
    age: int
    causal: bool
    order: tuple[int, ...] | None

    def read(
        self, model: Transformer, given: dict[str, Any], mask: Tensor | None, pos: Tensor | None, start: Tensor | None
    ) -> tuple[Tensor, Cache, Tensor | None]:
        """The hidden states of the new tokens, the cache after them, and which of them are real."""
        new = self.x if self.alone else self.x[:, self.cache.length :]
        count, total = new.shape[1], self.cache.length + new.shape[1]
        if not self.causal:
            raise InputError("only causal layers can go on from a cache")
        if self.order != self.cache.order:
            orders = f"{self.cache.order or 'their own order'}, and this call runs them in {self.order or 'their own'}"
            raise InputError(f"what the cache holds was read by layers in {orders}: give the same order with each call")
        self._check(new, given)
        whole = placing(self.causal, total, new.device, *self._whole(mask, pos, total), start)
        positions, valid = self._unchanged(*whole, total)
        given = self._of_new(given, count)
        streams = {
            **given,
            "positions": None if positions is None else positions[..., -count:],
            "valid": None if valid is None else valid[:, -count:],
        }
        hidden, after = self.cache.read(model, new, streams)
        return hidden, after, streams["valid"]

    def _check(self, new: Tensor, given: Mapping[str, Any]) -> None:
        """Refuse what contradicts that which was read."""
        cache, known = self.cache, self.cache.streams
        if self.x.dim() != cache.ids.dim() or self.x.shape[0] != cache.ids.shape[0] or not new.shape[1]:
            held = f"[{cache.ids.shape[0]}, {cache.length}]"
            raise InputError(f"the cache holds {held} tokens, and {list(self.x.shape)} hold no new ones for it")
        if self.age not in (1, new.shape[1]):
            raise InputError(f"cache_age = {self.age} tokens are said to be new, and {new.shape[1]} are")
        for name in ("mask", "bias"):
            if given[name] is not None:
                raise InputError(f"a call with a cache takes no {CALLED[name]}: it was read, or is over all tokens")
        if known.get("mask") is not None and not isinstance(known["mask"], Dense):
            raise InputError("a cache does not keep what self_attn_kv_mask hides: padding is told by mask=...")
        if known.get("segments") is not None:
            raise InputError("flash_pack_seq_kwargs are for whole sequences: no cache goes on from them")
        for name in ONCE:
            if given.get(name) is not None and not same(given[name], known.get(name)):
                first = f"the {CALLED.get(name, name)} of the first call"
                raise InputError(f"a call with a cache goes on with {first}, and this is another")
        if not same(given.get("embedding_options"), known.get("embedding_options")):
            raise InputError("token_emb_kwargs are the same in each call that goes on from a cache")
        self._check_beside(given.get("beside") or {}, known.get("beside") or {})
        if not self.alone and not torch.equal(self.x[:, : cache.length], cache.ids):
            raise InputError("the first tokens are not those that the cache has read: input_not_include_cache=True?")

    @staticmethod
    def _check_beside(now: Mapping[Any, Beside], before: Mapping[Any, Beside]) -> None:
        if any(isinstance(mixer, CROSS) for mixer in (*now, *before)):
            raise InputError("cross_attn_kv_residuals are for whole sequences: leave the cache out")
        for mixer in {**now, **before}:
            one, other = now.get(mixer, Beside()), before.get(mixer, Beside())
            if not same(one._replace(added=None), other._replace(added=None)):
                raise InputError("self_attn_additional_kv is the same in each call that goes on from a cache")
            if (one.added is None) != (other.added is None):
                raise InputError("self_attn_kv_residuals must be given with all tokens, or with none")

    def _unchanged(
        self, positions: Tensor | None, valid: Tensor | None, total: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Where all tokens stand and which are real, if those that were read stand where they did.

        Raises:
            InputError: they do not.
        """
        cache = self.cache
        if positions is None and cache.positions is not None:
            positions = torch.arange(total, device=self.x.device)
        if positions is not None:
            stood = torch.arange(cache.length, device=self.x.device) if cache.positions is None else cache.positions
            if bool((positions[..., : cache.length] != stood).any()):
                raise InputError("tokens that were read stood elsewhere: give pos or seq_start_pos with each call")
        if valid is not None:
            known = cache.streams.get("valid")
            were = valid[:, : cache.length]
            if not bool((were if known is None else were == known).all()):
                raise InputError("the mask says of tokens that were read another thing than the call that read them")
        return positions, valid

    def _of_new(self, given: Mapping[str, Any], count: int) -> dict[str, Any]:
        """What is given by token, of the new ones alone; what is given to all tokens alike is left."""
        prefix = self.cache.streams.get("prefix")
        sizes = {self.cache.length + count + ahead for ahead in (0, 0 if prefix is None else prefix.shape[1])}

        def last(x: Tensor) -> Tensor:
            return x[:, -count:] if x.dim() > 1 and x.shape[1] in sizes else x

        found = {name: x for name, x in given.items() if x is not None}
        for name in ("added", "numbers", "injected"):
            if name in found:
                found[name] = last(found[name])
        if "condition" in found and found["condition"].dim() == 3:
            found["condition"] = last(found["condition"])
        if "further_ids" in found:
            found["further_ids"] = {name: last(ids) for name, ids in found["further_ids"].items()}
        for mixer, one in found.get("beside", {}).items():
            if one.added is not None:
                found["beside"] = {**found["beside"], mixer: one._replace(added=last(one.added))}
        return found

    def _whole(self, mask: Tensor | None, pos: Tensor | None, total: int) -> tuple[Tensor | None, Tensor | None]:
        """Mask and positions over all tokens, from those of all or of the new ones."""
        length = self.cache.length
        if mask is not None and mask.shape[1] == total - length:
            before = self.cache.streams.get("valid")
            before = mask.new_ones(mask.shape[0], length) if before is None else before
            mask = torch.cat((before, mask), 1)
        if pos is not None and pos.shape[-1] == total - length:
            before = self.cache.positions
            before = torch.arange(length, device=pos.device) if before is None else before
            pos = torch.cat((before.expand(*pos.shape[:-1], -1), pos), -1)
        return mask, pos


def over_all(valid: Tensor | None, prefix: Tensor | None, prefix_valid: Tensor | None, x: Tensor) -> Tensor | None:
    """Which of what was read is real: prefix and tokens, [B, P + L]; None for all."""
    if prefix is None or (valid is None and prefix_valid is None):
        return valid
    ahead = torch.ones_like(prefix[..., 0], dtype=torch.bool) if prefix_valid is None else prefix_valid
    return torch.cat((ahead, x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid), 1)


def same(a: Any, b: Any) -> bool:
    """Whether two arguments say the same; tensors are compared by value."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)
