"""Parts constructed directly, and what a class says about its fields."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import Field

import variform as vf
from variform.core.fields import field_map, fields_of
from variform.core.part import Can
from variform.parts.feedforward.mlp import MLP
from variform.parts.kinds import FeedForward, Layer, Mixer, Norm
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.norms import LayerNorm
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


def test_a_direct_call_with_everything_given_works() -> None:
    part = Sublayer(body=MLP(dim=8, init_std=None, writes=None), norm=LayerNorm(dim=8))
    assert part.norm is not None
    with pytest.raises(vf.ConfigError, match="carries no spec"):
        _ = part.spec


MISUSE: dict[str, tuple[Callable[[], Any], str]] = {
    "INHERIT left open": (lambda: LayerNorm(), "must be given: dim"),
    "several left open": (lambda: MLP(), "must be given: dim, init_std, writes"),
    "a slot default left open": (lambda: MultiHead(8, 2, init_std=None, writes=None), "must be given: attention"),
    "a fallback left open": (lambda: LayerStack([], dim=None, heads=None), "must be given: causal"),
    "an explicit INHERIT": (lambda: LayerNorm(dim=vf.INHERIT), "must be given: dim"),
    "an unknown keyword": (lambda: LayerNorm(dim=8, esp=1.0), "unexpected keyword argument 'esp'"),
    "too many values": (lambda: LayerNorm(8, 1e-5, True, True, 3), "too many positional"),
    "a missing required field": (lambda: Sublayer(), "missing a required argument: 'body'"),
}


@pytest.mark.parametrize(("action", "words"), MISUSE.values(), ids=MISUSE)
def test_misused_constructors_are_config_errors(action: Callable[[], Any], words: str) -> None:
    with pytest.raises(vf.ConfigError, match=words):
        action()


def test_abilities_combine() -> None:
    assert (Can(causal=False) & Can(decode=False)) == Can(causal=False, decode=False)
    assert Can() & Can() == Can()


def test_fields_tell_type_default_doc_and_slot() -> None:
    class Made(FeedForward):
        """Made.

        Args:
            dim: features,
                on two lines.
            rate: a share.
            body: one part.
            layers: some parts.
        """

        def __init__(
            self,
            body: Mixer | Layer,
            layers: list[Layer],
            norm: Norm | None = None,
            dim: int = vf.INHERIT,
            rate: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        ) -> None:
            super().__init__()

    fields = field_map(Made)
    assert list(fields) == ["body", "layers", "norm", "dim", "rate"]
    assert fields["dim"].doc == "features, on two lines."
    assert (fields["dim"].inherits, fields["dim"].required, fields["dim"].is_slot) == (True, False, False)
    assert (fields["body"].required, fields["body"].kind_names()) == (True, ("mixer", "layer"))
    assert (fields["layers"].many, fields["norm"].optional) == (True, True)
    texts = {name: f.type_text() for name, f in fields.items()}
    assert texts == {
        "body": "mixer | layer",
        "layers": "list of layer",
        "norm": "norm | None",
        "dim": "int",
        "rate": "float (>= 0, < 1)",
    }


def test_a_part_without_a_constructor_has_no_fields() -> None:
    class Bare(Norm):
        def forward(self, x: Any, condition: Any = None) -> Any:
            return x

    assert fields_of(Bare) == ()
    assert isinstance(vf.build(Bare.spec()), Bare)
    assert isinstance(Bare(), Bare)


def test_a_part_may_not_hide_its_fields() -> None:
    class Hiding(Norm):
        def __init__(self, **options: Any) -> None:
            super().__init__()

        def forward(self, x: Any, condition: Any = None) -> Any:
            return x

    with pytest.raises(TypeError, match="explicit"):
        Hiding.spec(eps=1)


@pytest.mark.parametrize("part", vf.parts().values(), ids=["/".join(key) for key in vf.parts()])
def test_every_part_keeps_the_house_rules(part: type[vf.Part]) -> None:
    assert len(fields_of(part)) <= 14, "a feature that needs three fields is a part of its own"
    assert part.__doc__, "what it is, the formula, shapes, arguments"
    bases = [base for base in part.__mro__ if issubclass(base, vf.Part) and base.name]
    assert bases == [part], "parts are final: none derives from another"
