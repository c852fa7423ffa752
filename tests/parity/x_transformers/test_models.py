"""Wrappers against the installed x-transformers: language, vision, encoder-decoder, stacks alone."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.parity.x_transformers.harness import agree, compare_gradients, pair, unlike
from tests.parity.x_transformers.test_layers import BASE, tied, tokens, wrapped


@pytest.mark.parametrize(
    "options",
    [
        {"post_emb_norm": True},
        {"tie_embedding": True},
        pytest.param({"tie_embedding": True, "tie_embedding_scale": 0.5}, marks=unlike("no such keyword", TypeError)),
        {"logits_dim": 7},
        {"use_abs_pos_emb": False},
        {"emb_dropout": 0.3},
        {"return_only_embed": True},
        {"num_memory_tokens": 3},
    ],
    ids=lambda options: "-".join(options),
)
def test_wrapper_options(options: dict[str, Any]) -> None:
    def build(package: Any) -> nn.Module:
        both = {**tied(package), **options} if "tie_embedding" in options else options
        model: nn.Module = wrapped("Decoder", {}, **both)(package)
        return model

    theirs, mine = pair(build)
    agree(theirs, mine, lambda model: model(tokens()))


def test_what_a_call_returns() -> None:
    theirs, mine = pair(wrapped("Encoder", {}))
    agree(theirs, mine, lambda model: model(tokens(), return_logits_and_embeddings=True)[1])
    expected, found = (model(tokens(), return_logits_and_embeddings=True)[0] for model in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert mine(tokens(), return_embeddings=True).shape == (2, 13, 24)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"rel_pos_bias": True}, {"alibi_pos_bias": True}])
@pytest.mark.parametrize("stack", ["Encoder", "Decoder"])
def test_features_in_front(stack: str, options: dict[str, Any]) -> None:
    front = torch.randn(2, 5, 24, dtype=torch.float64)
    theirs, mine = pair(wrapped(stack, options))
    agree(theirs, mine, lambda model: model(tokens(), prepend_embeds=front))


def test_features_in_front_with_masks() -> None:
    front = torch.randn(2, 5, 24, dtype=torch.float64)
    mask, front_mask = torch.ones(2, 13, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    mask[0, 8:], front_mask[1, 3:] = False, False
    theirs, mine = pair(wrapped("Encoder", {}))
    agree(theirs, mine, lambda model: model(tokens(), prepend_embeds=front, prepend_mask=front_mask, mask=mask))
    for masks in ({"mask": mask}, {"prepend_mask": front_mask}):
        expected, found = (model(tokens(), prepend_embeds=front, **masks) for model in (theirs, mine))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cross_attn_dim_context": 16},
        {"attn_kv_heads": 2},
        {"cross_attn_kv_heads": 1},
        {"attn_num_mem_kv": 2},
        {"cross_attn_num_mem_kv": 2},
        {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
        {"rotary_pos_emb": True, "macaron": True},
        {"only_cross": True},
        pytest.param({"only_attn": True}, marks=unlike("no such keyword")),
        {"custom_layers": ("a", "c", "f", "c", "f"), "depth": None},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_cross_attention(options: dict[str, Any]) -> None:
    context = torch.randn(2, 9, options.get("cross_attn_dim_context", 24), dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    theirs, mine = pair(wrapped("Decoder", {"cross_attend": True, **options}))
    agree(theirs, mine, lambda model: model(tokens(), context=context, context_mask=mask))


def test_cross_attention_with_a_mask_of_its_own_tokens() -> None:
    context = torch.randn(2, 9, 24, dtype=torch.float64)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, 4:] = False
    theirs, mine = pair(wrapped("Encoder", {"cross_attend": True}))
    agree(theirs, mine, lambda model: model(tokens(), context=context, mask=mask))


@pytest.mark.parametrize("name", ["Encoder", "Decoder", "CrossAttender"])
def test_stacks_alone(name: str) -> None:
    x, context = torch.randn(2, 7, 24, dtype=torch.float64), torch.randn(2, 5, 24, dtype=torch.float64)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    theirs, mine = pair(lambda package: getattr(package, name)(**BASE, use_rmsnorm=True))
    streams = {"context": context} if name == "CrossAttender" else {}
    agree(theirs, mine, lambda model: model(x, mask=mask, **streams))


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 7},
        {"num_classes": None},
        {"num_classes": 7, "post_emb_norm": True, "channels": 2},
        {"num_classes": 7, "num_register_tokens": 2},
    ],
    ids=["classes", "no-classes", "norm", "registers"],
)
def test_vision(options: dict[str, Any]) -> None:
    images = torch.randn(2, options.get("channels", 3), 24, 24, dtype=torch.float64)

    def build(package: Any) -> nn.Module:
        model: nn.Module = package.ViTransformerWrapper(
            image_size=24, patch_size=6, attn_layers=package.Encoder(**BASE), **options
        )
        return model

    theirs, mine = pair(build)
    agree(theirs, mine, lambda model: model(images))
    expected, found = (model(images, return_embeddings=True) for model in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def seq2seq(**options: Any) -> Any:
    sizes = {"num_tokens": 37, "depth": 2, "heads": 4, "max_seq_len": 20, "attn_dim_head": 8}
    both = {side + name: value for side in ("enc_", "dec_") for name, value in sizes.items()}
    return lambda package: package.XTransformer(dim=24, **{**both, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_token_emb": True},
        {"tie_token_emb": True, "dec_max_seq_len": 30},
        {"dec_rotary_pos_emb": True},
        {"enc_num_memory_tokens": 2},
        {"enc_rel_pos_bias": True, "dec_rel_pos_bias": True},
        {"enc_dynamic_pos_bias": True, "dec_dynamic_pos_bias": True},
        {"enc_polar_pos_emb": True, "dec_polar_pos_emb": True},
        {"enc_weight_tie_layers": True, "dec_weight_tie_layers": True},
    ],
    ids=["plain", "tied", "tied-lengths", "rotary", "memory", "t5-bias", "dynamic-bias", "polar", "tied-layers"],
)
@pytest.mark.parametrize("front", [0, 3])
def test_encoder_decoder(options: dict[str, Any], front: int) -> None:
    theirs, mine = pair(seq2seq(**options))
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, 6:] = False
    given: dict[str, Any] = {"mask": mask}
    if front:
        given["src_prepend_embeds"] = torch.randn(2, front, 24, dtype=torch.float64)
    expected, found = (model(tokens(), tokens(length=11), **given) for model in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    expected.backward()
    found.backward()
    compare_gradients(theirs, mine)


def test_autoregressive_loss() -> None:
    def build(package: Any) -> nn.Module:
        model: nn.Module = package.AutoregressiveWrapper(wrapped("Decoder", {})(package))
        return model

    theirs, mine = pair(build, prefix="net.")
    expected, found = (model(tokens(), lens=torch.tensor([13, 6])) for model in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    expected.backward()
    found.backward()
    compare_gradients(theirs, mine, "net.")


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}, {"rel_pos_bias": True}])
@pytest.mark.parametrize("stack", ["Encoder", "Decoder"])
def test_memory_tokens_with_padding_and_features_in_front(stack: str, options: dict[str, Any]) -> None:
    front = torch.randn(2, 5, 24, dtype=torch.float64)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, 7:] = False
    theirs, mine = pair(wrapped(stack, options, num_memory_tokens=3))
    agree(theirs, mine, lambda model: model(tokens(), mask=mask, prepend_embeds=front))


def test_generation_with_memory_tokens() -> None:
    def build(package: Any) -> nn.Module:
        model: nn.Module = package.AutoregressiveWrapper(wrapped("Decoder", {}, num_memory_tokens=3)(package))
        return model

    theirs, mine = pair(build, prefix="net.")
    expected, found = (model.generate(tokens(2, 4), 9, temperature=0.0) for model in (theirs, mine))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotary_pos_emb": True},
        {"attn_kv_heads": 2, "alibi_pos_bias": True},
        {"attn_num_mem_kv": 3},
        {"attn_max_attend_past": 3},
        {"rel_pos_bias": True, "attn_qk_norm": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_greedy_generation(options: dict[str, Any]) -> None:
    def build(package: Any) -> nn.Module:
        model: nn.Module = package.AutoregressiveWrapper(wrapped("Decoder", options)(package))
        return model

    # In float32: upstream's softmax gives NaN to a row without keys in float64, and NaN spreads.
    theirs, mine = pair(build, prefix="net.", dtype=torch.float32)
    prompts = tokens(3, 6)
    for given in ({}, {"prompt_lens": torch.tensor([6, 2, 4])}, {"cache_kv": False}):
        expected, found = (model.generate(prompts, 11, temperature=0.0, **given) for model in (theirs, mine))
        assert torch.equal(found, expected)
    first = int(expected[0, 4])
    expected, found = (model.generate(prompts[:1], 11, temperature=0.0, eos_token=first) for model in (theirs, mine))
    assert torch.equal(found, expected)


def test_greedy_generation_of_an_encoder_decoder() -> None:
    theirs, mine = pair(seq2seq())
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, 6:] = False
    expected, found = (
        model.generate(tokens(), tokens(length=3), 9, mask=mask, temperature=0.0) for model in (theirs, mine)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["top_k", "top_p", "top_a", "min_p"])
def test_filters(name: str) -> None:
    from x_transformers.autoregressive_wrapper import FILTER_LOGITS_FN as theirs

    from variform.dialects.x_transformers.autoregressive_wrapper import FILTER_LOGITS_FN as mine

    logits = torch.randn(5, 37, dtype=torch.float64) * 3
    torch.testing.assert_close(mine[name](logits), theirs[name](logits.clone()))


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [({}, {"ff_swish": True}), ({"scale_residual_constant": 1.01}, {}), ({"attn_qk_norm": True}, {})],
)
def test_another_function_is_noticed(theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    def build(package: Any) -> nn.Module:
        options = theirs if package.__name__ == "x_transformers" else mine
        model: nn.Module = wrapped("Decoder", options)(package)
        return model

    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        agree(*pair(build), lambda model: model(tokens()))
