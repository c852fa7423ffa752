"""`NeoMLP` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair

SIZE: dict[str, Any] = {"dim_in": 3, "dim_hidden": 4, "dim_out": 2, "dim_model": 16, "depth": 2}


@pytest.mark.parametrize("keywords", [{}, {"encoder_kwargs": {"heads": 2, "attn_dim_head": 8, "ff_glu": True}}])
@pytest.mark.parametrize("shape", [(3,), (5, 3)])
def test_outputs_and_nodes(keywords: dict[str, Any], shape: tuple[int, ...]) -> None:
    theirs, mine = pair(lambda package: package.NeoMLP(**SIZE, **keywords))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def run(model: nn.Module) -> Tensor:
        out, nodes = model(x, return_embeds=True)
        return torch.cat([out.flatten(), *(part.flatten() for part in nodes)])

    agree(theirs, mine, run)
    torch.testing.assert_close(mine(x), theirs(x), rtol=0, atol=1e-6)
