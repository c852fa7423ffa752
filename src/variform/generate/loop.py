"""The decoding loop: read the prompt, draw a token for every row, read it, and so on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Unpack, overload

import torch
from torch import Tensor, nn

from variform.generate.compiled import BUCKET, with_compiled_steps
from variform.generate.options import Options, check_options, end_tokens
from variform.generate.programs import as_language_model
from variform.generate.prompts import Prompts, batch_of
from variform.generate.readers import evaluating, mode_of, reader_of
from variform.generate.samplers import Filter, chain, draw
from variform.parts.kinds import State


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
        if options.get("compile"):
            model = with_compiled_steps(model, options["compile"])
            if options.get("state") is None:
                options = {"bucket": BUCKET, **options}
        self.reader = reader_of(model, self.batch.ids, max_new_tokens, options, keep_state)

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


def _samplers(options: Options) -> list[Filter]:
    heat = options.get("temperature", 1.0)
    return chain(heat, options.get("top_k"), options.get("top_p"), options.get("min_p"))


def _generator(options: Options, device: torch.device) -> torch.Generator | None:
    seed = options.get("seed")
    return options.get("generator") if seed is None else torch.Generator(device).manual_seed(seed)
