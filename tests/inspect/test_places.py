import pytest
from torch import nn

import variform as vf
from tests.inspect.cases import MODELS, TOKENS
from variform.inspect.places import fold, place_tree


def test_places_are_the_paths_of_the_spec() -> None:
    model = vf.build(MODELS["seq2seq"]())
    places = {place.path: place for place in place_tree(model).walk()}
    assert list(places) == [path for path, _ in model.spec.walk()]
    layer = places["decoder.stacks.0.layers.2.sublayers.1.body"]
    assert layer.part is model.decoder.stacks[0].layers[2].sublayers[1].body
    assert places["encoder.embedding"].part is places["decoder.embedding"].part
    assert places["encoder.embedding"].shared == "tokens"


def test_equal_blocks_of_a_program_are_parts_of_their_own() -> None:
    model = vf.build(MODELS["program"]())
    places = {place.path: place.part for place in place_tree(model).walk()}
    assert len({id(part) for part in places.values()}) == len(places)
    assert places["lines.2.lines.3"] is list(list(model.lines)[2].lines)[3]


def test_places_of_a_copied_model_are_its_own() -> None:
    import copy
    import pickle

    model = vf.build(MODELS["shared"]())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        own = {id(part) for part in twin.modules()}
        assert all(id(place.part) in own for place in place_tree(twin).walk())


def test_folding_builds_equal_items_once() -> None:
    spec = vf.resolve(vf.models.gpt(**{**TOKENS, "depth": 5}, max_seq_len=64))
    folded = fold(spec)
    assert len({id(part) for part in vf.build(folded).stacks[0].layers}) == 1
    assert [path for path, _ in folded.walk()] == [path for path, _ in spec.walk()]
    odd = vf.resolve(vf.override(spec, ["stacks.0.layers.2.sublayers.1.body.hidden=7"]))
    assert len({id(part) for part in vf.build(fold(odd)).stacks[0].layers}) == 2


def test_folding_keeps_what_is_shared_already() -> None:
    spec = vf.resolve(MODELS["shared"]())
    names = [layer.name for layer in fold(spec)["stacks"][0]["layers"]]
    assert names == ["layer"] * 3


def test_ready_parts_and_wrappers() -> None:
    spec = vf.resolve(vf.models.gpt(**TOKENS, max_seq_len=64))
    stack = vf.build(spec["stacks"][0])
    model = vf.build(spec, ready={"stacks.0": stack})
    places = {place.path: place.part for place in place_tree(model).walk()}
    assert places["stacks.0"] is stack
    assert places["stacks.0.layers.2"] is stack.layers[2]

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.native = model

        @property
        def spec(self) -> vf.Spec:
            return self.native.spec

    assert place_tree(Wrapper()).part is model
    with pytest.raises(vf.ConfigError, match="carries no spec"):
        place_tree(nn.Linear(2, 2))
