"""A program that reads ids and gives logits, called as a language model is: its inputs and outputs have names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.errors import ConfigError, Problem, did_you_mean
from variform.generate.options import Options
from variform.parts.flows import Flow
from variform.parts.kinds import State
from variform.stack.lines import steps_of
from variform.stack.program import ProgramModel
from variform.stack.program_state import tokens_length

OWN_OPTIONS = ("streams", "input", "output")
_OTHERS = ("source", "source_valid", "source_condition", "context", "context_mask", "condition")


class TokenProgram(nn.Module):
    """A program as a language model.

    Args:
        model: the program, compiled or not.
        program: the program itself.
        options: see `Options`; of these `streams`, `input` and `output`.

    Raises:
        ConfigError: a name is missing or unknown, or an input is not given.
    """

    def __init__(self, model: nn.Module, program: ProgramModel, options: Options) -> None:
        super().__init__()
        continues = options.get("state") is not None
        self.model = model
        self.program = program
        self.held: dict[str, Tensor] = dict(options.get("streams") or {})
        _refuse_others(options, continues)
        shapes = program.admission.shapes
        self.input = _input_of(program, self.held, options.get("input"))
        self.output = _output_of(program, options.get("output"))
        unknown = [name for name in self.held if name not in shapes]
        missing = [name for name in shapes if name != self.input and name not in self.held]
        problems = [
            Problem(f"streams.{name}", "is no input of this program", hint=did_you_mean(name, shapes))
            for name in unknown
        ]
        if missing and not continues:
            given = ", ".join(f"{name!r}: ..." for name in missing)
            problems.append(Problem("streams", f"the program reads {', '.join(missing)} too: streams={{{given}}}"))
        if problems:
            raise ConfigError(problems)

    @property
    def vocab_size(self) -> int | None:
        """The number of different tokens, where an embedding reads them."""
        for _, step in steps_of(self.program.lines):
            if self.input in step.takes:
                return getattr(step.op, "classes", getattr(step.op, "vocab_size", None))
        return None

    def forward(self, ids: Tensor, *, valid: Tensor | None = None, state: State | None = None) -> Any:
        """Logits [B, L, V]; with a state, (logits, new state)."""
        if state is None:
            return self.model({self.input: ids, **self._cut(*ids.shape)}, valid=valid)[self.output]
        out, state = self.model({self.input: ids}, valid=valid, state=state)
        return out[self.output], state

    def init_state(self, batch: int, max_len: int, *, bucket: int = 0) -> State:
        """Empty decode state that holds the other inputs."""
        return self.program.init_state(batch, max_len, bucket=bucket, **self.held)

    def _cut(self, batch: int, length: int) -> dict[str, Tensor]:
        """The other inputs for a sequence of this length: of pairs of tokens, the part that it needs."""
        shapes = self.program.admission.shapes
        name = tokens_length(shapes, self.held)
        return {
            key: x[:, :, :length, :length].expand(batch, -1, -1, -1)
            if Flow(shapes[key], name).pairs and x.dim() == 4 and x.shape[0] in (1, batch)
            else x
            for key, x in self.held.items()
        }


def as_language_model(model: nn.Module, options: Options) -> nn.Module:
    """The model, or a program made into one that is called with ids alone.

    Raises:
        ConfigError: what is asked for is for programs, and the model is none; or the program's inputs are not clear.
    """
    plain = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if isinstance(plain, ProgramModel):
        return TokenProgram(model, plain, options)
    for name in OWN_OPTIONS:
        if options.get(name) is not None:
            raise ConfigError("is for programs, whose inputs and outputs have names; this model is none", path=name)
    return model


def _refuse_others(options: Options, continues: bool) -> None:
    for name in _OTHERS:
        if options.get(name) is not None:
            raise ConfigError(f"a program's inputs are given by name: streams={{{name!r}: ...}}", path=name)
    if continues and options.get("streams"):
        raise ConfigError("the state holds them already: leave them out", path="streams")


def _input_of(program: ProgramModel, held: Mapping[str, Tensor], name: str | None) -> str:
    """The input that the tokens are."""
    ids = [entry.name for entry in program.admission.entries if entry.dtype is torch.long and entry.name not in held]
    if name is not None:
        if name in ids:
            return name
        raise ConfigError("is no input of ids of this program", path="input", value=name, hint=did_you_mean(name, ids))
    if len(ids) == 1:
        return ids[0]
    several = f"reads ids from {', '.join(ids)}: name the tokens', and hold the others in streams"
    raise ConfigError(f"the program {several if ids else 'has no input of ids'}", path="input")


def _output_of(program: ProgramModel, name: str | None) -> str:
    """The output that the logits are."""
    outputs = program.outputs
    if name is not None:
        if name in outputs:
            return name
        hint = did_you_mean(name, outputs)
        raise ConfigError("is no output of this program", path="output", value=name, hint=hint)
    if len(outputs) == 1:
        return outputs[0]
    raise ConfigError(f"the program gives {', '.join(outputs)}: name the logits", path="output")
