"""How a model reads tokens: with a decode state, or everything again each time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from variform.core.part import Part
from variform.errors import ConfigError, ShapeError
from variform.generate.options import Options
from variform.ops.masks import Window
from variform.parts.kinds import State
from variform.stack.interspersed import InterspersedStack
from variform.stack.registers import RegisterStack
from variform.stack.state import room
from variform.stack.state_rows import select_rows

KEPT_STREAMS = ("source", "source_valid", "source_condition", "context", "context_mask")
"""Side inputs that a new decode state reads or keeps."""

FIRST_STREAMS = ("prefix", "prefix_valid")
"""Side inputs that are read with the prompt."""

ADDING = (RegisterStack, InterspersedStack)
"""Stacks that add tokens, of which a mask says nothing from step to step."""

EACH_STREAMS = ("passes", "exit")
"""Side inputs that say how the model runs."""

SIDE_STREAMS = (*KEPT_STREAMS, *FIRST_STREAMS, *EACH_STREAMS, "condition")


class Reader(Protocol):
    """Reads tokens and answers with the logits after the last."""

    state: State | None

    def read(self, ids: Tensor, valid: Tensor | None) -> Tensor:
        """[B, L] to [B, V]."""

    def select(self, rows: Tensor, batch: int) -> None:
        """Go on with these of the `batch` rows, in this order."""


class CachedReader:
    """Reads only what is new; a decode state holds the rest."""

    def __init__(self, model: nn.Module, state: State, streams: Mapping[str, Any], encodes: bool) -> None:
        self.model = model
        self.state: State | None = state
        self.lead = (None,) if encodes else ()
        self.streams = {name: x for name, x in streams.items() if name not in KEPT_STREAMS}

    def read(self, ids: Tensor, valid: Tensor | None) -> Tensor:
        """Read the next tokens."""
        logits, self.state = self.model(*self.lead, ids, valid=valid, state=self.state, **self.streams)
        self.streams = {name: x for name, x in self.streams.items() if name not in FIRST_STREAMS}
        return last_logits(logits)

    def select(self, rows: Tensor, batch: int) -> None:
        """Take the rows of the state, and of what is given with each call."""
        assert self.state is not None
        self.state = select_rows(self.state, rows, batch)
        self.streams = _of_rows(self.streams, rows)


class WholeReader:
    """Reads everything again each time."""

    state: State | None = None

    def __init__(self, model: nn.Module, streams: Mapping[str, Any], encodes: bool) -> None:
        self.model = model
        rest = dict(streams)
        self.lead = (rest.pop("source", None),) if encodes else ()
        self.streams = rest
        self.ids: Tensor | None = None
        self.valid: Tensor | None = None

    def read(self, ids: Tensor, valid: Tensor | None) -> Tensor:
        """Read all tokens so far and the next."""
        self.take(ids, valid)
        return self.answer()

    def take(self, ids: Tensor, valid: Tensor | None) -> None:
        """Join the next tokens to those so far."""
        if self.ids is None:
            self.ids, self.valid = ids, valid
        else:
            self.ids = torch.cat((self.ids, ids), 1)
            self.valid = None if self.valid is None else torch.cat((self.valid, torch.ones_like(ids).bool()), 1)

    def keep(self, count: int) -> None:
        """Forget all but the last tokens."""
        assert self.ids is not None
        self.ids = self.ids[:, -count:]
        self.valid = None if self.valid is None else self.valid[:, -count:]

    def answer(self) -> Tensor:
        """The logits after the last token."""
        return last_logits(self.model(*self.lead, self.ids, valid=self.valid, **self.streams))

    def select(self, rows: Tensor, batch: int) -> None:
        """Take the rows of all that was read."""
        assert self.ids is not None
        self.ids = self.ids[rows]
        self.valid = None if self.valid is None else self.valid[rows]
        self.lead = tuple(source[rows] for source in self.lead)
        self.streams = _of_rows(self.streams, rows)


class SlidingReader:
    """Reads on with another reader, and once there are more than `window` tokens the last ones again each time.

    Args:
        inner: reads while the tokens fit.
        model: the model.
        streams: the side inputs.
        encodes: whether the model has an encoder.
        window: how many tokens fit.
    """

    state: State | None = None

    def __init__(self, inner: Reader, model: nn.Module, streams: Mapping[str, Any], encodes: bool, window: int) -> None:
        self.inner: Reader | None = inner
        self.whole = WholeReader(model, streams, encodes)
        self.window = window

    def read(self, ids: Tensor, valid: Tensor | None) -> Tensor:
        """Read the next tokens, or the last ones again."""
        self.whole.take(ids, valid)
        assert self.whole.ids is not None
        if self.inner is not None and self.whole.ids.shape[1] <= self.window:
            return self.inner.read(ids, valid)
        self.inner = None
        self.whole.keep(self.window)
        return self.whole.answer()

    def select(self, rows: Tensor, batch: int) -> None:
        """Take the rows of both."""
        self.whole.select(rows, batch)
        if self.inner is not None:
            self.inner.select(rows, batch)


def _of_rows(streams: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    return {name: x[rows] if isinstance(x, Tensor) else x for name, x in streams.items()}


def last_logits(logits: Tensor) -> Tensor:
    """The logits after the last token, [B, V].

    Raises:
        ConfigError: the model answers once a sequence.
    """
    if logits.dim() != 3:
        raise ConfigError(f"the model's output has shape {list(logits.shape)}; logits [B, L, vocab_size] are needed")
    return logits[:, -1]


def mode_of(options: Options, keep_state: bool) -> AbstractContextManager[Any]:
    """Without gradients; a state that the caller has, or will have, must remain usable with them."""
    return torch.no_grad() if keep_state or options.get("state") is not None else torch.inference_mode()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within; afterwards every module has the training flag it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def reader_of(model: nn.Module, ids: Tensor, steps: int, options: Options, keep_state: bool) -> Reader:
    """The reader that the options ask for.

    Args:
        model: the model.
        ids: [B, L], the prompt.
        steps: how many tokens are to be made.
        options: see `Options`.
        keep_state: whether the state is to hold the last token as well.

    Raises:
        ConfigError: an option that the model, or another option, does not go with.
        ShapeError: there is no room for so many tokens.
    """
    plain = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    encodes = "source" in inspect.signature(plain.forward).parameters
    streams = {name: options.get(name) for name in SIDE_STREAMS if options.get(name) is not None}
    _check_streams(streams, encodes, options.get("state") is not None)
    if getattr(plain, "head", plain) is None:
        raise ConfigError("the model has no head, so it gives hidden states instead of logits", path="head")
    needed = ids.shape[1] + steps - 1 + keep_state
    state = options.get("state")
    limit = getattr(plain, "max_seq_len", None) if state is None else room(state)
    window = options.get("window")
    if window is not None and needed > window:
        if "mask" not in streams_taken(plain):
            raise ConfigError(f"{type(plain).__name__} takes no mask, so its past has no window", path="window")
        whole = limit is not None or "prefix" in streams or not honours_masks(plain)
        if state is None and whole:
            return _sliding(model, plain, ids, limit or window, options, streams, encodes, keep_state)
        if reads_masks(plain):  # else no part sees tokens but those at fixed distances, if any
            streams["mask"] = Window(window - 1)
    if limit is not None and needed > limit:
        held = f"the state has room for {limit} more" if state is not None else f"max_seq_len is {limit}"
        most = limit - ids.shape[1] + 1 - keep_state
        remedy = f"ask for at most {most} new tokens" if most > 0 else "shorten the prompt"
        raise ShapeError(f"{ids.shape[1]} prompt tokens and {steps} new ones do not fit: {held}; {remedy}")
    if not options.get("use_cache", True):
        if keep_state:
            raise ConfigError("a state to return needs the cache, and use_cache is False", path="return_state")
        return WholeReader(model, streams, encodes)
    if state is None:
        state = _new_state(plain, ids, needed, limit, options, streams, keep_state)
    return CachedReader(model, state, streams, encodes)


def streams_taken(model: Any) -> frozenset[str]:
    """The side inputs that a model takes by name."""
    if hasattr(model, "decoder"):
        model = model.decoder
    return frozenset(inspect.signature(model.forward).parameters)


def reads_masks(model: Any) -> bool:
    """Whether a part of a model that takes masks looks at them."""
    reads = getattr(getattr(model, "decoder", model), "reads_below", None)
    return reads is None or "mask" in reads


def honours_masks(model: nn.Module) -> bool:
    """Whether every part of a model that mixes tokens takes a mask of pairs, with a decode state too."""
    parts = [part for part in model.modules() if isinstance(part, Part)]
    return all(part.can.attention_mask and not isinstance(part, ADDING) for part in parts)


def _sliding(
    model: nn.Module,
    plain: Any,
    ids: Tensor,
    limit: int,
    options: Options,
    streams: Mapping[str, Any],
    encodes: bool,
    keep_state: bool,
) -> Reader:
    window = options.get("window") or limit
    if window > limit:
        raise ConfigError(f"the model's absolute positions end at {limit}", path="window", value=window)
    if keep_state:
        raise ConfigError("no state holds the past of a model that reads its last tokens again", path="return_state")
    inner: Reader = WholeReader(model, streams, encodes)
    if options.get("use_cache", True) and ids.shape[1] <= window:
        state = _new_state(plain, ids, window, limit, options, streams, keep_state)
        inner = CachedReader(model, state, streams, encodes)
    return SlidingReader(inner, model, streams, encodes, window)


def _new_state(
    model: Any,
    ids: Tensor,
    needed: int,
    limit: int | None,
    options: Options,
    streams: Mapping[str, Any],
    keep_state: bool,
) -> State:
    if not hasattr(model, "init_state"):
        hint = "use_cache=False reads everything again for each token"
        raise ConfigError(f"{type(model).__name__} has no init_state, so it cannot decode step by step", hint=hint)
    capacity = options.get("max_len") or (limit if keep_state else None) or needed
    if capacity < needed:
        raise ConfigError(f"this call needs room for {needed} tokens", path="max_len", value=capacity)
    kept = {name: value for name, value in streams.items() if name in (*KEPT_STREAMS, "passes")}
    if streams.get("prefix") is not None:
        kept["ahead"] = streams["prefix"].shape[1]
    with evaluating(model), mode_of(options, keep_state):
        state: State = model.init_state(ids.shape[0], capacity, bucket=options.get("bucket", 0), **kept)
    return state


def _check_streams(streams: Mapping[str, Any], encodes: bool, continues: bool) -> None:
    for name in streams:
        if name not in (*FIRST_STREAMS, *EACH_STREAMS, "condition") and name.startswith("source") != encodes:
            kind = "has an encoder: give it `source`" if encodes else "has no encoder: give it `context`"
            raise ConfigError(f"this model {kind}", path=name)
        if continues and name in KEPT_STREAMS:
            raise ConfigError("the state has read it already: leave it out", path=name)
