"""The prebuilt blocks: the later README's table, and each block against plain torch with the same weights."""

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from variform.dialects.configaformers import prebuilt_blocks
from variform.dialects.configaformers.attention_offset_module import get_alibi
from variform.dialects.configaformers.model_builder import ConfigaFormer
from variform.dialects.configaformers.prebuilt_blocks import (
    attention_block,
    copygate_block,
    ffn_block,
    get_transformer_block,
    normformer_block,
    transformer_block,
)

B, L, D, H = 2, 7, 12, 3
TABLE = (Path(__file__).parent / "later_demo.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", [get_transformer_block, transformer_block])
def test_the_later_readme_prints_its_table(block: Callable[..., list[dict[str, Any]]]) -> None:
    blocks = [
        {"config": [{"type": "embedding", "output_dim": 768, "num_classes": 50257}], "repeat": 1},
        {"config": block(num_heads=12, dim=768), "repeat": 12},
        {"config": [{"type": "linear", "output_dim": 50257, "output_name": "logits"}], "repeat": 1},
    ]
    shapes = {"emb_ids": ["B", "L_in"], "attn_offset": ["B", 12, "L_in", "L_in"]}
    printed = io.StringIO()
    with torch.device("meta"), contextlib.redirect_stdout(printed):
        model = ConfigaFormer({"blocks": blocks}, shapes)
    assert printed.getvalue() == TABLE
    assert sum(p.numel() for p in model.parameters()) == 162_299_473


DEFAULTS = {
    ffn_block: "dim, input_name='x', output_name='x', ff_mult=4, drop_prob=0, inner_norm=False, init_final_bias=False",
    attention_block: "num_heads, input_name='x', output_name='x', use_attn_offset=True, offset_name='attn_offset', "
    "scale_heads=False, mix=True",
    transformer_block: "num_heads, dim, input_name='x', output_name='x', ff_mult=4, use_attn_offset=True, "
    "offset_name='attn_offset', drop_prob=0",
    get_transformer_block: "num_heads, dim, main_stream='x', ff_mult=4, use_attn_offset=True, "
    "offset_name='attn_offset', drop_prob=0",
    normformer_block: "num_heads, dim, input_name='x', output_name='x', ff_mult=4, use_attn_offset=True, "
    "offset_name='attn_offset', drop_prob=0, use_weighted_residual=True",
    copygate_block: "num_heads, dim, input_name='x', output_name='x', ff_mult_data=4, ff_mult_gate=1, "
    "use_attn_offset=True, offset_name='attn_offset', drop_prob=0",
}


@pytest.mark.parametrize("block", DEFAULTS)
def test_signatures_and_defaults(block: Callable[..., Any]) -> None:
    given = inspect.signature(block).parameters.values()
    text = ", ".join(p.name + ("" if p.default is p.empty else f"={p.default!r}") for p in given)
    assert text == DEFAULTS[block]


