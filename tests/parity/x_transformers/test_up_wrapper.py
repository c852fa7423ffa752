"""`UniversalPretrainWrapper` against the installed x-transformers: what is not drawn."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair
from tests.parity.x_transformers.test_layers import wrapped


def module_of(package: Any) -> Any:
    """The module of either package; upstream compiles a method as it is imported."""
    with patch("torch.compile", lambda method: method):
        return __import__(f"{package.__name__}.up_wrapper", fromlist=["UniversalPretrainWrapper"])


def generator(**keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        made: nn.Module = module_of(package).SyntheticDataGenerator(dim=12, num_tokens=37, max_seq_len=9, **keywords)
        return made.requires_grad_(True)

    return build


def whole(package: Any) -> nn.Module:
    made: nn.Module = module_of(package).UniversalPretrainWrapper(
        wrapped("Decoder", {})(package), batch_size=2, seq_len=10
    )
    return made


def ids(length: int = 7) -> Tensor:
    return torch.randint(0, 37, (2, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("keywords", [{}, {"use_gru": True}])
def test_what_a_random_network_writes(keywords: dict[str, Any]) -> None:
    theirs, mine = pair(generator(**keywords))
    agree(theirs, mine, lambda model: model(ids())[0])
    made = []
    for model in (theirs, mine):
        torch.manual_seed(1)
        made.append(model.generate(5, seed=ids(3), condition=ids(4)))
    assert torch.equal(*made)


def test_the_loss_and_the_weights_with_the_buffer() -> None:
    theirs, mine = pair(whole)
    assert torch.equal(mine.synth_data_buffer, theirs.synth_data_buffer)
    agree(theirs, mine, lambda model: model.ar_wrapped(ids()) * torch.tensor([1.0, 2.0]))
