import pytest
import torch

import variform as vf
from variform.core.dims import Dim, parse_shape
from variform.errors import ShapeError
from variform.parts.op.tokenwise import ActivationOp, EmbeddingOp, LinearOp, MergeOp


def merged(how: str, a: list, b: list) -> tuple:
    return MergeOp.shapes({"how": how}, (parse_shape(a), parse_shape(b)))[0]


def test_shapes_of_merged_streams() -> None:
    batch, length = Dim.symbol("B"), Dim.symbol("L")
    assert merged("add", ["B", "L", 4], ["B", "L", 4]) == (batch, length, 4)
    assert merged("subtract", [1], ["B", "L", 4]) == (batch, length, 4)
    assert merged("multiply", ["B", 1, 4], [1, "L", 4]) == (batch, length, 4)
    assert merged("cat", ["B", "L", 4], ["B", "L", "D"]) == (batch, length, Dim.symbol("D") + 4)
    for how, a, b in (("add", ["B", 4], ["B", 5]), ("add", ["L"], ["C"]), ("cat", ["B", "L", 4], ["B", "C", 4])):
        with pytest.raises(ShapeError):
            merged(how, a, b)


def test_a_single_feature_broadcasts_as_it_runs() -> None:
    a, b = torch.randn(1), torch.randn(2, 3, 4)
    torch.testing.assert_close(MergeOp(how="subtract")(a, b), a - b)


def test_reset_fills_the_bias_again() -> None:
    op = vf.build(LinearOp.spec(bias_init=0.5), dim=4)
    torch.nn.init.zeros_(op.project.bias)
    op.reset_parameters()
    assert (op.project.bias == 0.5).all()
    with pytest.raises(vf.ConfigError, match="no bias to initialise"):
        vf.build(LinearOp.spec(bias=False, bias_init=0.5), dim=4)


def test_pieces_must_be_equal() -> None:
    with pytest.raises(vf.ConfigError, match="2 divides, not 5"):
        vf.build(ActivationOp.spec(functions=["gelu", "none"]), dim=5)


def test_ids_are_integers_in_range() -> None:
    op = EmbeddingOp(classes=5, out=3)
    assert op(torch.zeros(2, 3, 4, dtype=torch.int32)).shape == (2, 3, 4, 3)
    with pytest.raises(ShapeError, match="integer ids"):
        op(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"\[0, 5\); these lie in \[-1, 2\]"):
        op(torch.tensor([-1, 2]))


def test_a_plain_activation_needs_no_number_of_features() -> None:
    scores = parse_shape(["B", 2, "L", "L"])
    plain = vf.resolve(ActivationOp.spec(functions=["relu"])).args
    assert ActivationOp.shapes(plain, (scores,)) == (scores,)
    with pytest.raises(vf.ConfigError, match="2 functions need a known number of features"):
        vf.resolve(ActivationOp.spec(functions=["relu", "none"]))
    with pytest.raises(vf.ConfigError, match="dim"):
        vf.resolve(ActivationOp.spec(functions=["relu"], norm={"part": "layer_norm"}))
    with pytest.raises(ShapeError, match="works on 4 features"):
        ActivationOp.shapes({**plain, "dim": 4}, (parse_shape(["B", 5]),))
