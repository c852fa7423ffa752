"""`GPTVAE`: padding, hidden latent vectors, training, generation, errors, copies, weights."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.gpt_vae import GPTVAE
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SIZE: dict[str, Any] = {"num_tokens": 9, "dim": 16, "depth": 1, "enc_depth": 1, "max_seq_len": 10}


def model(**keywords: Any) -> GPTVAE:
    torch.manual_seed(0)
    return GPTVAE(**{**SIZE, "attn_dim_head": 8, "heads": 2, **keywords})


def ids(batch: int = 2, length: int = 6) -> Tensor:
    return torch.randint(0, 9, (batch, length), generator=torch.Generator().manual_seed(1))


def test_padding_changes_no_loss() -> None:
    net = model().eval()
    short = ids()[:, :4]
    losses = []
    for seq in (short, torch.cat((short, torch.full((2, 2), -1)), 1)):
        torch.manual_seed(2)
        losses.append(net(seq))
    torch.testing.assert_close(*losses)


def test_a_hidden_latent_vector_changes_nothing_and_moves_nothing() -> None:
    net = model(latents_dropout_prob=1.0).train()
    _, (written, _) = net(ids(), return_all_losses=True)
    torch.testing.assert_close(written, net.ar_wrapped_decoder(ids()))


def test_training_makes_the_latent_vector_tell() -> None:
    net = model(latents_dropout_prob=0.0, vae_kl_loss_weight=0.01)
    torch.manual_seed(0)
    seq = torch.cat((torch.zeros(32, 1).long(), torch.randint(1, 9, (32, 1)).expand(-1, 3)), 1)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        net(seq).backward()
        optimiser.step()
    net.eval()
    prompt = torch.zeros(32, 1).long()
    made = net.generate(prompt, 3, temperature=0.0, seq_for_latents=seq)
    assert (made == seq[:, 1:]).float().mean() > 0.7
    assert (net.generate(prompt, 3, temperature=0.0) == seq[:, 1:]).float().mean() < 0.5


def test_generation_with_a_cache_and_without() -> None:
    net = model().double().eval()
    for latents in (None, torch.randn(16), torch.randn(2, 16), [0.1] * 16):
        made = [net.generate(ids(), 4, temperature=0.0, latents=latents, cache_kv=cache) for cache in (True, False)]
        assert torch.equal(*made)
    assert net.generate(ids()[0], 4, latents=torch.randn(16)).shape == (4,)


class Mean(nn.Module):
    """Another encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = (self.table(x) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return found


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"enc_dept": 1}, "enc_depth"),
        ({"rotary_pos_embb": True}, "rotary_pos_emb"),
        ({"depth": 0}, "positive"),
        ({"vae_kl_div_floor": -0.1}, "negative"),
        ({"encoder": Mean(), "enc_kwargs": {"ff_glu": True}}, "no effect"),
        ({"latents_dropout_prob": 2.0}, "probability"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_calls_are_checked() -> None:
    net = model()
    with pytest.raises(InputError, match="give one"):
        net.generate(ids(), 2, latents=torch.zeros(16), seq_for_latents=ids())
    with pytest.raises(InputError, match="latent vectors are"):
        net.generate(ids(), 2, latents=torch.zeros(3, 16))
    with pytest.raises(InputError, match="latent vectors of 1 texts"):
        net(ids(), seq_for_latents=ids(1))
    with pytest.raises(KeywordError, match="temperatur"):
        net.generate(ids(), 2, temperatur=0.0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("keywords", [{}, {"encoder": Mean()}])
def test_copies_and_weights(keywords: dict[str, Any], again: Any) -> None:
    net = model(**keywords).eval()

    def run(one: GPTVAE) -> Tensor:
        torch.manual_seed(3)
        found: Tensor = one(ids())
        return found

    before, twin, tensors = run(net), again(net), to_x_transformers(net)
    with torch.no_grad():
        for param in net.parameters():
            param.zero_()
    torch.testing.assert_close(run(twin), before, rtol=0, atol=0)
    load_x_transformers(net, tensors)
    torch.testing.assert_close(run(net), before)
