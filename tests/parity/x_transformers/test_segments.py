"""Texts in segments, and weights that learn while a text is read, against the installed x-transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform.dialects.x_transformers as ours
from tests.parity.x_transformers.harness import compare_gradients, pair, unlike, upstream
from tests.parity.x_transformers.test_layers import BASE
from variform.dialects.x_transformers.xl_autoregressive_wrapper import XLAutoregressiveWrapper
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SIZE = 5


def net(options: dict[str, Any], **model: Any) -> Callable[[Any], nn.Module]:
    def build(package: Any) -> nn.Module:
        layers = package.Decoder(**{**BASE, **options})
        sizes = {"num_tokens": 37, "max_seq_len": SIZE, "max_mem_len": 7, **model}
        built: nn.Module = package.TransformerWrapper(attn_layers=layers, **sizes)
        return built

    return build


def both(options: dict[str, Any], model: dict[str, Any] | None = None, **keywords: Any) -> tuple[Any, Any]:
    """Wrappers of either package around nets of the same weights, with the same keywords."""
    from x_transformers.xl_autoregressive_wrapper import XLAutoregressiveWrapper as Theirs

    theirs, mine = pair(net(options, **(model or {})))
    torch.manual_seed(5)
    first = Theirs(theirs, **keywords).double()
    torch.manual_seed(5)
    return first, XLAutoregressiveWrapper(mine, **keywords).double()


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(0, 37, (rows, length), generator=torch.Generator().manual_seed(3))


POSITIONS: list[dict[str, Any]] = [
    {},
    {"rotary_pos_emb": True},
    {"alibi_pos_bias": True},
    {"rel_pos_bias": True, "attn_kv_heads": 2},
    {"rotary_pos_emb": True, "rotary_xpos": True, "rotary_xpos_scale_base": 16},
    {"rotary_pos_emb": True, "rotate_num_heads": 2},
]


@pytest.mark.parametrize("options", POSITIONS)
@pytest.mark.parametrize("steps", [1, 2])
def test_the_loss_and_its_gradients(options: dict[str, Any], steps: int) -> None:
    theirs, mine = both(options, tbptt_steps=steps)
    for length in (18, SIZE + 1, 3):
        expected, found = (model(ids(3, length)) for model in (theirs, mine))
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    expected, found = (model(ids(3, 18)) for model in (theirs, mine))
    expected.backward()
    found.backward()
    compare_gradients(theirs.net, mine.net)
    expected, found = (model(ids(3, 18), dropout_mems=True) for model in (theirs, mine))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_each_layer_remembers_the_one_above() -> None:
    theirs, mine = both({"rotary_pos_emb": True, "depth": 3}, {"shift_mem_down": 1, "max_mem_len": 4})
    expected, found = (model(ids(3, 18)) for model in (theirs, mine))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", POSITIONS[:3])
def test_memory_tokens_are_remembered_too(options: dict[str, Any]) -> None:
    theirs, mine = both(options, {"num_memory_tokens": 2})
    expected, found = (model(ids(3, 18)) for model in (theirs, mine))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)  # their generation fails


@unlike("fails where a segment ends", Exception)  # of several kinds
@pytest.mark.parametrize("options", POSITIONS)
def test_generation(options: dict[str, Any]) -> None:
    theirs, mine = both(options)
    # Where a segment that was begun ends, upstream reads it again with its own tokens among the memories.
    for length, count in ((1, 4), (4, 1), (SIZE, 5), (SIZE + 1, 4), (2 * SIZE, 5), (13, 2)):
        expected = theirs.generate(ids(2, length), count, temperature=0.0)
        for cache_kv in (True, False):
            assert torch.equal(mine.generate(ids(2, length), count, temperature=0.0, cache_kv=cache_kv), expected)


LEARNERS: list[dict[str, Any]] = [
    {"ttt_module_paths": ("attn_layers.layers.1.1",)},
    {"ttt_module_paths": ("attn_layers.layers.3.1", "attn_layers.layers.1.1.ff.2"), "ttt_lr": 0.1},
    {
        "ttt_module_paths": (
            ("attn_layers.layers.1.1", "attn_layers.layers.3.1"),
            ("attn_layers.layers.3.1", "attn_layers.layers.1.1"),
        )
    },
    {"ttt_module_paths": (("attn_layers.layers.1.1", "attn_layers.layers.1.1"),) * 2},
    {"ttt_module_paths": ("attn_layers.layers.1.1",), "ttt_wd": 0.5},
    {"ttt_module_paths": ("attn_layers.layers.1.1",), "ttt_use_muon": True, "ttt_muon_lr": 0.05},
    {"ttt_module_paths": ("attn_layers.layers.1.1",), "ttt_next_latent_loss": True},  # new in 2.31
    {"ttt_low_rank_paths": (("attn_layers.layers.1.1.ff.2", 3),)},
]


TOGETHER = unlike("the inner loss is one mean over all rows", (AssertionError, TypeError))


def drawn(model: nn.Module) -> list[Tensor]:
    """Parameters that a wrapper makes at random."""
    return [p for name, p in model.named_parameters() if name.endswith("weight_a") or "custom_loss" in name]


@TOGETHER
@pytest.mark.parametrize("keywords", LEARNERS, ids=lambda keywords: "-".join(keywords))
def test_weights_that_learn(keywords: dict[str, Any]) -> None:
    options = {"rotary_pos_emb": True}
    theirs, mine = both(options, tbptt_steps=2, **{"ttt_lr": 0.1, **keywords})
    for one, other in zip(drawn(theirs), drawn(mine), strict=True):
        other.data.copy_(one)
    for train in (False, True):
        theirs.train(train)
        mine.train(train)
        expected, found = (model(ids(3, 18)) for model in (theirs, mine))
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
        plain = both(options, tbptt_steps=2)[1](ids(3, 18))
        assert (plain - found).abs() > 1e-5
    expected.backward()
    found.backward()
    for reached in (theirs, mine):
        assert sum(float(p.grad.abs().sum()) for p in reached.parameters() if p.grad is not None) > 0
    one, other = (dict(m.net.named_parameters()) for m in (theirs, mine))
    torch.testing.assert_close(
        other["native.embedding.embedding.weight"].grad, one["token_emb.emb.weight"].grad, rtol=0, atol=1e-6
    )
    length = SIZE + 1  # upstream reads a rest of the prompt twice, once as a memory
    expected, found = (model.generate(ids(2, length), 4, temperature=0.0) for model in (theirs, mine))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"ttt_module_paths": ("attn_layers.layers.1.1",)},
        {"ttt_module_paths": (("attn_layers.layers.1.1.ff.2", "attn_layers.layers.3.1.ff.2"),)},
        {"ttt_module_paths": ("episodic_mems", "attn_layers.layers.1.1"), "episodic_mem_len": 3},
    ],
    ids=lambda keywords: "-".join(keywords) or "plain",
)
def test_checkpoints_of_wrappers_go_both_ways(keywords: dict[str, Any]) -> None:
    """What learns stands in a module of upstream's wrapper, and has longer keys there."""
    theirs, mine = both({"rotary_pos_emb": True}, tbptt_steps=2, **keywords)
    for param in theirs.parameters():
        param.data += 0.1 * torch.randn_like(param)
    load_x_transformers(mine, theirs.state_dict())
    written, stored = to_x_transformers(mine), dict(theirs.state_dict())
    torch.testing.assert_close(written, stored, rtol=0, atol=1e-6, check_dtype=False)
    theirs.load_state_dict(written)
    expected, found = (model.net(ids(2, 4)) for model in (theirs, mine))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@TOGETHER
