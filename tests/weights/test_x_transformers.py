"""Loading and storing x-transformers' layout; that the functions are equal is tested in tests/parity."""

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.core.spec import Spec
from variform.dialects.x_transformers import XTransformer
from variform.errors import ConfigError
from variform.parts.embedding.tokens import TokenEmbedding
from variform.weights.x_transformers import load_x_transformers, tiled_heads, to_x_transformers

SIDE = {"num_tokens": 11, "max_seq_len": 9, "depth": 1, "heads": 2}


def gpt(**changes: object) -> Spec:
    sizes: dict[str, object] = {"vocab_size": 11, "dim": 16, "depth": 2, "heads": 4, "max_seq_len": 9}
    return vf.models.gpt(**{**sizes, **changes})


def checkpoint() -> dict[str, Tensor]:
    return to_x_transformers(vf.build(gpt(kv_heads=2)))


def test_names_and_conventions() -> None:
    model = vf.build(gpt(kv_heads=2))
    found = to_x_transformers(model)
    assert len(found) == len(list(model.parameters()))
    assert torch.equal(found["attn_layers.layers.0.0.0.gamma"], torch.zeros(16))
    assert found["attn_layers.layers.2.1.to_k.weight"].shape == (8, 16)
    # Four query heads on two key heads: ours are (0, 0, 1, 1), the other's (0, 1, 0, 1).
    q = model.stacks[0].layers[0].sublayers[0].body.q.weight.view(4, 4, 16)
    torch.testing.assert_close(found["attn_layers.layers.0.1.to_q.weight"].view(4, 4, 16), q[[0, 2, 1, 3]])


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 3), (6, 2), (5, 1)])
def test_heads_keep_their_key_head(heads: int, kv_heads: int) -> None:
    order = tiled_heads(heads, kv_heads)
    assert sorted(order) == list(range(heads))
    assert [theirs % kv_heads for theirs in order] == [ours // (heads // kv_heads) for ours in range(heads)]


def test_gains_without_an_offset() -> None:
    model, other = vf.build(gpt()), vf.build(gpt())
    for param in model.parameters():
        param.data += 0.1
    found = to_x_transformers(model, unit_offset=False)
    assert torch.allclose(found["attn_layers.layers.0.0.0.gamma"], torch.full((16,), 1.1))
    load_x_transformers(other, found, unit_offset=False)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_prefix() -> None:
    model = vf.build(gpt(kv_heads=2))
    tensors = {f"net.{key}": tensor for key, tensor in checkpoint().items()}
    load_x_transformers(model, tensors, prefix="net.")
    assert set(to_x_transformers(model, prefix="net.")) == set(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("to_logits.weight"), "to_logits.weight: missing in the checkpoint"),
        (lambda t: t.update({"to_logit.weight": torch.zeros(1)}), "did you mean 'to_logits.weight'"),
        (
            lambda t: t.update({"to_logits.weight": torch.zeros(11, 8)}),
            r"has shape \[11, 8\], the model needs \[11, 16\]",
        ),
        (lambda t: t.update({"attn_layers.rotary_pos_emb.inv_freq": torch.ones(2)}), "nothing in the model takes this"),
    ],
)
def test_what_does_not_fit_changes_nothing(change: object, message: str) -> None:
    model = vf.build(gpt(kv_heads=2))
    before = [param.clone() for param in model.parameters()]
    tensors = {key: tensor + 1 for key, tensor in checkpoint().items()}
    change(tensors)  # type: ignore[operator]
    with pytest.raises(vf.ConfigError, match=message):
        load_x_transformers(model, tensors)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_all_problems_come_at_once() -> None:
    tensors = checkpoint()
    del tensors["to_logits.weight"], tensors["token_emb.emb.weight"]
    with pytest.raises(vf.ConfigError, match="2 problems"):
        load_x_transformers(vf.build(gpt(kv_heads=2)), tensors)


def test_other_rotary_angles_are_noticed() -> None:
    def spec(base: float) -> Spec:
        rotation = {"part": "rotary", "base": base}
        body = "stacks.0.layers.0.sublayers.0.body"
        return vf.override(gpt(depth=1), {f"{body}.rotation": rotation})

    tensors = to_x_transformers(vf.build(spec(10000.0)))
    assert tensors["attn_layers.rotary_pos_emb.inv_freq"].shape == (2,)
    load_x_transformers(vf.build(spec(10000.0)), tensors)
    with pytest.raises(vf.ConfigError, match="other rotary angles"):
        load_x_transformers(vf.build(spec(500.0)), tensors)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (gpt(bias=True), "no counterpart"),
        (vf.models.llama(vocab_size=11, dim=16, depth=1, heads=2, max_seq_len=9), "no counterpart"),
        (vf.models.bert(vocab_size=11, dim=16, depth=1, heads=2, max_seq_len=9), "no counterpart"),
        (gpt().replace(embedding=TokenEmbedding.spec(scale=True)), "no counterpart of this embedding 'tokens'"),
    ],
    ids=["offsets", "llama", "bert", "scaled-embedding"],
)
def test_structures_without_a_counterpart(spec: Spec, message: str) -> None:
    with pytest.raises(vf.ConfigError, match=message):
        to_x_transformers(vf.build(spec))


def test_tied_tensors_must_agree() -> None:
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SIDE.items()}
    model = XTransformer(dim=16, tie_token_emb=True, **sides)
    tensors = to_x_transformers(model)
    load_x_transformers(model, tensors)
    tensors["decoder.net.token_emb.emb.weight"] = tensors["decoder.net.token_emb.emb.weight"] + 1
    with pytest.raises(vf.ConfigError, match="another tensor of the same, shared parameter"):
        load_x_transformers(model, tensors)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "_orig_mod.module.net."])
@pytest.mark.parametrize("given", ["", "model."])
def test_keys_that_all_begin_otherwise_are_refused_with_the_prefix(prefix: str, given: str) -> None:
    tensors = {f"{prefix}{given}{key}": tensor for key, tensor in checkpoint().items()}
    model = vf.build(gpt(kv_heads=2))
    with pytest.raises(ConfigError) as error:
        load_x_transformers(model, tensors, prefix=given)
    assert error.value.problems[0].hint == f"prefix={prefix + given!r}"
    load_x_transformers(model, tensors, prefix=prefix + given)


def test_what_holds_a_state_dict_is_none() -> None:
    with pytest.raises(ConfigError, match="model: a state dict holds tensors, and this is a dict; give the state dict"):
        load_x_transformers(vf.build(gpt(kv_heads=2)), {"model": checkpoint(), "step": 3})  # type: ignore[dict-item]
