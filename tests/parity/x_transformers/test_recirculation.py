"""`Recirculation` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair
from tests.parity.x_transformers.test_layers import wrapped


def built(*routes: Any, layers: dict[str, Any] | None = None, **keywords: Any) -> Any:
    def build(package: Any) -> nn.Module:
        try:
            file = __import__(f"{package.__name__}.recirculation", fromlist=["Recirculation"])
        except ModuleNotFoundError:
            pytest.skip("new in 2.31")
        net = wrapped("Decoder", {"depth": 3, **(layers or {})})(package)
        made: nn.Module = file.Recirculation(net, *(routes or (2, 0)), **keywords)
        return made

    return build


def ids(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "build",
    [
        built(),
        built(layers={"rotary_pos_emb": True}),
        built(alpha=0.3, beta=0.5, ramp_steps=0),
        built((1, 2), (0, 1), alpha=(0.2, 0.4), ramp_steps=3),
        built(use_learned=True, learned_hidden=7),
        built(layers={"pre_norm": False}),
    ],
    ids=["plain", "rotary", "fixed", "several", "learned", "post-norm"],
)
def test_logits(build: Any) -> None:
    theirs, mine = pair(build)
    agree(theirs, mine, lambda model: model(ids()))


def test_going_on_from_a_cache() -> None:
    theirs, mine = pair(built())
    out = []
    with torch.no_grad():
        for model in (theirs, mine):
            _, cache = model(ids(length=4), return_intermediates=True)
            steps = []
            for place in (5, 6, 7):
                logits, cache = model(ids()[:, :place], cache=cache, return_intermediates=True)
                steps.append(logits[:, -1])
            out.append(torch.stack(steps))
    torch.testing.assert_close(*out, rtol=0, atol=1e-6)
