"""Lowering: from a model's spec to that of an equivalent program, and from its weights to the program's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from variform.core.codec import as_spec
from variform.core.resolve import resolve
from variform.core.spec import Shared, Spec
from variform.errors import ConfigError, did_you_mean
from variform.lower.models import inputs_of, write_model
from variform.lower.writer import Writer
from variform.stack.program import ProgramModel

Depth = Literal["parts", "ops"]


@dataclass(frozen=True)
class Lowered:
    """A model as a program.

    Args:
        spec: the program, resolved.
        prefixes: places among the program's modules, with the places of the same weights in the model.
    """

    spec: Spec
    prefixes: tuple[tuple[str, str], ...]

    def transfer(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The program's state dict from the model's; the tensors are the same.

        Weights that the program does not use (the head of an encoder that only gives hidden states) are left out.

        Args:
            state: `model.state_dict()`.
        """
        found: dict[str, Tensor] = {}
        for here, there in self.prefixes:
            for name, value in state.items():
                rest = _below(name, there)
                if rest is not None:
                    found[".".join(filter(None, (here, rest)))] = value
        return found


def lower(
    source: Any,
    *,
    depth: Depth = "parts",
    streams: Collection[str] = (),
    label: Callable[[Spec], str] | None = None,
    **facts: Any,
) -> Lowered:
    """A program that computes what a model does: embedding, one block a layer, head; equal layers are equal blocks.

    Its inputs are `ids` (or `image`, `features`; `source` and `target` for an encoder-decoder; `x` for a part that is
    no model) and the streams asked for; its output is `x`. What a program has no op for (LayerDrop, parts made of
    parts) stays one step. Checks that only a whole model makes of its inputs (`max_seq_len` where no table limits it)
    are not made.

    Args:
        source: a spec, a mapping, a path, or a built part: a model, a stack, a layer, a mixer or a feedforward.
        depth: "parts" keeps mixers and feedforwards as steps; "ops" cuts multi-head attention, MLP and GLU, token
            embeddings and heads into ops, where ops compute the very same.
        streams: the side inputs that the program takes, of those that the model reads: `positions`, `valid`,
            `segments`, `mask` ([B, 1, L, L], True = may attend), `context`, `context_mask`; for an encoder-decoder
            `source_valid` and `target_valid`, and those of the decoder.
        label: what tables call a step with a part; the part's name by default.
        **facts: what the surroundings of a part that is no model provide (`dim=64, heads=4`).

    Raises:
        ConfigError: the spec has problems, is no model, or does not read a stream that is asked for.
    """
    spec = resolve(as_spec(source), **facts)
    if spec.part is ProgramModel:
        if streams:
            raise ConfigError("a program takes its own inputs: leave streams out", value=tuple(streams))
        return Lowered(spec, (("", ""),))
    if depth not in ("parts", "ops"):
        raise ConfigError("the depth is 'parts' or 'ops'", path="depth", value=depth)
    known = inputs_of(spec)
    for name in streams:
        if name not in known.streams:
            hint = did_you_mean(name, known.streams) if known.streams else "it reads none"
            raise ConfigError(f"this model reads no stream {name!r}", path="streams", hint=hint)
    wanted = {*streams, *(["context"] if "context" in known.streams else [])}  # without it such a model does not run
    closed: frozenset[str] = frozenset()
    while True:
        writer = Writer(label or (lambda op: op.name), closed=closed)
        write_model(writer, spec, frozenset(wanted), depth == "ops")
        lines = writer.lines()
        inside = writer.opened & _held(lines)
        if not inside:
            break
        closed |= inside  # taken apart, these weights would no longer be the same as in the part that stays whole
    shapes = {**known.mains, **{name: known.streams[name] for name in sorted(wanted)}}
    executor = "checkpoint" if any(part.get("executor") == "checkpoint" for _, part in spec.walk()) else "plain"
    program = ProgramModel.spec(lines=lines, inputs=shapes, outputs=("x",), strict=False, executor=executor)
    return Lowered(resolve(program), tuple(writer.prefixes))


def _below(name: str, prefix: str) -> str | None:
    """The rest of a dotted name behind a prefix; None where that is none of it."""
    if not prefix:
        return name
    if name == prefix:
        return ""
    return name[len(prefix) + 1 :] if name.startswith(f"{prefix}.") else None


def _held(lines: list[Spec]) -> set[str]:
    """The names of shared parts in all places of a program."""
    found: set[str] = set()

    def scan(spec: Spec) -> None:
        for _, _, child in spec.children():
            if isinstance(child, Shared):
                found.add(child.name)
            inner = child.spec if isinstance(child, Shared) else child
            if inner is not None:
                scan(inner)

    for line in lines:
        scan(line)
    return found
