"""Attentions of the library inside BERT, GPT-2 and Llama models: equal where the function is, else refused."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.interop.transformers import replace_attention
from variform.ops.masks import Causal, Window

transformers = pytest.importorskip("transformers")
NAMES = ("bert", "gpt2", "llama")
FIRST = {"bert": "encoder.layer.0.*", "gpt2": "transformer.h.0.*", "llama": "model.layers.0.*"}


def model(name: str, implementation: str = "sdpa") -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "attn_implementation": implementation, "pad_token_id": 0}
    hidden = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    if name == "bert":
        config = transformers.BertConfig(**hidden, max_position_embeddings=64, **sizes)
        return transformers.BertModel(config).eval()
    if name == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ends, **sizes)
        ).eval()
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**hidden, num_key_value_heads=2, max_position_embeddings=64, **ends, **sizes)
    ).eval()


def inputs(padding: str = "") -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    valid = torch.ones(2, 12, dtype=torch.long)
    if padding == "left":
        valid[0, :4] = 0
    if padding == "right":
        valid[1, 8:] = 0
    return ids, valid


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["", "left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_softmax_attention_changes_nothing(name: str, padding: str, implementation: str) -> None:
    before, (ids, valid) = model(name, implementation), inputs(padding)
    after = copy.deepcopy(before)
    report = replace_attention(after)
    assert len(report.replaced) == 2
    assert not report.left
    assert after.state_dict().keys() == before.state_dict().keys()
    real = valid.bool()
    wanted, got = (m(ids, attention_mask=valid)[0][real] for m in (before, after))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    grads = []
    for one in (before, after):
        one(ids, attention_mask=valid)[0][real].square().sum().backward()
        grads.append({n: p.grad for n, p in one.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for key, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][key], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_with_the_models_cache_is_the_same(name: str) -> None:
    before, (ids, valid) = model(name), inputs("left")
    after = copy.deepcopy(before)
    replace_attention(after)
    options = {"attention_mask": valid, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(after.generate(ids, **options), before.generate(ids, **options))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_window_equals_a_masked_model(name: str) -> None:
    before, (ids, _) = model(name), inputs()
    after, masked = copy.deepcopy(before), copy.deepcopy(before)
    replace_attention(after, with_={"part": "attention/local", "window": 4})
    replace_attention(masked, with_=Window(3) & Causal())
    torch.testing.assert_close(after(ids)[0], masked(ids)[0], rtol=0, atol=1e-5)
    assert not torch.allclose(after(ids)[0], before(ids)[0], atol=1e-3)
    cached = after.generate(ids, max_new_tokens=8, do_sample=False)
    uncached = after.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("name", NAMES)
def test_some_layers_alone(name: str) -> None:
    one, (ids, valid) = model(name), inputs("right")
    whole = one(ids, attention_mask=valid)[0]
    report = replace_attention(one, where=FIRST[name], with_="linear")
    assert [line.after for line in report.replaced] == ["linear"]
    assert len(report.left) == 1
    assert "left as they are" in str(report)
    mixed = one(ids, attention_mask=valid)[0]
    assert mixed.isfinite().all()
    assert not torch.allclose(mixed, whole, atol=1e-4)


def test_layers_are_chosen_by_a_function() -> None:
    one = model("llama")
    report = replace_attention(one, where=lambda path, module: module.layer_idx == 1)
    assert [line.path for line in report.replaced] == ["model.layers.1.self_attn"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_causality_is_kept_by_attentions_without_masks(name: str) -> None:
    one, (ids, _) = model(name), inputs()
    replace_attention(one, with_="linear")
    changed = ids.clone()
    changed[:, 7:] = 3
    torch.testing.assert_close(one(changed)[0][:, :7], one(ids)[0][:, :7], rtol=0, atol=1e-6)


def test_padding_is_kept_by_attentions_without_masks() -> None:
    one, (ids, valid) = model("bert"), inputs("right")
    replace_attention(one, with_="linear")
    changed = ids.clone()
    changed[1, 8:] = 3
    first, second = (one(x, attention_mask=valid)[0][valid.bool()] for x in (ids, changed))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_a_cache_that_cannot_be_read_is_refused() -> None:
    one, (ids, _) = model("gpt2"), inputs()
    replace_attention(one, with_="linear")
    with pytest.raises(vf.ShapeError, match="use_cache=False"):
        one.generate(ids, max_new_tokens=3)
    assert one.generate(ids, max_new_tokens=3, use_cache=False).shape == (2, 15)


def test_a_mask_that_cannot_be_honoured_is_refused() -> None:
    one, (ids, _) = model("bert"), inputs()
    replace_attention(one, with_="linear")
    mask = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    with pytest.raises(vf.ShapeError, match="cannot honour an attention mask"):
        one(ids, attention_mask=mask)


def test_attention_maps_are_refused() -> None:
    one, (ids, _) = model("bert"), inputs()
    replace_attention(one)
    with pytest.raises((vf.ShapeError, ValueError), match="output_attentions"):
        one(ids, output_attentions=True)


def test_dropout_is_the_models() -> None:
    one, (ids, _) = model("bert"), inputs()
    replace_attention(one)
    assert one.encoder.layer[0].attention.self.variform_heads.attention.dropout == pytest.approx(0.1)
    one.train()
    assert not torch.equal(one(ids)[0], one(ids)[0])


def test_new_parameters_are_trained_and_saved() -> None:
    one, (ids, _) = model("bert"), inputs()
    memory = {"part": "attention/softmax", "memory": {"part": "memory/learned", "count": 3}}
    report = replace_attention(one, where="encoder.layer.1.*", with_=memory)
    assert report.replaced[0].new == 2 * 3 * 32
    one(ids)[0].square().sum().backward()
    new = {name: p for name, p in one.named_parameters() if "variform_heads" in name}
    assert new
    assert all(p.grad is not None and bool(p.grad.any()) for p in new.values())
    stored = io.BytesIO()
    torch.save(one.state_dict(), stored)
    assert set(new) <= set(one.state_dict())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {"where": "encoder.layers.*"}, "no attention of the model fits"),
        ("bert", {"with_": "sofmax"}, "softmax"),
        ("bert", {"with_": {"part": "feedforward/mlp"}}, "no attention over heads"),
        ("gpt2", {"with_": {"part": "attention/local", "windw": 3}}, "window"),
    ],
)
def test_mistakes(name: str, options: dict[str, Any], message: str) -> None:
    one = model(name)
    before = one.config._attn_implementation
    with pytest.raises(vf.ConfigError, match=message):
        replace_attention(one, **options)
    assert one.config._attn_implementation == before


def test_a_model_without_attention_is_told() -> None:
    with pytest.raises(vf.ConfigError, match="the model has no attention"):
        replace_attention(torch.nn.Linear(2, 2))
