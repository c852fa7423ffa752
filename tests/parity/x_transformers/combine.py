"""Draws combinations of features from different families, as option sets of their own: what nobody thought of."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from tests.parity.x_transformers.families import all_sets
from tests.parity.x_transformers.option_set import LAYERS, OptionSet

Call = Callable[[Tensor], dict[str, Any]]


def padding(ids: Tensor) -> dict[str, Any]:
    """The second row ends early."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, -4:] = False
    return {"mask": mask}


def context(ids: Tensor) -> dict[str, Any]:
    """Another sequence, whose second row ends early."""
    mask = torch.ones(len(ids), 9, dtype=torch.bool)
    mask[1, -3:] = False
    features = torch.randn(len(ids), 9, LAYERS["dim"], generator=torch.Generator().manual_seed(8))
    return {"context": features, "context_mask": mask}


def prefix(ids: Tensor) -> dict[str, Any]:
    """The first tokens of each row are seen both ways."""
    return {"prefix_attn_len": torch.tensor([3, 6, 5][: len(ids)])}


USUAL = [
    OptionSet("usual/padding", call=padding),
    OptionSet("usual/grouped", {"attn_kv_heads": 2}),
    OptionSet("usual/cross", {"cross_attend": True}, call=context),
    OptionSet("usual/memory", {"attn_num_mem_kv": 2}),
    OptionSet("usual/rotary", {"rotary_pos_emb": True}),
]
"""What most models have, joined to a combination now and then."""


def features(version: str) -> list[OptionSet]:
    """The sets of one feature that upstream computes, of which combinations are made."""
    return [
        one
        for one in all_sets()
        if one.feature and version in one.versions and not (one.wrong or one.incompatible or one.random or one.ours)
    ]


def joined(parts: list[OptionSet], name: str, fused: bool) -> OptionSet | None:
    """All of `parts` in one set; None where they give one keyword two values, or need different stacks."""
    layers: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for one in parts:
        for found, given in ((layers, one.layers), (model, one.model)):
            if any(found.get(key, value) is not value and found[key] != value for key, value in given.items()):
                return None
            found.update(given)
    stacks = {one.stack for one in parts if one.stack != "Decoder"}
    if len(stacks) > 1:
        return None
    layers.pop("attn_flash", None)
    calls = [one.call for one in parts if one.call is not None]
    return OptionSet(
        name=name,
        layers=layers,
        model=model,
        ours={"attn_flash": True} if fused else {},  # upstream without flash is the oracle: with it it takes less
        stack=stacks.pop() if stacks else "Decoder",
        call=together(calls) if calls else None,
    )


def together(calls: list[Call]) -> Call:
    """One call with the arguments of all; the first says what two of them give."""

    def call(ids: Tensor) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for one in calls:
            given = {**one(ids), **given}
        return given

    return call


OTHERWISE = (
    ("xpos.*memory", "upstream's memories weigh differently in sequences of different lengths"),
    ("memories.*(rotary|xpos|rope).*usual/memory", "learned keys stand at 0, where remembered tokens begin here"),
    (
        "memories.*(shift-tokens|selective|hybrid)",
        "upstream leaves remembered tokens out of what goes from token to token",
    ),
    ("forget.*(dynamic|alibi|t5|attn-bias)", "upstream drops the bias"),
    ("(top-k|hard).*some-heads|some-heads.*(top-k|hard)", "equal tokens have equal scores, up to rounding"),
    ("rotary-given.*(projected|window)|(projected|window).*rotary-given", "distances are those of pos"),
    ("window-of-a-context.*padding", "padding is not counted from the ends"),
    ("CrossAttender.*window|window.*CrossAttender", "the context is padded, which is not counted from the ends"),
    ("window.*cross|cross.*window", "a decoder's tokens begin with the context, and padding is not counted"),
    ("top-k.*interspersed", "equal memory tokens have equal scores, up to rounding"),
)
"""Names of features that upstream computes otherwise, and why that is not compared; see docs/differences.md."""

