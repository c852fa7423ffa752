"""Combinations that nobody chose: drawn by a seed, compared with upstream, decoded, compiled, copied."""

from __future__ import annotations

import copy
import pickle
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

import variform.dialects.x_transformers as ours
from tests.parity.x_transformers import test_decoding as decoding
from tests.parity.x_transformers.combine import REFUSED, combinations, encoder_decoders, in_stack
from tests.parity.x_transformers.harness import VERSION, agree, compare_gradients, in_its_dtype, pair, upstream
from tests.parity.x_transformers.option_set import OptionSet
from tests.parity.x_transformers.runs import arguments, builder, flat, ids_of
from variform.errors import ConfigError, ShapeError
from variform.stack.remembering import decodes_behind

STACKS = ("Encoder", "CrossAttender", "PrefixDecoder")
FEW = [
    *islice(combinations(2, VERSION), 45),
    *(one for stack in STACKS for one in islice(in_stack(2, VERSION, stack), 6)),
]
MANY = [
    *islice(combinations(1, VERSION), 250),
    *(one for stack in STACKS for one in islice(in_stack(1, VERSION, stack), 40)),
]
SIDES = list(islice(encoder_decoders(1, VERSION), 40))
DRAWN = [*FEW, *(pytest.param(one, marks=pytest.mark.slow) for one in MANY)]
NAMES = [one.name for one in (*FEW, *MANY)]
DECODERS = [
    pytest.param(one, marks=() if place < len(FEW) else pytest.mark.slow, id=one.name)
    for place, one in enumerate((*FEW, *MANY))
    if one.stack == "Decoder"
]


def runs_upstream(one: OptionSet) -> bool:
    """Whether upstream builds and runs it."""
    torch.manual_seed(0)
    try:
        model = builder(one)(upstream).double().eval()
        in_its_dtype(model)
        model(ids_of(one), **arguments(one, ids_of(one)))
    except Exception:  # it fails in many ways
        return False
    return True


def ours_of(one: OptionSet) -> nn.Module:
    """Our model; the test is skipped where it, or a call of it, is refused for a reason that we know of."""
    try:
        model: nn.Module = builder(one)(ours).double().eval()
        model(ids_of(one), **arguments(one, ids_of(one)))
    except (ConfigError, ShapeError) as error:
        if not any(reason in str(error) for reason in REFUSED) and runs_upstream(one):
            raise
        pytest.skip(f"refused: {error}")
    return model


@pytest.mark.parametrize("one", DRAWN, ids=NAMES)
def test_values_and_gradients(one: OptionSet) -> None:
    ours_of(one)
    if not runs_upstream(one):
        pytest.skip("upstream does not run it")
    theirs, mine = pair(builder(one))
    ids, given = ids_of(one), arguments(one, ids_of(one))

    def run(model: nn.Module) -> Any:
        return flat(model(ids, **given))

    expected, keep = run(theirs), given.get("mask")
    if expected.std() <= 1e-3:
        pytest.skip("the random weights say nothing")
    told = keep is not None and expected.shape[:2] == keep.shape
    agree(theirs, mine, run, keep=keep if told else None, tolerance=1e-5)  # upstream rounds in places


@pytest.mark.parametrize("one", DECODERS)
@torch.no_grad()
def test_decoding_in_chunks(one: OptionSet) -> None:
    ours_of(one)
    ids = decoding.ids_of(one)
    given = decoding.sides(one, ids)
    model = decoding.native(one)
    try:
        decoding.state_of(model, len(ids), given)
    except ConfigError as error:
        pytest.skip(f"it cannot decode: {error}")
    if "memories" in given and decodes_behind(model):
        pytest.skip("memories are kept from its state, as it says")
    whole = decoding.features(model(ids, **given))
    for chunked in (decoding.in_chunks, decoding.in_ragged_chunks):
        torch.testing.assert_close(chunked(model, ids, given), whole, rtol=0, atol=1e-9)
    for side in ("right", "left"):
        together, alone = decoding.padded(model, ids, given, side)
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("keywords", [*SIDES[:5], *(pytest.param(one, marks=pytest.mark.slow) for one in SIDES[5:])])
def test_an_encoder_and_a_decoder(keywords: dict[str, Any]) -> None:
    source, target = (torch.randint(0, 37, (2, length)) for length in (9, 7))
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    losses = []
    try:
        theirs = upstream.XTransformer(**keywords).double().eval()
        in_its_dtype(theirs)
        theirs(source, target, mask=mask)
    except Exception as error:  # it fails in many ways
        pytest.skip(f"upstream does not run it: {error}")
    try:
        theirs, mine = pair(lambda package: package.XTransformer(**keywords))
        mine(source, target, mask=mask)
    except (ConfigError, ShapeError) as error:
        if not any(reason in str(error) for reason in REFUSED):
            raise
        pytest.skip(f"refused: {error}")
    for model in (theirs, mine):
        losses.append(model(source, target, mask=mask))
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-6)
    compare_gradients(theirs, mine)


@pytest.mark.parametrize("one", [*FEW[:3], *(pytest.param(one, marks=pytest.mark.slow) for one in FEW)])
@torch.no_grad()
def test_compiling_and_copying(one: OptionSet) -> None:
    torch._dynamo.reset()
    model = ours_of(one)
    ids, given = ids_of(one), arguments(one, ids_of(one))
    expected = flat(model(ids, **given))
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    others.append(torch.compile(model, backend="aot_eager", fullgraph=True))  # type: ignore[arg-type]
    for other in others:
        torch.testing.assert_close(flat(other(ids, **given)), expected, rtol=0, atol=1e-9)
