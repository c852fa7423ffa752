"""`DiscoverDecoder` and `TPREncoder`: padding, ends, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dialects.x_transformers.test_next_latent_wrapper import net
from variform.dialects.x_transformers import Encoder
from variform.dialects.x_transformers.discover_wrapper import (
    DiscoverDecoder,
    TPREncoder,
    num_roles_for_scheme,
    role_ids_for_tokens,
)
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


def decoder(inner: Any = None, **keywords: Any) -> DiscoverDecoder:
    size = {"num_fillers": 6, "bos_id": 7, "pad_id": 8, "max_seq_len": 8}
    return DiscoverDecoder(decoder=net() if inner is None else inner, **{**size, **keywords})


def encoder(**keywords: Any) -> TPREncoder:
    torch.manual_seed(0)
    made = TPREncoder(**{"dim": 16, "num_fillers": 6, "num_roles": 8, "filler_dim": 4, "role_dim": 4, **keywords})
    torch.nn.init.normal_(made.binding)
    return made


def tokens() -> Tensor:
    return torch.randint(0, 6, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pad", [8, -1])
def test_padding_changes_no_vector(pad: int) -> None:
    """Upstream reads padding as tokens unless a mask is given."""
    model = decoder(pad_id=pad)
    longer = torch.cat((tokens(), torch.full((2, 2), pad)), 1)
    torch.testing.assert_close(model(longer), model(tokens()))
    torch.testing.assert_close(model(longer, targets=longer)[:, :6], model(tokens(), targets=longer)[:, :6])


def test_rows_that_all_end_early() -> None:
    """Upstream fails, unless at the first token: fewer tokens are made than are to be filled up."""
    model = decoder()
    vectors = torch.zeros(2, 16)
    first = int(model.decode(vectors, torch.tensor([1, 1]))[0, 0])
    made = model.decode(vectors, eos_id=first, max_len=4)
    assert made.tolist() == [[first, 8, 8, 8]] * 2


def test_vectors_are_imitated() -> None:
    model, tpr = decoder(), encoder()
    ids = torch.randint(0, 6, (64, 4), generator=torch.Generator().manual_seed(1))
    roles = role_ids_for_tokens(ids, torch.full((64,), 4), "left_to_right", max_seq_len=4, num_fillers=6)
    targets = model.encode(ids).detach()
    before = float((tpr(ids, roles) - targets).square().mean().detach())
    tpr.fit(ids, roles, targets, steps=40, batch_size=64, lr=1e-2)
    assert float((tpr(ids, roles) - targets).square().mean().detach()) < 0.8 * before
    same = model.surgery(ids[:2], ids[:2], roles[:2], roles[:2], tpr)
    assert torch.equal(same, model.decode(targets[:2], torch.tensor([4, 4])))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: decoder(enc_post=1), "enc_pos"),
        (lambda: decoder(enc_pos="first"), "'last'"),
        (lambda: decoder(inner=net(Encoder)), "layers that see it"),
        (lambda: decoder(max_seq_len=0), "positive"),
        (lambda: encoder(rol_dim=1), "role_dim"),
        (lambda: encoder(mlp_dim=0), "positive"),
        (lambda: num_roles_for_scheme("wickle", max_seq_len=3, num_fillers=2), "wickel"),
    ],
)
def test_keywords_are_checked(build: Any, named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        build()


def test_calls_are_checked() -> None:
    model, tpr = decoder(), encoder()
    for call, named in (
        (lambda: model.decode(torch.zeros(2, 16)), "either lengths or eos_id"),
        (lambda: model.decode(torch.zeros(2, 16), torch.tensor([9, 1])), "max_seq_len = 8"),
        (lambda: model.encode(tokens(), torch.ones(2, 5)), "boolean"),
        (lambda: tpr(tokens() + 3, tokens()), r"tokens lie in \[0, 6\)"),
        (lambda: tpr.fit(tokens(), tokens(), torch.zeros(2, 3)), "as many roles"),
        (lambda: model.surgery(tokens(), tokens() + 3, tokens(), tokens(), tpr), "symbols in|padded"),
        (
            lambda: role_ids_for_tokens(tokens(), torch.tensor([5, 5]), "left_to_right", max_seq_len=4, num_fillers=6),
            "4 at most",
        ),
    ):
        with pytest.raises(InputError, match=named):
            call()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("build", [decoder, lambda: encoder(mlp_dim=3)])
def test_copies_and_weights(build: Any, again: Any) -> None:
    model = build()
    given = (tokens(),) if isinstance(model, DiscoverDecoder) else (tokens(), tokens())
    before, twin, tensors = model(*given), again(model), to_x_transformers(model)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    torch.testing.assert_close(twin(*given), before, rtol=0, atol=0)
    load_x_transformers(model, tensors)
    torch.testing.assert_close(model(*given), before)
