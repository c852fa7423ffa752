"""What stacks inside a wrapper are called with, against the installed x-transformers; options: `test_options.py`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.families.basics import SETS
from tests.parity.x_transformers.harness import VERSION, agree, pair, upstream
from tests.parity.x_transformers.option_set import VERSIONS

BASE: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 4, "attn_dim_head": 8}
OPTIONS: dict[str, dict[str, Any]] = {one.name: dict(one.layers) for one in SETS}
ENCODERS = [
    "plain",
    "flash",
    "rotary",
    "alibi",
    "alibi-grouped",
    "t5",
    "t5-few-buckets",
    "grouped",
    "rmsnorm",
    "scalenorm",
    "post-norm",
    "sandwich-norm",
    "macaron",
    "layerscale",
    "tied-layers",
    "glu",
    "qk-norm",
    "qk-rmsnorm",
    "memory",
    "memory-alibi",
    "memory-t5",
    "many",
]


def wrapped(stack: str, options: dict[str, Any], **model: Any) -> Any:
    """A builder of a small language model."""

    def build(package: Any) -> nn.Module:
        layers = getattr(package, stack)(**{n: v for n, v in {**BASE, **options}.items() if v is not None})
        model_: nn.Module = package.TransformerWrapper(num_tokens=37, max_seq_len=20, attn_layers=layers, **model)
        return model_

    return build


def tied(package: Any) -> dict[str, Any]:
    """Keywords of a tied head as the installed release has it: the earlier one does not scale its logits."""
    unscaled = VERSIONS[0] == VERSION and package is not upstream
    return {"tie_embedding": True, **({"tie_embedding_scale": 1.0} if unscaled else {})}


def tokens(batch: int = 2, length: int = 13) -> Tensor:
    return torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_with_a_mask(name: str) -> None:
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[0, 9:], mask[1, :4] = False, False
    theirs, mine = pair(wrapped("Encoder", OPTIONS[name]))
    agree(theirs, mine, lambda model: model(tokens(), mask=mask))


def test_decoder_with_a_mask_on_the_right() -> None:
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[0, 9:] = False
    theirs, mine = pair(wrapped("Decoder", {}))
    agree(theirs, mine, lambda model: model(tokens(), mask=mask))


@pytest.mark.parametrize("shape", [(13, 13), (4, 13, 13), (2, 4, 13, 13)])
@pytest.mark.parametrize("stack", ["Encoder", "Decoder"])
def test_attention_mask(stack: str, shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.6
    mask = mask | torch.eye(13, dtype=torch.bool)
    theirs, mine = pair(wrapped(stack, {}))
    agree(theirs, mine, lambda model: model(tokens(), attn_mask=mask))


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
def test_rows_that_begin_later(options: dict[str, Any]) -> None:
    start = torch.tensor([0, 5])
    begun = torch.arange(13) >= start.unsqueeze(1)  # what stands before is padding
    # In float32: upstream's softmax gives NaN to a row without keys in float64, and NaN spreads.
    theirs, mine = pair(wrapped("Decoder", options), dtype=torch.float32)
    agree(theirs, mine, lambda model: model(tokens(), seq_start_pos=start), keep=begun, tolerance=1e-5)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
@pytest.mark.parametrize("stack", ["Encoder", "Decoder"])
def test_given_positions(stack: str, options: dict[str, Any]) -> None:
    pos = torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 17])
    theirs, mine = pair(wrapped(stack, options))
    agree(theirs, mine, lambda model: model(tokens(), pos=pos))


def test_hidden_keys() -> None:
    kept = torch.rand(2, 13, generator=torch.Generator().manual_seed(5)) < 0.6
    kept[:, 0] = True
    theirs, mine = pair(wrapped("Decoder", {}))
    agree(theirs, mine, lambda model: model(tokens(), self_attn_kv_mask=kept))


def test_longer_than_the_buckets_of_a_relative_bias() -> None:
    theirs, mine = pair(wrapped("Encoder", {"rel_pos_bias": True}))
    ids = tokens(1, 171)
    agree(theirs, mine, lambda model: model(ids))
