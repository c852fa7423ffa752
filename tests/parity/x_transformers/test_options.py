"""Every option set against the x-transformers that is on the path: same keywords, same weights, same function.

`test_releases.py` runs this file against the other releases, each in a process of its own.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform.dialects.x_transformers as ours
from tests.parity.x_transformers.families import all_sets
from tests.parity.x_transformers.harness import VERSION, agree, in_its_dtype, pair, upstream
from tests.parity.x_transformers.option_set import VERSIONS, OptionSet
from tests.parity.x_transformers.runs import arguments, builder, flat, ids_of, plain_builder
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

assert os.environ.get("X_TRANSFORMERS", VERSIONS[-1]) == VERSION, "another release than the one asked for is compared"
HERE = [one for one in all_sets() if VERSION in one.versions]


@pytest.mark.parametrize("one", HERE, ids=lambda one: one.name)
def test_values_gradients_and_weights(one: OptionSet) -> None:
    if one.incompatible:
        pytest.skip(one.incompatible)
    theirs, mine = pair(builder(one))
    if one.wrong or one.random:
        stored = to_x_transformers(mine)
        assert set(stored) == set(theirs.state_dict())
        theirs.load_state_dict(stored)
        return
    ids = ids_of(one)
    given = arguments(one, ids)
    agree(theirs, mine, lambda model: flat(model(ids, **given)))


@pytest.mark.parametrize("one", [one for one in HERE if not one.random], ids=lambda one: one.name)
@torch.no_grad()
def test_the_option_makes_a_difference(one: OptionSet) -> None:
    package = ours if one.wrong or one.incompatible else upstream
    chosen, plain = perturbed(builder(one)(package)), perturbed(plain_builder(one)(package))
    take_over(chosen, plain)
    ids = ids_of(one)
    given = arguments(one, ids)
    kept = {name: x for name, x in given.items() if name in ("context", "context_mask")}
    found, default = flat(chosen(ids, **given)), flat(plain(ids, **kept))
    if found.shape != default.shape:  # another answer altogether
        assert not one.same, "the option is said to change nothing"
        return
    distance = float((found - default).abs().max())
    if one.same:
        assert distance < 1e-5, "the option is said to change nothing"
    else:
        assert distance > 1e-3, "the option changes nothing"


def perturbed(model: nn.Module) -> nn.Module:
    """A model in float64 whose zeros and ones count."""
    torch.manual_seed(0)
    model = model.double().eval()
    in_its_dtype(model)
    for param in model.parameters():
        param.data += 0.1 * torch.randn_like(param)
        param.data -= 9.0 * (param.data > 5.0)  # gates that begin wide open would hide what they do
    return model


def take_over(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the weights of `source` under the names and shapes that both have."""
    own: dict[str, Tensor] = dict(target.state_dict())
    for name, tensor in source.state_dict().items():
        if name in own and own[name].shape == tensor.shape:
            own[name].copy_(tensor)


def test_a_checkpoint_with_another_key_is_refused_by_name() -> None:
    theirs: Any = builder(HERE[0])(upstream)
    mine = builder(HERE[0])(ours)
    tensors = theirs.state_dict()
    tensors["attn_layers.layers.0.1.to_q.wieght"] = tensors.pop("attn_layers.layers.0.1.to_q.weight")
    with pytest.raises(ValueError, match=r"to_q\.weight: missing.*\n.*wieght.*did you mean"):
        load_x_transformers(mine, tensors)
