"""The page of the docs from which users choose features of x-transformers, made by running every one of them.

`python -m tests.parity.x_transformers.ledger` writes it.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import variform as vf
import variform.dialects.x_transformers as ours
from tests.parity.x_transformers.families import all_sets
from tests.parity.x_transformers.harness import pair
from tests.parity.x_transformers.option_set import LAYERS, MODEL, OptionSet
from tests.parity.x_transformers.runs import arguments, builder, flat, ids_of
from variform.stack.decodable import undecodable

PAGE = Path(__file__).parents[3] / "docs" / "x_transformers.md"
VERSION = importlib.metadata.version("x-transformers")
LONG = 2048
"""Tokens for which backends are told: kernels that skip or fuse are chosen for long sequences."""

HEAD_DIM = 64
"""Features of a head for which backends are told, unless a set has its own: kernels for GPUs need some."""

HEAD = """# Features of x-transformers

Every feature, measured by the tests: `python -m tests.parity.x_transformers.ledger` writes this page. Where a
result differs on purpose is told in [differences](differences.md).

- *Difference*: the largest difference of an output to x-transformers 2.31.10 (2.26.4 where that alone has the
  keyword) with the same perturbed weights in float64, its softmax included. *On purpose*: the original is wrong there;
  *alone*: it has no counterpart, or cannot run it.
- *Causal*: in a `Decoder` no output changes by a bit when later tokens do.
- *Decodes*: token by token with a cache, equal to the whole sequence to 1e-10 in float64.
- *CPU*, *CUDA*: what runs the attention in a training step of {long} tokens with heads of {head} features, as
  `vf.explain` tells.

| feature | keywords | part | paper | difference | causal | decodes | CPU | CUDA |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One line of the page; `fixed` is what the option set says, the rest is measured."""

    fixed: tuple[str, str, str, str]
    measured: tuple[str, ...]

    def __str__(self) -> str:
        return "| " + " | ".join((*self.fixed, *self.measured)) + " |"


def featured() -> list[OptionSet]:
    """The sets that have a line, by the names of their features."""
    return sorted((one for one in all_sets() if one.feature), key=lambda one: one.feature.lower())


def fixed(one: OptionSet) -> tuple[str, str, str, str]:
    """Feature, keywords, part and paper."""
    given = {**changed(one.layers, LAYERS), **one.ours, **changed(one.model, MODEL), **one.ours_model}
    if one.stack != "Decoder":
        given = {one.stack: None, **given}
    words = [f"`{name}`" if value is None else f"`{name}={shown(value)}`" for name, value in given.items()]
    if one.call is not None:
        words += [f"`{name}` of a call" for name in one.call(ids_of(one))]
    return one.feature, ", ".join(words) or "none", f"`{one.part}`" if one.part else "", link(one.paper)


def changed(given: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that a set is about, without sizes that every set has."""
    told = ("attn_dim_head", "max_seq_len")
    return {n: value for n, value in given.items() if n not in usual or (n in told and value != usual[n])}


def shown(value: Any) -> str:
    """A value as it is written in code."""
    if isinstance(value, nn.Module) or callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return repr(value).replace("|", "\\|")


def link(paper: str) -> str:
    """A paper as a link, or several with commas between."""
    if ", " in paper:
        return ", ".join(map(link, paper.split(", ")))
    if paper.startswith("arXiv:"):
        return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    return f"[link]({paper})" if paper.startswith("http") else paper


def measured(one: OptionSet) -> tuple[str, ...]:
    """Difference, causality, decoding, and the backends."""
    model = builder(one)(ours)
    spec = model.native.spec
    causal = "–" if not spec["causal"] else "yes" if holds_back(one, perturbed(model)) else "no"
    problems = undecodable(spec) if spec["causal"] else ()
    decodes = "–" if not spec["causal"] else "yes" if not problems and one.decodes is not False else "no"
    if decodes == "no" and one.why_not:
        decodes = f"no: {one.why_not}"
    return difference(one), causal, decodes, *(backends(one, device) for device in ("cpu", "cuda"))


def perturbed(model: nn.Module) -> nn.Module:
    """A model in float64 whose zeros and ones count."""
    torch.manual_seed(0)
    model = model.double().eval()
    for param in model.parameters():
        param.data += 0.1 * torch.randn_like(param)
    return model


@torch.no_grad()
def difference(one: OptionSet) -> str:
    """The largest difference to upstream's output."""
    if one.wrong:
        return "[on purpose](differences.md#x-transformers)"
    if one.incompatible:
        return "alone"
    if one.random:
        return "random"
    if VERSION not in one.versions:
        return with_the_earlier_release(one)
    theirs, mine = pair(builder(one))
    ids = ids_of(one)
    given = arguments(one, ids)
    gap = float((flat(theirs(ids, **given)) - flat(mine(ids, **given))).abs().max())
    return "0" if gap == 0 else f"1e{math.ceil(math.log10(gap))}"


def with_the_earlier_release(one: OptionSet) -> str:
    """The difference to the release that has the keywords, in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--difference", one.name]
    paths = os.pathsep.join((str(Path(sys.prefix) / f"x-transformers-{one.versions[0]}"), *sys.path[1:]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


@torch.no_grad()
def holds_back(one: OptionSet, model: nn.Module) -> bool:
    """Whether outputs stay as they are, to the bit, when later tokens change."""
    ids = ids_of(one)
    other = ids.clone()
    other[:, -4:] = (other[:, -4:] + 1) % one.keywords()[1]["num_tokens"]
    given = arguments(one, ids)
    outs: list[Tensor] = []
    for tokens in (ids, other):
        torch.manual_seed(1)
        out = model(tokens, **given)
        outs.append(in_one(out))
    if outs[0].dim() < 3 or outs[0].shape[1] != ids.shape[1]:
        return True  # an answer for the whole sequence
    return torch.equal(outs[0][:, :-4], outs[1][:, :-4])


def in_one(out: Any) -> Tensor:
    """What a model answers with, side by side."""
    return out if isinstance(out, Tensor) else torch.cat([in_one(part) for part in out], -1)


def backends(one: OptionSet, device: str) -> str:
    """What runs the attentions in training."""
    made_to_size = any(isinstance(value, nn.Module) for value in one.layers.values())
    layers = {**({} if made_to_size else {"attn_dim_head": HEAD_DIM}), **one.layers}
    model = builder(replace(one, layers=layers, model={**one.model, "max_seq_len": LONG}))(ours)
    told = vf.explain(model.native.spec, batch=1, length=LONG, device=device)
    names = {row.chosen or "refused" for row in told.rows}
    return ", ".join(sorted(names)) or "–"


def page(rows: Iterable[Row]) -> str:
    """The whole page."""
    return HEAD.format(long=LONG, head=HEAD_DIM) + "\n".join(map(str, rows)) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Measure every feature and write the page; or print one difference."""
    if arguments:
        print(difference(next(one for one in all_sets() if one.name == arguments[1])))
        return
    rows = []
    for one in featured():
        print(one.name, flush=True)
        rows.append(Row(fixed(one), measured(one)))
    PAGE.write_text(page(rows), encoding="utf-8")
    print(f"{len(rows)} features: {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
