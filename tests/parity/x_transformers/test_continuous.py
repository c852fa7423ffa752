"""`ContinuousTransformerWrapper` and `ContinuousAutoregressiveWrapper` against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair, unlike
from tests.parity.x_transformers.test_layers import BASE


def features(batch: int = 2, length: int = 9, width: int = 5) -> Tensor:
    return torch.randn(batch, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def built(stack: str = "Decoder", layers: dict[str, Any] | None = None, **model: Any) -> Any:
    def build(package: Any) -> nn.Module:
        own = getattr(package, stack)(**{**BASE, **(layers or {})})
        keywords = {"max_seq_len": 16, "dim_in": 5, "dim_out": 5, **model}
        made: nn.Module = package.ContinuousTransformerWrapper(
            attn_layers=own, **{name: value for name, value in keywords.items() if value is not None}
        )
        return made

    return build


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-length": {"max_seq_len": None},
    "length-0": {"max_seq_len": 0},
    "no-absolute": {"use_abs_pos_emb": False},
    "no-output": {"dim_out": None},
    "norm": {"post_emb_norm": True},
    "sines": {"scaled_sinu_pos_emb": True},
    "dropout": {"emb_dropout": 0.3},
    "memory": {"num_memory_tokens": 3},
    "pooled": {"average_pool_embed": True},
    "pooled-no-output": {"average_pool_embed": True, "dim_out": None},
    "probabilistic": {"probabilistic": True},
    "probabilistic-no-output": {"probabilistic": True, "dim_out": None},
    "probabilistic-pooled": {"probabilistic": True, "average_pool_embed": True},
    "identity": {"use_identity_if_same_dim": True, "dim_in": 24, "dim_out": 24},
    "identity-gaussian": {"use_identity_if_same_dim": True, "dim_out": 12, "probabilistic": True},
    "many": {"post_emb_norm": True, "num_memory_tokens": 2, "probabilistic": True, "emb_dropout": 0.1},
}


POOLED = unlike("the mean is of another name of the same module", ValueError)


@pytest.mark.parametrize("name", [pytest.param(n, marks=POOLED) if "pooled" in n else n for n in OPTIONS])
def test_options(name: str) -> None:
    theirs, mine = pair(built(**OPTIONS[name]))
    x = features(width=OPTIONS[name].get("dim_in", 5))
    agree(theirs, mine, lambda model: model(x))
    expected, found = (model(x, return_embeddings=True) for model in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
def test_masks_positions_and_features_in_front(options: dict[str, Any]) -> None:
    theirs, mine = pair(built("Encoder", options))
    x, front = features(), features(2, 4, 24)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    agree(theirs, mine, lambda model: model(x, mask=mask), keep=mask)
    front_mask = torch.tensor([[True] * 4, [False] + [True] * 3])
    both = {"prepend_embeds": front, "prepend_mask": front_mask, "mask": mask}
    agree(theirs, mine, lambda model: model(x, **both), keep=torch.cat((front_mask, mask), 1))
    agree(theirs, mine, lambda model: model(x, prepend_embeds=front))
    expected, found = (model(x, lens=torch.tensor([6, 9])) for model in (theirs, mine))
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-6)


def test_rows_that_begin_later() -> None:
    """Upstream moves the positions and attends to what stands before; ours does not attend to it."""
    theirs, mine = pair(built("Encoder"))
    start = torch.tensor([0, 3])
    begun = torch.arange(9) >= start.unsqueeze(1)
    expected = theirs(features(), seq_start_pos=start, mask=begun)
    found = mine(features(), seq_start_pos=start)
    torch.testing.assert_close(found[begun], expected[begun], rtol=0, atol=1e-6)


@unlike("the mean is of another name of the same module", RuntimeError)
def test_pooling_counts_real_features() -> None:
    theirs, mine = pair(built("Encoder", average_pool_embed=True))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    agree(theirs, mine, lambda model: model(features(), mask=mask))


def test_modules_in_the_place_of_maps() -> None:
    def build(package: Any) -> nn.Module:
        ends = {"project_in": nn.Sequential(nn.Linear(5, 24), nn.SiLU()), "project_out": nn.Linear(24, 6)}
        return built(dim_in=None, dim_out=None, **ends)(package)

    theirs, mine = pair(build)
    agree(theirs, mine, lambda model: model(features()))


def test_what_is_added_and_what_is_returned() -> None:
    theirs, mine = pair(built(post_emb_norm=True, num_memory_tokens=2))
    more = features(width=24)
    agree(theirs, mine, lambda model: model(features(), sum_embeds=more))
    (_, maps), (_, mine_maps) = (model(features(), return_attn=True) for model in (theirs, mine))
    assert len(maps) == len(mine_maps) == 2
    for expected, found in zip(maps, mine_maps, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    told = [model(features(), return_intermediates=True)[1] for model in (theirs, mine)]
    torch.testing.assert_close(told[1].memory_tokens, told[0].memory_tokens, rtol=0, atol=1e-6)
    for expected, found in zip(told[0].hiddens, told[1].hiddens, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}, {"cross_attend": True}])
@pytest.mark.parametrize("limit", [4, 9])
def test_segments(options: dict[str, Any], limit: int) -> None:
    theirs, mine = pair(built(layers=options, max_mem_len=limit))
    context = {"context": features(2, 5, 24)} if options.get("cross_attend") else {}
    masks = [torch.ones(2, min(limit, 9), dtype=torch.bool) for _ in range(2)]
    masks[0][0, :2] = masks[1][0, :2] = False

    def run(model: nn.Module) -> Tensor:
        first, mems = model(features(), return_mems=True, **context)
        second, more = model(features(length=7), mems=list(mems), return_mems=True, **context)
        hidden = model(features(length=7), mems=list(more), **context)
        assert [one.shape for one in (*mems, *more)] == [(2, min(limit, 9), 24)] * 2 + [(2, min(limit, 7), 24)] * 2
        return torch.cat((first, second, hidden), 1)

    agree(theirs, mine, run)
    mems = list(mine(features(), return_mems=True, **context)[1])
    expected, found = (model(features(length=7), mems=mems, mem_masks=masks, **context) for model in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def wrapped(loss: dict[str, Any] | None = None, **model: Any) -> Any:
    def build(package: Any) -> nn.Module:
        made: nn.Module = package.ContinuousAutoregressiveWrapper(built(**model)(package), **(loss or {}))
        return made

    return build


@pytest.mark.parametrize("loss", [{}, {"use_l1_loss": True}, {"loss_fn": nn.SmoothL1Loss(reduction="none")}])
@pytest.mark.parametrize("masked", [False, True])
def test_losses(loss: dict[str, Any], masked: bool) -> None:
    theirs, mine = pair(wrapped(loss))
    call = {"mask": torch.ones(2, 9, dtype=torch.bool)} if masked else {}
    agree(theirs, mine, lambda model: model(features(), **call).expand(2) * torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("equal", [False, True])
def test_losses_of_masked_rows(equal: bool) -> None:
    """Upstream counts a target where the input before it is real; ours where it is real itself."""
    theirs, mine = pair(wrapped({"equal_loss_weight_batch": equal}))
    mask = torch.arange(9) < torch.tensor([[5], [9]])
    fewer = torch.arange(8) < torch.tensor([[4], [8]])
    expected, found = theirs(features(), mask=fewer), mine(features(), mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(mine(features(), lens=torch.tensor([5, 9])), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(mine(features(), mask=fewer), expected, rtol=0, atol=1e-6)


def test_the_loss_of_gaussians() -> None:
    theirs, mine = pair(wrapped(probabilistic=True))
    agree(theirs, mine, lambda model: model(features()).expand(2) * torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("options", [{}, {"probabilistic": True}, {"num_memory_tokens": 2}, {"max_seq_len": None}])
def test_generation(options: dict[str, Any], cache: bool) -> None:
    theirs, mine = pair(wrapped(**options))
    made = []
    for model in (theirs, mine):
        torch.manual_seed(7)
        made.append(model.generate(features(length=3), 5, temperature=0.7, cache_kv=cache and model is mine))
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-6)


def test_generation_beyond_the_window() -> None:
    theirs, mine = pair(wrapped(max_seq_len=6))
    expected = theirs.generate(features(length=4)[0], 7, cache_kv=False)
    torch.testing.assert_close(mine.generate(features(length=4)[0], 7), expected, rtol=0, atol=1e-6)
