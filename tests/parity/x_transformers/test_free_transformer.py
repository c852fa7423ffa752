"""`FreeTransformer` against upstream's: the same losses, gradients and texts from equal weights and random numbers.

In float32: upstream's codes have that type whatever the model's is, so that no other works there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from variform.dialects.x_transformers.filters import top_k
from variform.dialects.x_transformers.free_transformer import BinaryMapper, FreeTransformer
from variform.weights.x_transformers import entries_of, load_x_transformers, to_x_transformers

upstream: Any = pytest.importorskip("x_transformers.free_transformer")

SIZES: dict[str, Any] = {
    "num_tokens": 20,
    "dim": 16,
    "heads": 2,
    "attn_dim_head": 8,
    "dec_head_depth": 1,
    "dec_tail_depth": 2,
    "max_seq_len": 16,
    "latent_bits": 3,
}


def pair(**more: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    theirs = upstream.FreeTransformer(**{**SIZES, **more})
    for param in theirs.parameters():
        param.data += 0.1 * torch.randn_like(param)
    mine = FreeTransformer(**{**SIZES, **more})
    load_x_transformers(mine, theirs.state_dict())
    return theirs, mine


def ids(length: int = 9) -> torch.Tensor:
    return torch.randint(0, 20, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("more", [{}, {"dec_head_depth": 0}, {"per_token_latents": False}, {"ff_glu": True}])
def test_losses_and_gradients(more: dict[str, Any]) -> None:
    theirs, mine = pair(**more)
    told = []
    for model in (theirs, mine):
        torch.manual_seed(5)
        loss, (predicted, kl) = model(ids(), return_all_losses=True)
        loss.backward()
        told.append(torch.stack([loss, predicted, kl]).detach())
    torch.testing.assert_close(told[1], told[0], rtol=1e-5, atol=1e-5)
    params = dict(theirs.named_parameters())
    for entry in entries_of(mine):
        if entry.params:
            leaf = params[entry.key].detach().clone().requires_grad_()
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in entry.params]
            (pulled,) = torch.autograd.grad(list(entry.load(leaf)), leaf, grads)
            expected = params[entry.key].grad
            assert expected is not None, entry.key
            torch.testing.assert_close(pulled, expected, rtol=1e-3, atol=1e-5, msg=entry.key)


def test_another_text_for_the_latents() -> None:
    theirs, mine = pair(pad_id=0)
    losses = []
    other = torch.tensor([[4, 5, 6, 0, 0], [7, 8, 9, 3, 2]])
    for model in (theirs, mine):
        torch.manual_seed(5)
        losses.append(model(ids().clamp(min=1), seq_for_latents=other))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("latents", [None, 5, [1, 6]])
@pytest.mark.parametrize("use_kv_cache", [True, False])
def test_texts(latents: Any, use_kv_cache: bool) -> None:
    theirs, mine = pair()
    told = latents if isinstance(latents, list | None) else torch.tensor([latents, latents])
    texts = []
    for model, greedy in ((theirs.eval(), upstream.top_k), (mine.eval(), top_k)):
        filters = {"filter_logits_fn": partial(greedy, k=1), "logit_filter_kwargs": {}}
        texts.append(model.generate(ids(4), 12, latents=told, use_kv_cache=use_kv_cache, **filters))
    assert torch.equal(*texts)


def test_weights_go_back() -> None:
    theirs, mine = pair()
    theirs.load_state_dict(to_x_transformers(mine))


def test_the_mapper() -> None:
    theirs, mine = upstream.BinaryMapper(3, 0.1), BinaryMapper(3, 0.1)
    logits = torch.randn(4, 3, requires_grad=True)
    found = []
    for mapper in (theirs, mine):
        torch.manual_seed(2)
        codes, loss = mapper(logits, temperature=0.7)
        (grad,) = torch.autograd.grad((codes * torch.arange(8.0)).sum() + loss, logits)
        found.append((codes.detach(), loss.detach(), grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
