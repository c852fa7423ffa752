"""The decoding loop: read the prompt, draw a token for every row, read it, and so on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol, Unpack, overload

import torch
from torch import Tensor, nn

from variform.errors import ConfigError, ShapeError
from variform.generate.options import Options, check_options, end_tokens
from variform.generate.programs import as_language_model
from variform.generate.prompts import Prompts, batch_of
from variform.generate.samplers import Filter, chain, draw
from variform.parts.kinds import State
from variform.stack.state import room
from variform.stack.state_rows import select_rows

KEPT_STREAMS = ("source", "source_valid", "context", "context_mask")
"""Side inputs that a new decode state reads or keeps."""

SIDE_STREAMS = (*KEPT_STREAMS, "condition")


@overload
def generate(
    model: nn.Module,
    prompt: Prompts,
    max_new_tokens: int,
    *,
    return_state: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def generate(
    model: nn.Module, prompt: Prompts, max_new_tokens: int, *, return_state: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, State]: ...
def generate(
    model: nn.Module, prompt: Prompts, max_new_tokens: int, *, return_state: bool = False, **options: Unpack[Options]
) -> Tensor | tuple[Tensor, State]:
    """Continue prompts: `tokens = vf.generate(model, prompt, 100, temperature=0.8, top_p=0.95, eos=0)`.

    Rows of unequal length give what each gives alone (greedy; drawn tokens depend on the batch). The model runs in
    eval mode without gradients, and its training flags are put back.

    Shapes:
        prompt: [L] or [B, L] integers, or a list of B prompts
        returns: [N] or [B, N], the new tokens alone, N <= max_new_tokens

    Args:
        model: a causal model, or an encoder-decoder with `source`; anything with `init_state` and
            `forward(ids, state=...)`; or a program that reads ids and gives logits, with its other inputs in `streams`.
        prompt: token ids, moved to the model's device.
        max_new_tokens: stop after so many; earlier when all rows have ended.
        return_state: return `(tokens, state)`; the state has read the prompt and every token returned, up to and with
            a row's eos.
        **options: see `Options`.

    Raises:
        ConfigError: an option that is unknown, out of range or contradicts another; a model that cannot decode.
        ShapeError: an empty prompt, ids that are no tokens, more tokens than the model or the state holds.
    """
    run = Generation(model, prompt, max_new_tokens, options, return_state)
    tokens = torch.stack(list(run), -1)
    if not return_state:
        return tokens
    assert run.state is not None
    return tokens, run.state


def stream(model: nn.Module, prompt: Prompts, max_new_tokens: int, **options: Unpack[Options]) -> Iterator[Tensor]:
    """The same as `generate`, token by token: yields [B] integers as they are made, 0-D for a single prompt.

    Everything is checked before this returns. The model is in eval mode from the first token to the last, or until
    the iterator is closed.
    """
    return iter(Generation(model, prompt, max_new_tokens, options, keep_state=False))


class Generation:
    """One run of the loop; iterate over it once.

    Args:
        model: the model.
        prompt: token ids.
        max_new_tokens: the most steps.
        options: see `Options`.
        keep_state: bring `state` up to the last token returned.
    """

    def __init__(
        self, model: nn.Module, prompt: Prompts, max_new_tokens: int, options: Options, keep_state: bool
    ) -> None:
        check_options(options, max_new_tokens)
        model = as_language_model(model, options)
        vocab_size = getattr(model, "vocab_size", None)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.batch = batch_of(prompt, options.get("lengths"), options.get("valid"), vocab_size, device)
        self.model = model
        self.options = options
        self.steps = max_new_tokens
        self.greedy = options.get("greedy", False) or options.get("temperature", 1.0) == 0
        # The samplers of the options keep the most probable token where it is; a caller's own need not.
        self.filters = [*([] if self.greedy else _samplers(options)), *options.get("filters", ())]
        self.generator = _generator(options, device)
        ends = end_tokens(options, vocab_size)
        self.ends = torch.tensor(ends, device=device) if ends else None
        pad = options.get("pad")
        self.pad = pad if pad is not None else ends[0] if ends else 0
        self.keep_state = keep_state
        self.reader = _reader(model, self.batch.ids, max_new_tokens, options, keep_state)

    @property
    def state(self) -> State | None:
        """The decode state so far."""
        return self.reader.state

    def __iter__(self) -> Iterator[Tensor]:
        ids, valid, steps = self.batch.ids, self.batch.valid, self.steps
        ended = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
        some = False
        with evaluating(self.model):
            for step in range(steps):
                # Entered anew for each token: while the caller holds one, the mode is the caller's.
                with mode_of(self.options, self.keep_state):
                    token = draw(self.reader.read(ids, valid), self.filters, self.greedy, self.generator)
                    ids = token.unsqueeze(1)
                    valid = ~ended.unsqueeze(1) if some else None  # a row's eos is read, what follows it is not
                    shown = token
                    if self.ends is not None:
                        shown = token.masked_fill(ended, self.pad)
                        ended = ended | torch.isin(token, self.ends)
                        some = self.keep_state and bool(ended.any())
                last = step + 1 == steps or (self.ends is not None and bool(ended.all()))
                if last and self.keep_state:
                    with mode_of(self.options, self.keep_state):
                        self.reader.read(ids, valid)
                shown = shown.clone()  # outside of the mode: a tensor like any other
                yield shown[0] if self.batch.single else shown
                if last:
                    return


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
        self.streams = {} if encodes else {name: x for name, x in streams.items() if name not in KEPT_STREAMS}

    def read(self, ids: Tensor, valid: Tensor | None) -> Tensor:
        """Read the next tokens."""
        logits, self.state = self.model(*self.lead, ids, valid=valid, state=self.state, **self.streams)
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
        if self.ids is None:
            self.ids, self.valid = ids, valid
        else:
            self.ids = torch.cat((self.ids, ids), 1)
            self.valid = None if self.valid is None else torch.cat((self.valid, torch.ones_like(ids).bool()), 1)
        return last_logits(self.model(*self.lead, self.ids, valid=self.valid, **self.streams))

    def select(self, rows: Tensor, batch: int) -> None:
        """Take the rows of all that was read."""
        assert self.ids is not None
        self.ids = self.ids[rows]
        self.valid = None if self.valid is None else self.valid[rows]
        self.lead = tuple(source[rows] for source in self.lead)
        self.streams = _of_rows(self.streams, rows)


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


def _reader(model: nn.Module, ids: Tensor, steps: int, options: Options, keep_state: bool) -> Reader:
    plain = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    encodes = "source" in inspect.signature(plain.forward).parameters
    streams = {name: options.get(name) for name in SIDE_STREAMS if options.get(name) is not None}
    _check_streams(streams, encodes, options.get("state") is not None)
    if getattr(plain, "head", plain) is None:
        raise ConfigError("the model has no head, so it gives hidden states instead of logits", path="head")
    needed = ids.shape[1] + steps - 1 + keep_state
    state = options.get("state")
    limit = getattr(plain, "max_seq_len", None) if state is None else room(state)
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
    kept = {name: value for name, value in streams.items() if name in KEPT_STREAMS}
    with evaluating(model), mode_of(options, keep_state):
        state: State = model.init_state(ids.shape[0], capacity, bucket=options.get("bucket", 0), **kept)
    return state


def _check_streams(streams: Mapping[str, Any], encodes: bool, continues: bool) -> None:
    for name in streams:
        if name.startswith("source") != encodes:
            kind = "has an encoder: give it `source`" if encodes else "has no encoder: give it `context`"
            raise ConfigError(f"this model {kind}", path=name)
        if continues and name in KEPT_STREAMS:
            raise ConfigError("the state has read it already: leave it out", path=name)


def _samplers(options: Options) -> list[Filter]:
    heat = options.get("temperature", 1.0)
    return chain(heat, options.get("top_k"), options.get("top_p"), options.get("min_p"))


def _generator(options: Options, device: torch.device) -> torch.Generator | None:
    seed = options.get("seed")
    return options.get("generator") if seed is None else torch.Generator(device).manual_seed(seed)
