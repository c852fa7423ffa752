from typing import Any

import pytest
import torch
from torch import nn

from variform.dialects.x_transformers import Decoder, FeedForward, layer_schedule
from variform.dialects.x_transformers.errors import KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


def test_a_feedforward_alone() -> None:
    part = FeedForward(8, dim_out=5, glu=True, glu_mult_bias=True, zero_init_output=True)
    x, factor = torch.randn(2, 3, 8), torch.randn(2, 3, 5)
    assert torch.equal(part(x), torch.zeros(2, 3, 5))
    load_x_transformers(part, {key: torch.randn_like(t) for key, t in to_x_transformers(part).items()})
    torch.testing.assert_close(part(x, factor), part(x) * factor)
    dropped = FeedForward(8, sublayer_dropout=0.5)
    assert (dropped.train()(x) == 0).any()
    assert not (dropped.eval()(x) == 0).any()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"glu_mult_bias": True}, "glu_mult_bias has no effect without glu"),
        ({"glu_up_softclamp_value": 3.0, "glu": True}, "no effect without glu_softclamp"),
        ({"glu": True, "glu_softclamp": True, "solu": True}, "inside of GELU or SiLU"),
        ({"glu": True, "glu_softclamp": True, "softclamp_value": 3.0}, "the bounds are"),
        ({"solu": True, "swish": True}, "one activation"),
        ({"custom_activation": nn.ReLU(), "relu_squared": True}, "one activation"),
        ({"custom_activation": 3}, "a module, or a spec"),
        ({"softclamp_value": -1.0}, "greater than 0"),
        ({"zero_init_output": True, "output_proj_depth": 2}, "zero or scaled"),
        ({"glue": True}, "glu"),
        ({"mult": 0}, "mult"),
        ({"sublayer_dropout": 1.5}, "sublayer_dropout: .*less than 1"),
        ({"sublayer_dropout": "a"}, "sublayer_dropout: int or float is needed"),
        ({"output_proj_depth": 0}, "output_proj_depth: at least 1"),
    ],
)
def test_what_does_not_fit(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        FeedForward(8, **keywords)
    prefixed = {f"ff_{name}": value for name, value in keywords.items()}
    with pytest.raises(KeywordError):
        Decoder(dim=8, depth=2, heads=2, **prefixed)


def test_a_stack_joins_what_a_feedforward_gives() -> None:
    with pytest.raises(KeywordError, match=r"ff_dim_out: .*8 features"):
        Decoder(dim=8, depth=2, heads=2, ff_dim_out=5)


def test_schedules_over_layers() -> None:
    assert layer_schedule(1, 3, 3, "linear") == (1.0, 2.0, 3.0)
    assert layer_schedule(1, 3, 3) == pytest.approx((1.0, 2.0, 3.0))
    assert layer_schedule(0, 1, 3, lambda start, end, t: t**2) == (0.0, 0.25, 1.0)
    widths = [
        s["sublayers"][1]["body"]["mult"]
        for s in Decoder(dim=8, depth=3, ff_mult=layer_schedule(1, 3, 3)).spec["layers"]
    ]
    assert widths == pytest.approx([1.0, 2.0, 3.0])
    for wrong in ({"depth": 1}, {"depth": 3, "schedule": "square"}):
        with pytest.raises(KeywordError):
            layer_schedule(1, 2, **wrong)


def test_a_default_may_be_written_out() -> None:
    assert Decoder(dim=16, depth=1, heads=2, ff_glu_gate_softclamp_value=4.0).depth == 1
    with pytest.raises(KeywordError, match="no effect without ff_glu"):
        Decoder(dim=16, depth=1, heads=2, ff_glu_gate_softclamp_value=5.0)
