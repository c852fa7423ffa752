"""`Attention` by itself, beside the installed x-transformers', with everything that a call may give it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair

B, L, LC, D, H, DH = 2, 7, 5, 24, 4, 6
GROUPED: dict[str, Any] = {"kv_heads": 2}
KEYWORDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "grouped": GROUPED,
    "grouped-gated-memory": {**GROUPED, "causal": True, "gate_values": True, "num_mem_kv": 2, "qk_rmsnorm": True},
    "latent": {"use_latent_kv": True, "dim_latent_kv": 5, "latent_rope_subheads": 1, "dim_out": 9, "causal": True},
    "on-attn": {"on_attn": True, "value_dim_head": 5, "dim_out": 7},
    "l2-laser": {"l2_distance": True, "laser": True, **GROUPED},
}


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kept(length: int) -> Tensor:
    return torch.arange(length).expand(B, length) < torch.tensor([[length], [length - 2]])


CALLS: dict[str, dict[str, Any]] = {
    "bare": {},
    "mask": {"mask": kept(L)},
    "keys": {"mask": kept(L), "context_mask": torch.rand(B, L, generator=torch.Generator().manual_seed(2)) > 0.3},
    "pairs": {"attn_mask": torch.ones(H, L, L, dtype=torch.bool).tril() & (noise(H, L, L) > -1)},
    "bias": {"attn_bias": noise(H, L, L)},
    "deltas": {
        "q_delta": noise(B, L, H * DH, seed=2),
        "o_delta": noise(B, L, H * DH, seed=3),
        "attn_delta": noise(B, H, L, L, seed=4),
    },
    "residual": {"kv_input_residual": noise(B, L, D)},
    "further": {"additional_key_values": (noise(B, H, 3, DH), noise(B, H, 3, DH, seed=2))},
    "further-masked": {
        "additional_key_values": (noise(B, 2, 3, DH), noise(B, 2, 3, DH, seed=2)),
        "additional_key_value_mask": torch.tensor([[True, False, True], [False, True, True]]),
        "mask": kept(L),
    },
}
CONTEXTS: dict[str, dict[str, Any]] = {
    "bare": {},
    "masks": {"mask": kept(L), "context_mask": kept(LC)},
    "pairs": {"attn_mask": noise(L, LC) > -1, "context_mask": kept(LC)},
    "residual": {"kv_input_residual": noise(B, LC, D)},
}


def made(keywords: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    return pair(lambda package: package.Attention(D, dim_head=DH, heads=H, **keywords))


def run(theirs: nn.Module, mine: nn.Module, **call: Any) -> None:
    x = noise(B, L, D)
    agree(theirs, mine, lambda model: model(x, **call))


@pytest.mark.parametrize("name", KEYWORDS)
def test_keywords(name: str) -> None:
    run(*made(KEYWORDS[name]), mask=kept(L))


@pytest.mark.parametrize("keywords", [{}, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("call", CALLS)
def test_calls(call: str, keywords: dict[str, Any]) -> None:
    run(*made(keywords), **CALLS[call])


def test_keys_and_values_may_be_changed() -> None:
    run(*made(GROUPED), k_delta=noise(B, L, 2 * DH), v_delta=noise(B, L, 2 * DH, seed=2))


@pytest.mark.parametrize("keywords", [{}, {**GROUPED, "num_mem_kv": 2, "qk_norm": True}], ids=["plain", "grouped"])
@pytest.mark.parametrize("call", CONTEXTS)
def test_a_context_through_the_same_maps(call: str, keywords: dict[str, Any]) -> None:
    if call == "pairs":  # upstream does not widen this mask for its memory
        keywords = {name: value for name, value in keywords.items() if name != "num_mem_kv"}
    run(*made(keywords), context=noise(B, LC, D, seed=5), **CONTEXTS[call])


def test_a_context_of_another_width() -> None:
    run(*made({"dim_context": 9, "kv_heads": 2}), context=noise(B, LC, 9, seed=5), context_mask=kept(LC))


def test_intermediates() -> None:
    theirs, mine = made({})
    (_, expected), (_, found) = (model(noise(B, L, D), return_intermediates=True) for model in (theirs, mine))
    torch.testing.assert_close(found.pre_softmax_attn, expected.pre_softmax_attn)
    assert len(list(mine.muon_parameters())) == len(list(theirs.muon_parameters())) == 2


@pytest.mark.parametrize("keywords", [{}, GROUPED, {"use_latent_kv": True, "dim_latent_kv": 5}])
@torch.no_grad()
def test_clipped_scores(keywords: dict[str, Any]) -> None:
    """Upstream scales input features in the place of heads, and fails where their numbers differ."""
    attention, x = made(keywords)[1], noise(B, L, D)
    before = attention(x, return_intermediates=True)[1].pre_softmax_attn
    attention.qk_clip_(before, tau=1.0)
    after = attention(x, return_intermediates=True)[1].pre_softmax_attn
    for head in range(H):
        factor = min(1.0, 1.0 / float(before[:, head].amax()))
        torch.testing.assert_close(after[:, head], before[:, head] * factor)
    assert float(before.amax()) > 1.0
