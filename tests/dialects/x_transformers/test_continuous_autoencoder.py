"""`ContinuousTransformerAutoencoder`: nothing is told what it should tell; training, errors, copies, weights."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.continuous_autoencoder import (
    ContinuousTransformerAutoencoder,
    VariationalLatentBottleneck,
)
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SIZE: dict[str, Any] = {"dim": 16, "enc_depth": 1, "dec_depth": 1, "max_seq_len": 8, "attn_dim_head": 8, "heads": 2}


def model(**keywords: Any) -> ContinuousTransformerAutoencoder:
    torch.manual_seed(0)
    return ContinuousTransformerAutoencoder(**{**SIZE, "dim_input": 3, **keywords})


def features(batch: int = 2, length: int = 6) -> Tensor:
    return torch.randn(batch, length, 3, generator=torch.Generator().manual_seed(1))


def test_no_answer_has_seen_its_target() -> None:
    net = model().eval()
    x = features().requires_grad_()
    token, seen = net.token(torch.zeros(2, 16))
    answers = net.decoder(x, prepend_embeds=token, prepend_mask=seen)[:, :-1]
    for place in range(6):
        (grad,) = torch.autograd.grad(answers[:, place].sum(), x, retain_graph=True)
        assert not grad[:, place:].any()
        assert place == 0 or grad[:, :place].any()


def test_a_latent_vector_helps_and_training_finds_it() -> None:
    net = model(latents_dropout_prob=0.0)
    torch.manual_seed(0)
    x = torch.randn(16, 1, 3).expand(-1, 4, -1).contiguous()  # the first feature is known from the latent vector alone
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    first = net(x).item()
    for _ in range(60):
        optimiser.zero_grad()
        loss = net(x)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.15 * first


def test_a_hidden_latent_vector_changes_nothing() -> None:
    net = model(latents_dropout_prob=1.0).train()
    token = net.encode(features())
    token.sum().backward()
    net.zero_grad()
    net(features()).backward()
    assert all(param.grad is None or not param.grad.any() for param in net.encoder.parameters())
    assert any(param.grad is not None and param.grad.any() for param in net.decoder.parameters())


def test_padding_changes_no_loss() -> None:
    net = model(bottleneck_type="variational").eval()
    lens = torch.tensor([6, 3])
    other = torch.where((torch.arange(6) < lens.unsqueeze(1)).unsqueeze(-1), features(), 1e3)
    losses = []
    for x in (features(), other):
        torch.manual_seed(2)
        losses.append(net(x, lens=lens))
    torch.testing.assert_close(*losses)


def test_what_is_returned() -> None:
    net = model(bottleneck_type="variational").eval()
    torch.manual_seed(0)
    total, (error, penalty) = net(features(), return_all_losses=True)
    torch.testing.assert_close(total, error + penalty)
    assert net(features(), return_unreduced_loss=True).shape == (2,)
    assert net.encode(features()).shape == (2, 16)
    assert model()(features(), return_all_losses=True)[1][1] is None


def test_a_floor_of_the_divergence_counts() -> None:
    part = VariationalLatentBottleneck(4, 3, kl_div_floor=100.0)
    assert part(torch.randn(2, 4))[1] == 0


class Half(nn.Module):
    """Another bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 8)

    def forward(self, x: Tensor, return_unreduced_loss: bool = False) -> tuple[Tensor, None]:
        return self.map(x), None


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"loss_typ": "l1"}, "loss_type"),
        ({"loss_type": "l3"}, "l1, l2"),
        ({"bottleneck_type": "none"}, "deterministic, variational"),
        ({"rotary_pos_embb": True}, "rotary_pos_emb"),
        ({"enc_kwargs": {"ff_gul": True}}, "ff_glu"),
        ({"enc_depth": 0}, "positive"),
        ({"latents_dropout_prob": 1.2}, "probability"),
        ({"deterministic_bottleneck_kwargs": {"kl_div_floor": 1.0}}, "takes activation"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_calls_are_checked() -> None:
    with pytest.raises(KeyError, match="dec_depth"):
        ContinuousTransformerAutoencoder(dim=16, enc_depth=1, max_seq_len=8)
    with pytest.raises(InputError, match="batch, length"):
        model()(features()[0])
    with pytest.raises(InputError, match="end at 8"):
        model()(features(length=9))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("keywords", [{}, {"bottleneck": Half(), "dim_latent": 8}])
def test_copies_and_weights(keywords: dict[str, Any], again: Any) -> None:
    net = model(**keywords).eval()
    before, twin = net(features()), again(net)
    tensors = to_x_transformers(net)
    with torch.no_grad():
        for param in net.parameters():
            param.zero_()
    torch.testing.assert_close(twin(features()), before, rtol=0, atol=0)
    load_x_transformers(net, tensors)
    torch.testing.assert_close(net(features()), before)


@pytest.mark.parametrize("lens", [torch.tensor([3, 99]), torch.tensor([3.5, 2.0]), torch.tensor([3])])
def test_lengths_that_are_none(lens: torch.Tensor) -> None:
    sizes = {"heads": 2, "attn_dim_head": 8, "dim_input": 4, "max_seq_len": 8}
    with pytest.raises(InputError, match="lens"):
        ContinuousTransformerAutoencoder(dim=16, enc_depth=1, dec_depth=1, **sizes)(torch.randn(2, 6, 4), lens=lens)
