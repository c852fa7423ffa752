"""Every causal option set decodes: token by token with a state it computes what it computes of the whole sequence.

In float64 to 1e-10, through the state of the model itself: in chunks of any sizes, rows of which take different numbers
of tokens, and padding changes no real token.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import variform.dialects.x_transformers as ours
from tests.parity.x_transformers.families import all_sets
from tests.parity.x_transformers.option_set import OptionSet
from variform.errors import ConfigError, ShapeError
from variform.parts.memories import Memories
from variform.stack.model import Transformer
from variform.stack.state_rows import select_rows

LENGTH = 11
TOLERANCE = 1e-10
HELD = ("context", "context_mask")
"""What a state reads when it is made."""
EACH = (*HELD, "condition")
"""Arguments of a call that mean the same in every chunk."""

CAUSAL = [one for one in all_sets() if one.stack == "Decoder" and not one.random]


def sides(one: OptionSet, ids: Tensor) -> dict[str, Any]:
    """The further arguments of a set, in float64; sets with arguments of whole sequences alone are not decoded."""
    given = {} if one.call is None else one.call(ids)
    if "mems" in given:
        sizes = one.keywords()[1]
        masks = given.get("mem_masks", [None])
        remembered = Memories(sizes["max_mem_len"], sizes.get("shift_mem_down", 0), tuple(given["mems"]), masks[0])
        given = {"memories": remembered, **{n: x for n, x in given.items() if n not in ("mems", "mem_masks")}}
    by_token = given.get("condition", ids).dim() == 3
    if by_token or any(name not in (*EACH, "memories") for name in given):
        pytest.skip("the set is of an argument for whole sequences")
    return {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in given.items()}


def native(one: OptionSet) -> Transformer:
    """The model of the core that the keywords describe, with every parameter perturbed."""
    layers, model = one.keywords()
    torch.manual_seed(0)
    built = ours.TransformerWrapper(attn_layers=ours.Decoder(**layers), **model).double().eval()
    with torch.no_grad():
        for param in built.parameters():
            param += 0.1 * torch.randn_like(param)
    core: Transformer = built.native
    return core


def ids_of(one: OptionSet, rows: int = 3) -> Tensor:
    vocabulary = one.keywords()[1]["num_tokens"]
    return torch.randint(0, vocabulary, (rows, LENGTH), generator=torch.Generator().manual_seed(4))


def features(out: Any) -> Tensor:
    """What a model answers with, [B, L, ...]; several heads answer one after another."""
    if isinstance(out, tuple) and isinstance(out[-1], Memories):
        out = out[0]
    return torch.cat([*out], -1) if isinstance(out, list | tuple) else out


def told(what: str) -> Callable[[str], str]:
    """A message that says what differs, and by how much."""
    return lambda message: f"{what}: {message}"


def state_of(model: Transformer, rows: int, given: dict[str, Any]) -> Any:
    """A state that has read nothing yet."""
    held = {name: x for name, x in given.items() if name in HELD}
    return model.init_state(rows, LENGTH, ahead=given["memories"].length if "memories" in given else 0, **held)


def row_of(x: Any, row: int) -> Any:
    """What was given with one row."""
    if not isinstance(x, Memories):
        return x[row : row + 1]
    valid = None if x.valid is None else x.valid[row : row + 1]
    return x._replace(features=tuple(one[row : row + 1] for one in x.features), valid=valid)


def in_chunks(model: Transformer, ids: Tensor, given: dict[str, Any]) -> Tensor:
    """All rows alike, 1 to 4 tokens a call."""
    draw, start, outs = random.Random(1), 0, []
    state = state_of(model, len(ids), given)
    rest = {name: x for name, x in given.items() if name not in HELD}
    while start < LENGTH:
        end = min(LENGTH, start + draw.choice((1, 2, 4)))
        out, state = model(ids[:, start:end], state=state, **rest)
        rest.pop("memories", None)  # the state has them
        outs.append(features(out))
        start = end
    return torch.cat(outs, 1)


def reordered(model: Transformer, ids: Tensor, given: dict[str, Any], rows: Tensor) -> Tensor:
    """Half of the tokens, and the other half with the rows of the state in another order, as beams have it."""
    half = LENGTH // 2
    rest = {name: x for name, x in given.items() if name not in HELD}
    _, state = model(ids[:, :half], state=state_of(model, len(ids), given), **rest)
    rest = {name: x[rows] for name, x in rest.items() if name != "memories"}
    out, _ = model(ids[rows, half:], state=select_rows(state, rows, len(ids)), **rest)
    return features(out)


def ragged(rows: int) -> Iterator[list[int]]:
    """How many tokens each row takes in each call; often none."""
    draw, left = random.Random(2), [LENGTH] * rows
    while any(left):
        counts = [min(draw.choice((0, 1, 3)), n) for n in left]
        if any(counts):
            left = [n - count for n, count in zip(left, counts, strict=True)]
            yield counts


def in_ragged_chunks(model: Transformer, ids: Tensor, given: dict[str, Any]) -> Tensor:
    """Each row takes its own number of tokens; the rest of a chunk is padding, on the right and on the left in turn."""
    state = state_of(model, len(ids), given)
    rest = {name: x for name, x in given.items() if name not in HELD}
    seen, outs = [0] * len(ids), [[] for _ in ids]  # type: list[int], list[list[Tensor]]
    for turn, counts in enumerate(ragged(len(ids))):
        width = max(counts)
        places = [slice(0, n) if turn % 2 else slice(width - n, width) for n in counts]
        chunk, valid = torch.full((len(ids), width), 1), torch.zeros(len(ids), width, dtype=torch.bool)
        for row, (place, count) in enumerate(zip(places, counts, strict=True)):
            chunk[row, place] = ids[row, seen[row] : seen[row] + count]
            valid[row, place] = True
        out, state = model(chunk, valid=valid, state=state, **rest)
        rest.pop("memories", None)
        for row, (place, count) in enumerate(zip(places, counts, strict=True)):
            outs[row].append(features(out)[row, place])
            seen[row] += count
    return torch.stack([torch.cat(row) for row in outs])


def padded(model: Transformer, ids: Tensor, given: dict[str, Any], side: str) -> tuple[Tensor, Tensor]:
    """Rows of different lengths in one batch, and the same rows alone; their real tokens, one after another."""
    lengths = [LENGTH, 6, 1][: len(ids)]
    places = [slice(0, n) if side == "right" else slice(LENGTH - n, LENGTH) for n in lengths]
    batch, valid = torch.full_like(ids, 1), torch.zeros_like(ids, dtype=torch.bool)
    for row, (place, count) in enumerate(zip(places, lengths, strict=True)):
        batch[row, place], valid[row, place] = ids[row, :count], True
    together = features(model(batch, valid=valid, **given))
    alone = [
        features(model(ids[row : row + 1, :count], **{name: row_of(x, row) for name, x in given.items()}))[0]
        for row, count in enumerate(lengths)
    ]
    return torch.cat([together[row, place] for row, place in enumerate(places)]), torch.cat(alone)


def honours_padding(model: Transformer, ids: Tensor, given: dict[str, Any]) -> bool:
    """Whether padding is taken; what would be ignored is refused, saying so."""
    try:
        model(ids, valid=torch.ones_like(ids, dtype=torch.bool), **given)
    except ShapeError as error:
        if "padding" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("one", CAUSAL, ids=lambda one: one.name)
@torch.no_grad()
def test_decoding(one: OptionSet) -> None:
    ids = ids_of(one)
    given = sides(one, ids)
    model = native(one)
    assert model.causal
    if one.decodes is False:
        assert one.why_not, "a set that cannot decode says why"
        with pytest.raises(ConfigError):
            state_of(model, len(ids), given)
    else:
        whole = features(model(ids, **given))
        assert whole.isfinite().all()
        torch.testing.assert_close(in_chunks(model, ids, given), whole, rtol=0, atol=TOLERANCE, msg=told("chunks"))
        torch.testing.assert_close(
            in_ragged_chunks(model, ids, given), whole, rtol=0, atol=TOLERANCE, msg=told("ragged chunks")
        )
        rows = torch.tensor([2, 0, 0, 1])
        found = reordered(model, ids, given, rows)
        expected = whole[rows, LENGTH // 2 :]
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE, msg=told("rows in another order"))
    if one.decodes is False and not honours_padding(model, ids, given):
        return
    for side in ("right", "left"):
        together, alone = padded(model, ids, given, side)
        torch.testing.assert_close(together, alone, rtol=0, atol=TOLERANCE, msg=told(f"padding on the {side}"))
