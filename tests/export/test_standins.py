"""Attention in standalone files: the bits of the library's on sequences where it skips what a mask hides."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.configaformers.programs import demo
from variform.dialects.configaformers.attention_offset_module import get_alibi
from variform.dialects.configaformers.model_builder import ConfigaFormer
from variform.export import to_source
from variform.export.standins import attention as standin
from variform.export.standins.scores import attend_by_formula, attend_offset, attend_whole
from variform.ops.attention import block_sparse
from variform.ops.attention.offset import attend_offset as library_offset

SIZES: dict[str, Any] = {"vocab_size": 11, "dim": 24, "depth": 1, "heads": 4}


def standalone(model: Any) -> Any:
    names: dict[str, Any] = {"__name__": "standalone"}
    exec(to_source(model), names)
    found = names["make_model"]()
    names["load_weights"](found, model.state_dict())
    return found.eval()


def spread(model: torch.nn.Module, scale: float) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)


@pytest.mark.parametrize("scale", [0.02, 0.6, 20.0])
def test_an_offset_is_visited_as_the_library_visits_it(scale: float) -> None:
    model = ConfigaFormer(**demo(dim=64, heads=4, depth=2, vocab=50, rotate_dim=8), verbose=False).eval()
    spread(model, scale)
    file, offset = standalone(model), get_alibi(4, 1024)
    for length in (255, 256, 257, 513, 700, 1024):
        inputs = {"emb_ids": torch.randint(50, (2, length)), "attn_offset": offset}
        with torch.no_grad():
            assert torch.equal(file(inputs)["x"], model(inputs)["x"]), length
    assert torch.equal(file(inputs)["x"], model(inputs)["x"]), "with gradients"


def offsets() -> dict[str, Tensor]:
    later = torch.ones(300, 300, dtype=torch.bool).triu(1)
    alibi = get_alibi(4, 300)
    padded = torch.zeros(2, 1, 300, 300)
    padded[1, :, :, 200:] = -torch.inf
    numbers = alibi.clone()
    numbers[:, :, 7] = -1e38
    empty = alibi.clone()
    empty[:, 1, 9] = -torch.inf
    return {
        "alibi": alibi,
        "causal": torch.zeros(1, 1, 300, 300).masked_fill(later, -torch.inf),
        "half": torch.zeros(1, 1, 300, 300).masked_fill(later, torch.finfo(torch.half).min),
        "padded": padded,
        "numbers": numbers,
        "empty": empty,
        "nothing": torch.full((1, 4, 300, 300), -torch.inf),
        "random": torch.randn(2, 4, 300, 300) * 50,
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [0.3, 3.0, 200.0])
@pytest.mark.parametrize("name", list(offsets()))
def test_offsets_of_all_kinds(name: str, scale: float, causal: bool) -> None:
    torch.manual_seed(2)
    offset = offsets()[name]
    q, k, v = (torch.randn(2, 4, 300, 8, requires_grad=True) for _ in range(3))
    ours = library_offset(q * scale, k * scale, v, offset.expand(-1, 4, -1, -1), 8**-0.5, causal)
    theirs = attend_offset(q * scale, k * scale, v, offset.expand(-1, 4, -1, -1), causal)
    assert torch.equal(ours, theirs)
    assert bool(theirs.isfinite().all())
    if name == "nothing":
        assert not theirs.any()
        return
    if scale > 100:  # float32 holds no gradient of scores in the hundred thousands, whichever kernel computes it
        q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
        wide = offset.double().expand(-1, 4, -1, -1)
        ours = library_offset(q * scale, k * scale, v, wide, 8**-0.5, causal)
        theirs = attend_offset(q * scale, k * scale, v, wide, causal)
    expected = torch.autograd.grad(ours.square().sum(), (q, k, v))
    for found, wanted in zip(torch.autograd.grad(theirs.square().sum(), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", sorted(set(offsets()) - {"numbers"}))
def test_all_pairs_at_once_is_the_formula(name: str) -> None:
    offset = offsets()[name].double().expand(-1, 4, -1, -1)
    q, k, v = torch.randn(3, 2, 4, 300, 8, dtype=torch.float64)
    best = offset.amax(-1, keepdim=True)
    whole = attend_whole(q, k, v, offset, best, 8**-0.5)
    torch.testing.assert_close(whole, attend_by_formula(q, k, v, offset, best, 8**-0.5), rtol=1e-10, atol=1e-10)


def test_an_offset_that_learns() -> None:
    offset = get_alibi(4, 270).clone().requires_grad_()
    q, k, v = torch.randn(3, 2, 4, 270, 8)
    ours, theirs = library_offset(q, k, v, offset, 8**-0.5), attend_offset(q, k, v, offset)
    assert torch.equal(ours, theirs)
    (wanted,) = torch.autograd.grad(ours.square().sum(), offset)
    (found,) = torch.autograd.grad(theirs.square().sum(), offset)
    assert torch.equal(found, wanted)


def local(window: int, causal: bool, bias: str | None = None) -> vf.Spec:
    spec = (vf.models.gpt if causal else vf.models.bert)(**SIZES, max_seq_len=1024)
    body = "stacks.0.layers.0.sublayers.0.body"
    changes = [f"{body}.attention={{part: local, window: {window}}}"]
    return vf.override(spec, [*changes, *([f"{body}.position_bias={{part: {bias}}}"] if bias else [])])


WINDOWS = {
    "narrow": lambda: local(33, True),
    "wide": lambda: local(150, True),
    "both sides": lambda: local(65, False),
    "both sides, wide": lambda: local(201, False),
    "alibi": lambda: local(50, True, "alibi"),
    "t5": lambda: local(50, True, "t5"),
    "grouped": lambda: vf.models.llama(**SIZES, max_seq_len=None, kv_heads=2, window=40),
}


@pytest.mark.parametrize("name", list(WINDOWS))
def test_windows_on_long_sequences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vf.build(WINDOWS[name]()).eval()
    spread(model, 0.2)
    file, ran = standalone(model), []
    run = block_sparse.BlockSparseBackend.run
    monkeypatch.setattr(block_sparse.BlockSparseBackend, "run", lambda self, call: ran.append(1) or run(self, call))
    for length in (511, 512, 777, 1024):
        ids = torch.randint(11, (2, length))
        with torch.no_grad():
            assert torch.equal(file(ids), model(ids)), length
    assert ran, "the library visits blocks here"


def biased(causal: bool, bias: str, **more: Any) -> vf.Spec:
    body = "stacks.0.layers.0.sublayers.0.body"
    changes = [f"{body}.position_bias={{part: {bias}}}", *(f"{body}.{name}={value}" for name, value in more.items())]
    return vf.override((vf.models.gpt if causal else vf.models.bert)(**SIZES, max_seq_len=300), changes)


MEMORY = "{part: softmax, memory: {part: learned, count: 3}}"
BIASED = {
    "alibi": lambda: biased(True, "alibi"),
    "alibi that learns": lambda: biased(True, "alibi, learned: true"),
    "alibi, both sides": lambda: biased(False, "alibi"),
    "alibi in a window": lambda: biased(True, "alibi", attention="{part: local, window: 9}"),
    "t5": lambda: biased(True, "t5"),
    "t5, both sides": lambda: biased(False, "t5"),
    "t5 and patterns": lambda: biased(True, "t5", attention="{part: longformer, window: 99}"),
    "t5 and memory": lambda: biased(True, "t5", attention=MEMORY),
    "t5 and groups": lambda: biased(True, "t5", kv_heads=2),
    "t5 and dropout": lambda: biased(True, "t5", attention="{part: softmax, dropout: 0.1}"),
    "a network": lambda: biased(True, "dynamic"),
}


@pytest.mark.parametrize("name", BIASED)
def test_biases_are_added_to_as_many_queries_as_in_the_library(name: str) -> None:
    model = vf.build(BIASED[name]()).eval()
    spread(model, 0.2)
    file = standalone(model)
    for batch, length in ((2, 9), (2, 89), (3, 101), (9, 290)):  # of 2 * 4 * 91 ** 2 pairs on, chunks pay
        ids = torch.randint(11, (batch, length))
        with torch.no_grad():
            assert torch.equal(file(ids), model(ids)), length
        assert torch.equal(file(ids), model(ids)), f"with gradients: {length}"
        if batch < 9:
            valid = torch.arange(length) < torch.tensor([length, length - 3, 7])[:batch, None]
            assert torch.equal(file(ids, valid=valid), model(ids, valid=valid)), f"with padding: {length}"


def test_blocks_have_the_gradients_of_a_dense_mask() -> None:
    q, k, v = (torch.randn(2, 4, 530, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    sides = standin.Sides()
    blocks = standin.attend_blocks(q, k[:, :2], v[:, :2], sides, 40, 3)
    distance = torch.arange(530) - torch.arange(530)[:, None]
    dense = standin.attend(q, k[:, :2], v[:, :2], (distance >= -40) & (distance <= 3))
    torch.testing.assert_close(blocks, dense, rtol=1e-10, atol=1e-10)
    expected = torch.autograd.grad(dense.square().sum(), (q, k, v))
    for found, wanted in zip(torch.autograd.grad(blocks.square().sum(), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_grouped_keys_and_one_query() -> None:
    spec = vf.models.seq2seq(vocab_size=11, max_seq_len=24, dim=32, depth=2, heads=4)
    for layer in (0, 1):
        spec = vf.override(spec, [f"decoder.stacks.0.layers.{layer}.sublayers.1.body.kv_heads=2"])
    model = vf.build(spec).eval()
    spread(model, 0.3)
    file = standalone(model)
    for length in (1, 2):
        source, target = torch.randint(11, (2, 13)), torch.randint(11, (2, length))
        for valid in (None, torch.arange(13) < torch.tensor([[9], [13]])):
            assert torch.equal(file(source, target, source_valid=valid), model(source, target, source_valid=valid))
