import copy
from typing import Any

import pytest
import torch

from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.filters import top_k
from variform.dialects.x_transformers.free_transformer import BinaryMapper, FreeTransformer

SIZES: dict[str, Any] = {
    "num_tokens": 20,
    "dim": 16,
    "heads": 2,
    "attn_dim_head": 8,
    "dec_head_depth": 1,
    "dec_tail_depth": 1,
    "max_seq_len": 16,
    "latent_bits": 3,
}


def test_bits_tell_what_they_are_paid_for() -> None:
    mapper = BinaryMapper(2, kl_loss_threshold=0.0).double()
    sure = torch.full((5, 2), 50.0, dtype=torch.float64)
    codes, loss = mapper(sure)
    assert torch.equal(codes.detach(), torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 5).double())
    torch.testing.assert_close(loss, torch.tensor(4.0).log().double())
    _, free = mapper(torch.zeros(5, 2, dtype=torch.float64))
    torch.testing.assert_close(free, torch.zeros((), dtype=torch.float64))
    with pytest.raises(InputError, match="logits of 2 bits"):
        mapper(torch.zeros(3, 3))


def test_both_decoders_have_a_bias_of_their_own() -> None:
    model = FreeTransformer(**SIZES, rel_pos_bias=True)
    tables = [name for name, _ in model.named_parameters() if name.endswith("position_bias.table")]
    assert [name.split(".layers")[0] for name in tables] == ["decoder.stacks.0", "decoder.stacks.1", "encoder"]


def test_padding_changes_no_latent() -> None:
    torch.manual_seed(0)
    model = FreeTransformer(**SIZES, pad_id=-1).double()
    with torch.no_grad():
        for param in model.parameters():
            param += 0.3 * torch.randn_like(param)
    model.eval()
    ids = torch.randint(0, 20, (1, 6))
    padded = torch.cat((ids, torch.full((1, 3), -1)), 1)
    told = []
    for given in (ids, padded):
        x = model._first_half(given)
        mask = given != -1
        query = model.latent.query_token_for_latents.expand_as(x)
        told.append(model.encoder(query, {"condition": x, "valid": mask})[:, :6])
    torch.testing.assert_close(told[1], told[0])
    assert model(padded).isfinite()


def test_a_latent_changes_the_text_and_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = FreeTransformer(**SIZES, kl_loss_threshold=0.0)
    model(torch.randint(0, 20, (2, 9))).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    with torch.no_grad():
        model.latent.from_latent_to_condition.weight.normal_(0, 5)
    greedy = {"filter_logits_fn": top_k, "logit_filter_kwargs": {"k": 1}}
    texts = [model.generate(torch.tensor([[1, 2]]), 10, latents=code, **greedy) for code in range(8)]
    assert any(not torch.equal(texts[0], text) for text in texts[1:])
    copied = copy.deepcopy(model).generate(torch.tensor([[1, 2]]), 10, latents=3, **greedy)
    assert torch.equal(copied, texts[3])


def test_what_does_not_go_with_latents_is_refused() -> None:
    for more in ({"weight_tie_layers": True}, {"num_residual_streams": 2}, {"attn_flush": True}, {"dim_latent": 8}):
        with pytest.raises(KeywordError):
            FreeTransformer(**SIZES, **more)
    with pytest.raises(InputError, match="one for each of the 2 rows"):
        FreeTransformer(**SIZES).generate(torch.zeros(2, 3, dtype=torch.long), 5, latents=[1, 2, 3])
