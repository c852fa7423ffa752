"""Arguments of a call of layers alone, which models hand to them, against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, compare_gradients, pair
from tests.parity.x_transformers.test_layers import BASE, tokens, wrapped


def layers(**options: Any) -> Any:
    def build(package: Any) -> nn.Module:
        built: nn.Module = package.Decoder(**{**BASE, **options})
        return built

    return build


def features(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randn(rows, length, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize(
    "options", [{"rotary_pos_emb": True, "attn_num_mem_kv": 2}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}]
)
def test_positions_begin_at_an_offset(options: dict[str, Any]) -> None:
    theirs, mine = pair(layers(**options))
    agree(theirs, mine, lambda net: net(features(), seq_pos_offset=5))
    if "attn_num_mem_kv" in options:
        assert (mine(features(), seq_pos_offset=5) - mine(features())).abs().max() > 1e-4


def test_deep_embeddings_of_a_call() -> None:
    theirs, mine = pair(layers())
    vectors = torch.randn(37, 2, 24, dtype=torch.float64, requires_grad=True)
    gradients = []
    for net in (theirs, mine):
        net(features(), deep_embeds_and_ids=(vectors, tokens(2, 7))).square().sum().backward()
        gradients.append(vectors.grad)
        vectors.grad = None
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    compare_gradients(theirs, mine)
    agree(theirs, mine, lambda net: net(features(), deep_embeds_and_ids=(vectors.detach(), tokens(2, 7))))


def test_log_probabilities_of_the_largest_weights() -> None:
    theirs, mine = pair(layers(attn_hard=True))
    (one, told), (other, found) = (net(features(), return_gumbel_log_probs=True) for net in (theirs, mine))
    torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
    for expected, ours in zip(told.attn_intermediates, found.attn_intermediates, strict=True):
        torch.testing.assert_close(ours.log_probs, expected.log_probs, rtol=0, atol=1e-6)


class Scaled(nn.Embedding):
    """An embedding with a keyword."""

    def forward(self, ids: Tensor, factor: float = 1.0) -> Tensor:
        """Scale the vectors."""
        return super().forward(ids) * factor


@pytest.mark.parametrize("model", [{}, {"post_emb_norm": True, "emb_dim": 16}], ids=["plain", "factorised"])
def test_keywords_of_an_embedding(model: dict[str, Any]) -> None:
    def build(package: Any) -> nn.Module:
        embedding = Scaled(37, model.get("emb_dim", 24))
        return wrapped("Decoder", {}, token_emb=embedding, **model)(package)  # type: ignore[no-any-return]

    theirs, mine = pair(build)
    agree(theirs, mine, lambda net: net(tokens(2, 7), token_emb_kwargs={"factor": 1.7}))
    assert (mine(tokens(2, 7), token_emb_kwargs={"factor": 1.7}) - mine(tokens(2, 7))).abs().max() > 1e-4
    x, given = tokens(2, 9), {"token_emb_kwargs": {"factor": 1.7}}
    _, told = mine(x[:, :7], return_intermediates=True, **given)
    torch.testing.assert_close(mine(x, cache=told, **given), mine(x, **given)[:, 7:])