def test_several_steps_a_segment() -> None:
    theirs, mine = both({}, tbptt_steps=2, ttt_module_paths=("attn_layers.layers.1.1",), ttt_lr=0.1)
    expected, found = (model(ids(3, 18), ttt_recurrent_steps=3) for model in (theirs, mine))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("learns", [False, pytest.param(True, marks=TOGETHER)])
def test_episodic_memories(learns: bool) -> None:
    keywords: dict[str, Any] = {"episodic_mem_len": 3, "tbptt_steps": 2}
    if learns:
        keywords |= {"ttt_module_paths": ("episodic_mems", "attn_layers.layers.1.1"), "ttt_lr": 0.1}
    theirs, mine = both({"attn_kv_heads": 2}, **keywords)
    source = theirs.net.episodic_mems
    source = getattr(source, "module", source)
    with torch.no_grad():
        source.mem_kv.copy_(torch.randn_like(source.mem_kv))
        mine.net.episodic_mems.mem_kv.copy_(source.mem_kv)
    expected, found = (model(ids(3, 18)) for model in (theirs, mine))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    expected.backward()
    found.backward()
    torch.testing.assert_close(mine.net.episodic_mems.mem_kv.grad, source.mem_kv.grad, rtol=0, atol=1e-6)
    for length in (1, SIZE + 1):
        expected, found = (model.generate(ids(2, length), 4, temperature=0.0) for model in (theirs, mine))
        assert torch.equal(found, expected)


@TOGETHER
def test_another_inner_loss() -> None:
    from x_transformers.xl_autoregressive_wrapper import TTTMetaLearningTargetKLLoss as Theirs

    from variform.dialects.x_transformers.xl_autoregressive_wrapper import TTTMetaLearningTargetKLLoss as Mine

    sizes = {"dim": 24, "num_classes": 5, "dim_head": 8}
    first, second = Theirs(**sizes).double(), Mine(**sizes).double()
    second.to_prediction.load_state_dict(first.to_prediction.state_dict())
    second.to_meta_prediction.load_state_dict(first.to_meta_prediction.state_dict())
    load_x_transformers(second.encoder, first.encoder.state_dict())
    keywords = {"tbptt_steps": 2, "ttt_module_paths": ("attn_layers.layers.1.1",), "ttt_lr": 0.1}
    theirs, _ = both({}, ttt_custom_loss_module=first, **keywords)
    _, mine = both({}, ttt_custom_loss_module=second, **keywords)
    expected, found = (model(ids(3, 18)) for model in (theirs, mine))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_modules_that_are_named_here() -> None:
    assert upstream is not ours
    mine = net({})(ours)
    path = next(name for name, m in mine.named_modules() if type(m).__name__ == "MLP")
    keywords = {"tbptt_steps": 2, "ttt_lr": 0.1}
    found = XLAutoregressiveWrapper(mine, ttt_module_paths=(path,), **keywords)(ids(2, 13))
    again = XLAutoregressiveWrapper(mine, ttt_module_paths=("attn_layers.layers.1.1",), **keywords)(ids(2, 13))
    torch.testing.assert_close(found, again)
