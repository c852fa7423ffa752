"""What the autoregressive wrapper adds to its loss, and memories of calls, against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import compare_gradients, pair
from tests.parity.x_transformers.test_layers import tokens, wrapped


@pytest.mark.parametrize(
    ("model", "keywords"),
    [
        ({}, {"add_attn_z_loss": True}),
        ({"add_continuous_pred_head": True}, {}),
        ({"add_continuous_pred_head": True}, {"next_embed_loss_weight": 0.7, "add_attn_z_loss": True}),
        ({"looped": True, "max_looped_steps": 3}, {}),
        (
            {"looped": True, "max_looped_steps": 3},
            {"looped_loss_threshold_exit": 0.3, "looped_loss_slope": 4.0, "looped_exit_loss_weight": 0.5},
        ),
        ({"mixture_of_softmax": True}, {}),
        ({"recycling": True}, {}),
    ],
    ids=lambda given: "-".join(given) or "plain",
)
@pytest.mark.parametrize("padded", [False, True])
def test_losses(model: dict[str, Any], keywords: dict[str, Any], padded: bool) -> None:
    def build(package: Any) -> nn.Module:
        net = wrapped("Decoder", {"pre_and_post_norm": "looped" in model}, **model)(package)
        built: nn.Module = package.AutoregressiveWrapper(net, **keywords)
        return built

    theirs, mine = pair(build, prefix="net.")
    given: dict[str, Any] = {"lens": torch.tensor([13, 6])} if padded else {}
    given |= {"recycle_steps": 2} if "recycling" in model else {}
    expected, found = (one(tokens(), **given) for one in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    expected.backward()
    found.backward()
    compare_gradients(theirs, mine, "net.")


@pytest.mark.parametrize(
    "options",
    [
        {"attn_head_learned_sink": True},
        {"attn_head_learned_sink": True, "attn_cog_signed": True},
        {"attn_head_learned_sink": True, "attn_post_talking_heads": True, "attn_sparse_topk": 3},
        {"attn_add_zero_kv": True, "attn_num_mem_kv": 2},
        {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 2.0},
    ],
    ids="-".join,
)
def test_the_z_loss_of_scores(options: dict[str, Any]) -> None:
    theirs, mine = pair(wrapped("Decoder", options))
    expected, found = (
        model(tokens(), return_attn_z_loss=True, attn_z_loss_weight=1.0)[1].attn_z_loss for model in (theirs, mine)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    expected.backward()
    found.backward()
    compare_gradients(theirs, mine)


@pytest.mark.parametrize("mask", [None, torch.arange(6) < torch.tensor([[6], [4]])], ids=["whole", "padded"])
def test_intermediates_of_calls_with_memories(mask: Tensor | None) -> None:
    theirs, mine = pair(wrapped("Decoder", {"rotary_pos_emb": True}, max_mem_len=4))
    mems = [torch.randn(2, 4, 24, dtype=torch.float64) for _ in range(2)]
    asked = {"return_intermediates": True, "return_attn_z_loss": mask is None, "mems": mems, "mask": mask}
    (_, one), (_, other) = (model(tokens(2, 6), **asked) for model in (theirs, mine))
    for name in ("hiddens", "layer_hiddens"):
        for expected, found in zip(getattr(one, name), getattr(other, name), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for expected, found in zip(one.attn_intermediates, other.attn_intermediates, strict=True):
        torch.testing.assert_close(found.post_softmax_attn, expected.post_softmax_attn, rtol=0, atol=1e-6)
        assert found.pre_softmax_attn.shape == found.qk_similarities.shape == expected.pre_softmax_attn.shape
    if mask is None:
        torch.testing.assert_close(other.attn_z_loss, one.attn_z_loss, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}, {"rel_pos_bias": True}])
@pytest.mark.parametrize("stack", ["Decoder", "Encoder"])
@pytest.mark.parametrize("shift", [0, 1])
def test_memories_of_calls(options: dict[str, Any], stack: str, shift: int) -> None:
    theirs, mine = pair(wrapped(stack, {**options, "depth": 3}, max_mem_len=7, shift_mem_down=shift))
    kept = torch.rand(2, 7, generator=torch.Generator().manual_seed(5)) < 0.6
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False

    def run(model: nn.Module) -> Tensor:
        x = tokens(2, 19)
        _, mems = model(x[:, :7], return_mems=True)
        assert [m.shape for m in mems] == [(2, 7, 24)] * 3
        assert not mems[0].requires_grad
        first, more = model(x[:, 7:13], mems=mems, return_mems=True, detach_mems=False)
        assert more[0].shape == (2, 7, 24)
        second, _ = model(x[:, 13:], mems=mems, mem_masks=[kept] * 3, mask=mask, return_mems=True)
        if stack == "Encoder":
            second = second * mask.unsqueeze(-1)
        return torch.cat([t.flatten() for t in (first, second, *([] if shift else more))])

    torch.testing.assert_close(run(mine), run(theirs), rtol=0, atol=1e-6)
    expected, found = run(theirs), run(mine)
    expected.square().mean().backward()
    found.square().mean().backward()
    compare_gradients(theirs, mine)


@pytest.mark.parametrize("asks", ["return_embeddings_and_intermediates", "return_intermediates", "return_embeddings"])
def test_where_memories_are_returned(asks: str) -> None:
    theirs, mine = pair(wrapped("Decoder", {}, max_mem_len=4))
    one, other = (net(tokens(2, 6), return_mems=True, **{asks: True}) for net in (theirs, mine))
    if asks == "return_intermediates":
        expected, found = one[1].mems, other[1].mems
    else:
        (_, expected), (_, found) = one, other
    if asks == "return_embeddings_and_intermediates":
        torch.testing.assert_close(other[0][0], one[0][0], rtol=0, atol=1e-6)
        torch.testing.assert_close(other[0][1].last_hidden, one[0][1].last_hidden, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_further_keys_see_rows_from_where_they_begin() -> None:
    _, mine = pair(wrapped("Decoder", {"rotary_pos_emb": True}))
    x, further = tokens(2, 7), [tuple(torch.randn(2, 2, 4, 3, 8, dtype=torch.float64)) for _ in range(2)]
    rows = mine(x, seq_start_pos=torch.tensor([0, 2]), self_attn_additional_kv=further)
    own = [(k[1:], v[1:]) for k, v in further]
    torch.testing.assert_close(rows[1:, 2:], mine(x[1:, 2:], self_attn_additional_kv=own))


def test_memories_of_a_stack_alone() -> None:
    theirs, mine = pair(wrapped("Decoder", {"rotary_pos_emb": True}))
    x, mems = torch.randn(2, 5, 24, dtype=torch.float64), [torch.randn(2, 3, 24, dtype=torch.float64)] * 2
    expected, found = (model.attn_layers(x, mems=list(mems)) for model in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_maps_of_heads_that_share_keys(kv_heads: int) -> None:
    """Heads of maps stand in upstream's order; scores are held down by the same heads."""
    theirs, mine = pair(wrapped("Decoder", {"attn_kv_heads": kv_heads, "rotary_pos_emb": True}))
    (_, one), (_, other) = (model(tokens(), return_intermediates=True) for model in (theirs, mine))
    for expected, found in zip(one.attn_intermediates, other.attn_intermediates, strict=True):
        for name in ("qk_similarities", "post_softmax_attn"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)
    most = other.attn_intermediates[0].pre_softmax_attn.amax((0, 2, 3)).detach()
    bound = float(most.median())
    mine.attn_qk_clip_(other, tau=bound)  # type: ignore[operator]
    after = mine(tokens(), return_intermediates=True)[1].attn_intermediates[0].pre_softmax_attn.amax((0, 2, 3))
    torch.testing.assert_close(after, most.clamp(max=bound), rtol=0, atol=1e-6)


def test_a_condition_is_of_remembered_tokens_too() -> None:
    """The same as one pass; upstream adds it to what is new alone."""
    _, mine = pair(wrapped("Decoder", {"rotary_pos_emb": True}, max_mem_len=9))
    given = {"in_attn_cond": torch.randn(2, 24, dtype=torch.float64)}
    whole = tokens(2, 9)
    _, mems = mine(whole[:, :5], return_mems=True, **given)
    found = mine(whole[:, 5:], mems=mems, **given)
    torch.testing.assert_close(found, mine(whole, **given)[:, 5:], rtol=0, atol=1e-10)
