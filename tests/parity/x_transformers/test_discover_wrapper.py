"""`DiscoverDecoder` and `TPREncoder` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair, upstream
from tests.parity.x_transformers.test_layers import wrapped

LENGTHS = torch.tensor([7, 4])
PAD = 36


def module_of(package: Any) -> Any:
    name = "discover_wrapper"
    if package is upstream:
        pytest.importorskip(f"{package.__name__}.{name}", reason="new in 2.31")
    return __import__(f"{package.__name__}.{name}", fromlist=["TPREncoder"])


def encoder(**keywords: Any) -> Any:
    size = {"dim": 24, "num_fillers": 9, "num_roles": 100, "filler_dim": 5, "role_dim": 3}
    return lambda package: module_of(package).TPREncoder(**size, **keywords)


def decoder(**keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        size = {"num_fillers": 9, "bos_id": 35, "pad_id": PAD, "max_seq_len": 8, **keywords}
        made: nn.Module = module_of(package).DiscoverDecoder(decoder=wrapped("Decoder", {})(package), **size)
        return made

    return build


def tokens(seed: int = 3) -> Tensor:
    return torch.randint(0, 9, (2, 7), generator=torch.Generator().manual_seed(seed))


def roles(package: Any, ids: Tensor, scheme: str) -> Tensor:
    found: Tensor = module_of(package).role_ids_for_tokens(ids, LENGTHS, scheme, max_seq_len=7, num_fillers=9)
    return found


@pytest.mark.parametrize("scheme", ["bidirectional", "right_to_left", "left_to_right", "wickel", "bag_of_words"])
def test_roles(scheme: str) -> None:
    import variform.dialects.x_transformers as ours

    assert torch.equal(roles(ours, tokens(), scheme), roles(upstream, tokens(), scheme))
    counts = [
        module_of(package).num_roles_for_scheme(scheme, max_seq_len=7, num_fillers=9) for package in (ours, upstream)
    ]
    assert counts[0] == counts[1]
    assert int(roles(ours, tokens(), scheme).max()) < counts[0]


@pytest.mark.parametrize("keywords", [{}, {"mlp_dim": 6}])
def test_imitated_vectors(keywords: dict[str, Any]) -> None:
    theirs, mine = pair(encoder(**keywords))
    mask = torch.arange(7) < LENGTHS.unsqueeze(1)
    held = roles(upstream, tokens(), "wickel")
    agree(theirs, mine, lambda model: model(tokens(), held, mask))
    targets = torch.randn(2, 24, dtype=torch.float64)
    errors = []
    for model in (theirs, mine):
        torch.manual_seed(1)
        errors.append(model.fit(tokens(), held, targets, mask=mask, steps=5, batch_size=4))
    assert abs(errors[0] - errors[1]) < 1e-6


@pytest.mark.parametrize("keywords", [{}, {"enc_pos": 1}])
def test_vectors_and_logits(keywords: dict[str, Any]) -> None:
    theirs, mine = pair(decoder(**keywords))
    agree(theirs, mine, lambda model: model(tokens()))
    agree(theirs, mine, lambda model: model(tokens(), targets=tokens(4)[:, :5]))


def test_sequences_of_vectors() -> None:
    theirs, mine = pair(decoder())
    vectors = torch.randn(2, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = theirs.decode(vectors, LENGTHS)
    assert torch.equal(mine.decode(vectors, LENGTHS), expected)
    stop = int(expected[0, 1])
    assert torch.equal(mine.decode(vectors, eos_id=stop, max_len=3), theirs.decode(vectors, eos_id=stop, max_len=3))


def test_surgery() -> None:
    pads = torch.arange(7) >= LENGTHS.unsqueeze(1)
    old, new = (tokens(seed).masked_fill(pads, PAD) for seed in (3, 4))
    held = [roles(upstream, ids, "left_to_right") for ids in (old, new)]
    made = [model.surgery(old, new, *held, tpr) for model, tpr in zip(pair(decoder()), pair(encoder()), strict=True)]
    assert torch.equal(*made)
