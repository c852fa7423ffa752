"""Padding may hold anything; and attentions that are made for other heads than they are given are refused early."""

from typing import Any

import pytest
import torch

import variform as vf
from variform.parts.kinds import Sides

MIXERS: dict[str, dict[str, Any]] = {
    "softmax": {"part": "mixer/multi_head"},
    "local": {"part": "mixer/multi_head", "attention": {"part": "local", "window": 3}},
    "linear": {"part": "mixer/multi_head", "attention": "linear", "rotation": "rotary"},
    "nystrom": {"part": "mixer/multi_head", "attention": {"part": "nystrom", "landmarks": 64}},
    "compositional": {"part": "mixer/compositional"},
    "mamba": {"part": "mixer/mamba"},
}


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", MIXERS)
def test_what_stands_at_padding_reaches_neither_tokens_nor_gradients(name: str, poison: float) -> None:
    torch.manual_seed(0)
    mixer = vf.build(MIXERS[name], dim=8, heads=2, causal=True, max_seq_len=16).double()
    x, valid = torch.randn(3, 9, 8, dtype=torch.float64), torch.rand(3, 9) < 0.6
    valid[2] = False
    poisoned = x.masked_fill(~valid[..., None], poison).requires_grad_()
    y, clean = mixer(poisoned, {"valid": valid}), mixer(x, {"valid": valid})
    torch.testing.assert_close(y[valid], clean[valid], rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(y[valid].sum(), [poisoned, *mixer.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("mixer", ["cross_attention", "cross_compositional"])
def test_what_stands_at_padding_of_a_context_reaches_nothing(mixer: str) -> None:
    torch.manual_seed(0)
    made = vf.build({"part": f"mixer/{mixer}"}, dim=8, heads=2).double()
    x, context = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, True, False, False, True]])
    poisoned = context.masked_fill(~mask[..., None], float("nan"))
    y = made(x, {"context": poisoned, "context_mask": mask})
    torch.testing.assert_close(y, made(x, {"context": context, "context_mask": mask}), rtol=0, atol=1e-12)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), list(made.parameters())))


def test_padding_of_a_model_of_features_may_hold_anything() -> None:
    torch.manual_seed(0)
    spec = vf.override(
        vf.models.bert(vocab_size=5, dim=8, depth=2, heads=2, max_seq_len=12),
        {"embedding": {"part": "embedding/features", "norm": "layer_norm"}, "head": None},
    )
    model = vf.build(spec).double()
    x, valid = torch.randn(2, 7, 8, dtype=torch.float64), torch.ones(2, 7, dtype=torch.bool)
    valid[1, 4:] = False
    y = model(x.masked_fill(~valid[..., None], float("nan")), valid=valid)
    torch.testing.assert_close(y[valid], model(x, valid=valid)[valid], rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(y[valid].sum(), list(model.parameters()), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["linear", "cosformer", "linformer", "nystrom", "favor", "orthoformer", "lambda"])
def test_queries_at_padding_may_hold_anything(name: str) -> None:
    torch.manual_seed(0)
    attention = vf.build({"part": f"attention/{name}"}, max_seq_len=16, dim_head=4, heads=2).double()
    valid = torch.tensor([[True, False, True, True, False, True]])
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64) for _ in range(3))
    tensors = [t.masked_fill(~valid[:, None, :, None], float("nan")).requires_grad_() for t in (q, k, v)]
    y = attention(*tensors, Sides(q_valid=valid, k_valid=valid))
    for gradient in torch.autograd.grad(y[:, :, valid[0]].sum(), tensors):
        assert gradient[:, :, valid[0]].isfinite().all()


@pytest.mark.parametrize(
    ("attention", "path"),
    [
        ({"part": "retention", "dim_head": 3}, "attention.dim_head: the mixer around it has 6"),
        ({"part": "retention", "heads": 2}, "attention.heads: the mixer around it has 4"),
        ({"part": "favor", "dim_head": 5}, "attention.dim_head: the mixer around it has 6"),
        ({"part": "delta_rule", "heads": 1}, "attention.heads: the mixer around it has 4"),
    ],
)
def test_an_attention_made_for_other_heads_is_refused_when_checked(attention: dict[str, Any], path: str) -> None:
    with pytest.raises(vf.ConfigError) as error:
        vf.build(vf.models.gpt(vocab_size=5, dim=24, depth=1, heads=4, max_seq_len=8, attention=attention))
    assert path in str(error.value)


@pytest.mark.parametrize("attention", ["gated_linear", "delta_rule", "gated_delta_rule", "retention"])
def test_compositional_attention_refuses_what_is_made_for_values_of_another_size(attention: str) -> None:
    with pytest.raises(vf.ConfigError, match="made for values of 4 features, and a value has 8 here"):
        vf.build({"part": "mixer/compositional", "attention": attention}, dim=8, heads=2)
    fits = {"part": "mixer/compositional", "dim_value": 4, "attention": attention}
    x = torch.randn(1, 5, 8)
    assert vf.build(fits, dim=8, heads=2)(x, {}).shape == x.shape
    if attention == "retention":
        free = {"part": "mixer/compositional", "attention": {"part": attention, "norm": None}}
        assert vf.build(free, dim=8, heads=2)(x, {}).shape == x.shape
