"""`XTransformer` with every keyword of its sides."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.dialects.x_transformers import XTransformer
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SIDES = {"num_tokens": 11, "max_seq_len": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
BOTH = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SIDES.items()}


def built(**keywords: Any) -> XTransformer:
    torch.manual_seed(0)
    model = XTransformer(**{"dim": 16, **BOTH, **keywords}).double().eval()
    with torch.no_grad():
        for param in model.parameters():
            param += 0.1 * torch.randn_like(param)
    return model


def ids(length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 11, (2, length), generator=torch.Generator().manual_seed(seed))


KEYWORDS: list[dict[str, Any]] = [
    {"dec_tie_embedding": True},
    {"tie_token_emb": True, "dec_tie_embedding": True},
    {"tie_token_emb": True, "enc_post_emb_norm": True, "dec_post_emb_norm": True},
    {"enc_emb_dim": 8, "dec_emb_dim": 6},
    {"enc_scaled_sinu_pos_emb": True, "dec_scaled_sinu_pos_emb": True},
    {"enc_use_abs_pos_emb": False, "dec_use_abs_pos_emb": False},
    {"enc_num_memory_tokens": 2, "dec_num_memory_tokens": 3},
    {"dec_mixture_of_softmax": True, "dec_sigsoftmax_logits": True},
    {"enc_l2norm_embed": True, "dec_l2norm_embed": True},
    {"dec_recycling": True, "dec_train_max_recycle_steps": 2},
    {"enc_emb_frac_gradient": 0.5, "dec_emb_dropout": 0.1},
    {"enc_dynamic_pos_bias": True, "dec_dynamic_pos_bias": True},
    {"enc_weight_tie_layers": True, "dec_weight_tie_layers": True},
]


@pytest.mark.parametrize("keywords", KEYWORDS, ids=lambda keywords: "-".join(keywords))
def test_keywords_of_sides(keywords: dict[str, Any]) -> None:
    model = built(**keywords)
    source, target = ids(7), ids(5, 2)
    loss = model(source, target)
    assert loss.isfinite()
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    prompts = ids(2, 3)
    tokens = model.generate(source, prompts, 6, mask=mask, temperature=0.0)
    assert torch.equal(tokens, model.generate(source, prompts, 6, mask=mask, temperature=0.0, cache_kv=False))
    alone = model.generate(source[1:, :4], prompts[1:], 6, temperature=0.0)
    assert torch.equal(tokens[1:], alone)
    assert vf.resolve(model.spec) == model.spec
    described = vf.build(model.spec)
    assert sum(x.numel() for x in described.parameters()) == sum(x.numel() for x in model.parameters())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(source, target), loss, rtol=0, atol=0)
    other = built(**keywords)
    torch.nn.init.zeros_(next(other.parameters()))
    load_x_transformers(other, to_x_transformers(model))
    torch.testing.assert_close(other(source, target), loss, rtol=0, atol=1e-12)


def test_tokens_of_the_source_are_dropped_in_training() -> None:
    model = built(cross_attn_tokens_dropout=0.5)
    plain = built()
    source, target = ids(8), ids(5, 2)
    torch.testing.assert_close(model(source, target), plain(source, target))
    model.train()
    torch.manual_seed(1)
    first = model(source, target)
    torch.manual_seed(1)
    torch.testing.assert_close(model(source, target), first)
    assert abs(float((model(source, target) - plain(source, target)).detach())) > 1e-6
    context, seen = model.native.dropped(model.native.encode(source), None)
    assert context.shape == (2, 4, 16)
    assert seen is None
    found, _ = model.native(source, target, losses=True)
    assert found.shape == (2, 5, 11)