class Plain:
    """What the blocks are made of, in plain torch; takes its weights in the order in which the block has them."""

    def __init__(self, weights: Iterator[Tensor], offset: Tensor | None) -> None:
        self.weights = weights
        self.offset = offset

    def linear(self, x: Tensor) -> Tensor:
        return x @ next(self.weights).T + next(self.weights)

    def norm(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * next(self.weights) + next(self.weights)

    def ffn(self, x: Tensor, inner_norm: bool = False) -> Tensor:
        y = F.gelu(self.linear(x))
        return self.linear(self.norm(y) if inner_norm else y)

    def attention(self, x: Tensor, scale_heads: bool = False) -> Tensor:
        q, k, v = (self.linear(x).unflatten(-1, (H, -1)).transpose(1, 2) for _ in range(3))
        scores = q @ k.transpose(-1, -2) / (D // H) ** 0.5
        if self.offset is not None:
            scores = scores + self.offset[:, :, : x.shape[1], : x.shape[1]]
        y = scores.softmax(-1) @ v
        if scale_heads:
            y = y * next(self.weights).view(1, H, 1, 1)
        return self.linear(y.transpose(1, 2).flatten(2))

    def transformer(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.ffn(self.norm(x))

    def normformer(self, x: Tensor, weighted: bool = True) -> Tensor:
        x = x + self.norm(self.attention(self.norm(x), scale_heads=True))
        y = self.ffn(self.norm(x), inner_norm=True)
        return (next(self.weights) * x if weighted else x) + y

    def copygate(self, x: Tensor) -> Tensor:
        a = self.norm(x + self.attention(x))
        data = self.norm(self.ffn(a))
        gate = torch.sigmoid(self.ffn(a))
        return gate * data + (1 - gate) * x


def run_both(block: list[dict[str, Any]], plain: Callable[[Plain, Tensor], Tensor], offset: bool = True, **more: Any):
    shapes = {"x": ["B", "L", D], **({"attn_offset": [1, H, "L", "L"]} if offset else {})}
    shapes |= {name: list(value.shape) for name, value in more.items()}
    model = ConfigaFormer({"blocks": [{"config": block, "repeat": 1}]}, shapes, verbose=False).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(B, L, D, dtype=torch.float64, requires_grad=True)
    alibi = get_alibi(H, max_length=L + 4).double()
    outputs = model({"x": x, **({"attn_offset": alibi} if offset else {}), **more})
    weights = list(model.parameters())
    left = iter(weights)
    wanted = plain(Plain(left, alibi if offset else None), x)
    assert next(left, None) is None, "the block has more weights"
    got = outputs["x"]
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    pairs = (torch.autograd.grad(y.square().sum(), [x, *weights]) for y in (got, wanted))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    return model


ONE = torch.ones(1, dtype=torch.float64)


def test_transformer_block() -> None:
    run_both(transformer_block(H, D), Plain.transformer)
    run_both(get_transformer_block(H, D, use_attn_offset=False), Plain.transformer, offset=False)


def test_normformer_block() -> None:
    run_both(normformer_block(H, D), Plain.normformer)
    run_both(normformer_block(H, D, use_weighted_residual=False), lambda p, x: p.normformer(x, weighted=False))


def test_copygate_block() -> None:
    run_both(copygate_block(H, D), Plain.copygate, one=ONE)
    run_both(copygate_block(H, D, ff_mult_data=2, ff_mult_gate=3), Plain.copygate, one=ONE)


def test_attention_and_feedforward_blocks() -> None:
    run_both(attention_block(H, scale_heads=True), lambda p, x: p.attention(x, scale_heads=True))
    run_both(ffn_block(D, ff_mult=3, inner_norm=True), lambda p, x: p.ffn(x, inner_norm=True), offset=False)
    without = attention_block(H, mix=False)
    assert [module["type"] for module in without[-2:]] == ["mha_sum", "merge_heads"]


def test_the_gate_starts_mostly_closed() -> None:
    shapes = {"x": ["B", "L", D], "one": [1]}
    block = copygate_block(H, D, use_attn_offset=False)
    model = ConfigaFormer({"blocks": [{"config": block, "repeat": 1}]}, shapes, verbose=False)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias") and bool((p == -3).all())]
    assert [bias.shape for bias in biases] == [(D,)]
    x = torch.randn(B, L, D)
    y = model({"x": x, "one": torch.ones(1)})["x"]
    assert (y - x).abs().mean() < 0.3 * x.abs().mean()


def test_names_and_dropout_are_handed_on() -> None:
    kinds = [module["type"] for module in ffn_block(D, drop_prob=0.5, inner_norm=True)]
    assert kinds == ["linear", "activation", "dropout", "norm", "linear"]
    for make in (transformer_block, normformer_block, copygate_block):
        block = make(H, D, input_name="a1", output_name="b1", offset_name="mine", drop_prob=0.25)
        assert [m["prob"] for m in block if m["type"] == "dropout"] == [0.25] * (2 if make is copygate_block else 1)
        shapes = {"a1": ["B", "L", D], "mine": [1, H, "L", "L"], **({"one": [1]} if make is copygate_block else {})}
        config = {"blocks": [{"config": block, "repeat": 1}]}
        model = ConfigaFormer(config, shapes, verbose=False, output_streams=["b1"]).eval()
        inputs = {"a1": torch.randn(B, L, D), "mine": get_alibi(H, L), "one": torch.ones(1)}
        given = {name: value for name, value in inputs.items() if name in shapes}
        assert torch.equal(model(given)["b1"], model(given)["b1"])
        assert not torch.equal(model.train()(given)["b1"], model(given)["b1"])


def test_the_initial_bias_may_be_zero() -> None:
    assert ffn_block(D, init_final_bias=0)[-1]["init_bias"] == 0
    assert "init_bias" not in ffn_block(D)[-1]


def test_blocks_take_the_names_of_sizes() -> None:
    blocks = [{"config": prebuilt_blocks.transformer_block("h", "d", ff_mult="m", use_attn_offset=False), "repeat": 1}]
    shapes = {"x": ["B", "L", D]}
    sizes = {"d": D, "h": H, "m": 2}
    named = ConfigaFormer({"blocks": blocks, "sizes": sizes}, shapes, verbose=False)
    plain = [{"config": transformer_block(H, D, ff_mult=2, use_attn_offset=False), "repeat": 1}]
    assert str(named.table) == str(ConfigaFormer({"blocks": plain}, shapes, verbose=False).table)
