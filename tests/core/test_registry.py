"""The registry: parts by kind and name, presets, and what may be registered."""

from collections.abc import Iterator
from typing import Any

import pytest

import variform as vf
from variform.core.registry import kinds, lookup, unregister
from variform.parts.kinds import Mixer, Norm
from variform.parts.norm.norms import LayerNorm

NAME = "made_for_test"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    unregister("norm", NAME)
    unregister("mixer", NAME)


def a_norm() -> type[Norm]:
    class Made(Norm):
        """Made."""

        def forward(self, x: Any, condition: Any = None) -> Any:
            return x

    return Made


def test_a_registered_part_is_found_by_name_and_by_kind() -> None:
    made = vf.register(NAME)(a_norm())
    assert lookup(NAME) is lookup(f"norm/{NAME}") is vf.parts("norm")["norm", NAME] is made
    assert made.name == NAME
    assert vf.from_dict({"part": NAME}) == made.spec()
    assert isinstance(vf.build({"part": "mlp", "dim": 4, "norm": NAME}).norm, made)


def test_a_taken_name_is_refused_unless_overridden() -> None:
    one = vf.register(NAME)(a_norm())

    class Other(Norm):
        def forward(self, x: Any, condition: Any = None) -> Any:
            return x

    with pytest.raises(vf.ConfigError, match=f"a norm named '{NAME}' is already registered"):
        vf.register(NAME)(Other)
    assert lookup(NAME) is one
    assert vf.register(NAME, override=True)(Other) is lookup(NAME) is Other


def test_the_same_class_may_come_again_from_a_rerun_cell() -> None:
    vf.register(NAME)(a_norm())
    again = vf.register(NAME)(a_norm())
    assert lookup(NAME) is again


def test_one_name_may_stand_in_two_kinds_and_is_then_ambiguous() -> None:
    @vf.register(NAME)
    class Mixing(Mixer):
        def forward(self, x: Any, streams: Any) -> Any:
            return x

    vf.register(NAME)(a_norm())
    with pytest.raises(vf.ConfigError, match=f"'mixer/{NAME}' or 'norm/{NAME}'"):
        lookup(NAME)
    assert lookup(NAME, ("mixer",)) is Mixing
    assert lookup(f"mixer/{NAME}") is Mixing


def test_only_complete_parts_of_a_kind_can_be_registered() -> None:
    class NoKind(vf.Part):
        pass

    class NoForward(Norm):
        pass

    for wrong, words in ((NoKind, "not a subclass of a kind"), (dict, "not a subclass"), (NoForward, "no forward")):
        with pytest.raises(vf.ConfigError, match=words):
            vf.register(NAME)(wrong)  # type: ignore[type-var]
    assert not [key for key in vf.parts() if key[1] == NAME]


def test_unknown_names_get_the_nearest_ones() -> None:
    for name, words in (
        ("layernorm", "did you mean 'layer_norm'"),
        ("norm/layernorm", "did you mean 'layer_norm'"),
        ("mixer/layer_norm", "'layer_norm' is registered as norm"),
    ):
        with pytest.raises(vf.ConfigError, match=words):
            lookup(name)
    with pytest.raises(vf.ConfigError, match="a norm does not fit here; the slot takes mixer"):
        lookup("norm/layer_norm", ("mixer",))
    with pytest.raises(vf.ConfigError, match="did you mean 'mixer'"):
        vf.parts("mixr")


def test_parts_are_listed_by_kind_and_name() -> None:
    every = list(vf.parts())
    assert every == sorted(every)
    assert set(vf.parts("norm").values()) <= set(vf.parts().values())
    assert {kind for kind, _ in every} <= set(kinds())
    assert all(part.kind == kind and part.name == name for (kind, name), part in vf.parts().items())


def test_the_listing_is_a_copy() -> None:
    vf.parts().clear()
    vf.presets().clear()
    assert lookup("layer_norm") is LayerNorm
    assert "gpt" in vf.presets()


def test_presets_check_their_arguments_all_at_once() -> None:
    with pytest.raises(vf.ConfigError) as error:
        vf.models.gpt(vocab_size="11", dim=16, depth=2, hedas=4, max_seq_len=8)
    assert {p.path for p in error.value.problems} == {"vocab_size", "hedas", "heads"}
    assert "did you mean 'heads'" in str(error.value)
    with pytest.raises(vf.ConfigError, match="too many positional"):
        vf.models.gpt(11)


@pytest.mark.parametrize("name", ["gpt", "bert", "seq2seq", "llama"])
def test_presets_refuse_impossible_sizes(name: str) -> None:
    sizes = {"vocab_size": 11, "dim": 16, "depth": 2, "heads": 4, "max_seq_len": 8}
    for field in sizes:
        with pytest.raises(vf.ConfigError) as error:
            vf.build(vf.presets()[name](**{**sizes, field: -1}))
        assert error.value.path.endswith(field)