REFUSED = (
    "has no effect",
    "self-attention alone has it",
    "context was given, and no part of this model reads it",
    "no layer attends to its own sequence",
    "there are memories for 2 steps, and",
    "the memory of this step is",
    "a step that reads what earlier steps were given cannot have memories",
    "so there is nothing to remember",
    "a prediction of the next token's features needs causal layers",
    "only one norm of queries and keys can be on",
    "these scores are distances",
    "one slope for each of the",
    "must be the same on both sides",
)
"""What is refused here though upstream runs it, with an option or an input left unread, or a meaning that differs."""


def otherwise(one: OptionSet) -> bool:
    """Whether upstream is known to compute something else."""
    names = sorted(one.name.split("+"), key=lambda name: ("usual/" in name, "memories" not in name, name))
    ways = ["+".join(names), "+".join(reversed(names))]
    return any(re.search(pattern, way) for pattern, _ in OTHERWISE for way in ways)


def combinations(seed: int, version: str) -> Iterator[OptionSet]:
    """Endless combinations: two to four features of different families, and what is usual beside them."""
    draw = random.Random(seed)
    families = by_family(features(version))
    while True:
        chosen = draw.sample(sorted(families), draw.choice((2, 2, 3, 4)))
        parts = [draw.choice(families[family]) for family in chosen]
        parts += [one for one in USUAL if draw.random() < 0.2]
        fused = draw.random() < 0.5
        found = joined(parts, "+".join(part.name for part in parts) + ("+fused" if fused else ""), fused)
        if found is not None and not otherwise(found):
            yield found


def by_family(sets: list[OptionSet]) -> dict[str, list[OptionSet]]:
    """The sets of each file."""
    families: dict[str, list[OptionSet]] = {}
    for one in sets:
        families.setdefault(one.name.split("/")[0], []).append(one)
    return families


def in_stack(
    seed: int, version: str, stack: Literal["Encoder", "CrossAttender", "PrefixDecoder"]
) -> Iterator[OptionSet]:
    """Endless combinations of what a decoder has, in another stack."""
    fit = [one for one in features(version) if one.stack in ("Decoder", stack)]
    sources = {"Encoder": [], "CrossAttender": [context], "PrefixDecoder": [prefix]}[stack]
    draw, families = random.Random(seed), by_family([one for one in fit if not re.search(UNFIT[stack], one.name)])
    while True:
        parts = [draw.choice(families[family]) for family in draw.sample(sorted(families), draw.choice((1, 2, 3)))]
        parts += [one for one in USUAL if draw.random() < 0.2]
        found = joined(parts, "+".join([stack, *(part.name for part in parts)]), draw.random() < 0.5)
        if found is not None and not otherwise(found):
            own = {key: x for key, x in found.layers.items() if stack != "CrossAttender" or key != "cross_attend"}
            calls = [call for call in (found.call, *sources) if call is not None]
            yield replace(found, layers=own, stack=stack, call=together(calls) if calls else None)


UNFIT = {
    "Encoder": "recurrence|xpos|prefix",
    "CrossAttender": "recurrence|xpos|only-cross|custom-layers|execution-order|attn-bias|prefix",
    "PrefixDecoder": "recurrence|xpos|only-cross|shift-tokens|prefix",
}
"""What a stack does not have, or has otherwise."""


OF_ENCODERS = {"pre_norm", "shift_tokens"}
"""Keywords that leave an encoder without a final norm, or that are counted over real tokens: its rows are padded."""


def encoder_decoders(seed: int, version: str) -> Iterator[dict[str, Any]]:
    """Endless keywords of an encoder and a decoder: those of layers, drawn for each side."""
    draw = random.Random(seed)
    plain = [one for one in features(version) if not (one.call or one.model) and one.stack in ("Decoder", "Encoder")]
    kept = [one for one in plain if not re.search("sinu|cross|max|window", one.name)]
    shape = {"num_tokens": 37, "max_seq_len": 20, **{key: x for key, x in LAYERS.items() if key != "dim"}}
    while True:
        keywords: dict[str, Any] = {"dim": LAYERS["dim"]}
        for side in ("enc", "dec"):
            one = joined(draw.sample(kept, 2), "side", False)
            if one is None or otherwise(one) or (side == "enc" and not OF_ENCODERS.isdisjoint(one.layers)):
                break
            own = {**shape, **one.layers}
            keywords |= {f"{side}_{key}": x for key, x in own.items() if x is not None}
        else:
            yield keywords
