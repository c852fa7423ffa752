"""Attention over fixed patterns against a plain softmax with the rule written out, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.core.spec import Spec
from variform.errors import ConfigError
from variform.ops.masks import Dense
from variform.parts.attention.patterned import BigBirdAttention, GlobalAttention, LongformerAttention, RandomAttention
from variform.parts.kinds import Sides

EXACT = {"rtol": 1e-10, "atol": 1e-10}
LENGTH = 13


def plain(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float | None = None) -> Tensor:
    """softmax over the allowed keys alone, zeros where there are none."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = torch.where(allowed, scores, -torch.inf).softmax(-1).nan_to_num(0.0)
    return weights @ v


def qkv(length: int = LENGTH, kv_heads: int = 4) -> list[Tensor]:
    shapes = [(2, heads, length, size) for heads, size in ((4, 3), (kv_heads, 3), (kv_heads, 5))]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def rule(sees: Callable[[int, int], bool], length: int = LENGTH, causal: bool = False) -> Tensor:
    pairs = [[sees(i, j) and (j <= i or not causal) for j in range(length)] for i in range(length)]
    return torch.tensor(pairs)


RULES: list[tuple[Spec, bool, Callable[[int, int], bool]]] = [
    (GlobalAttention.spec(tokens=(2, 7)), False, lambda i, j: i in (2, 7) or j in (2, 7)),
    (GlobalAttention.spec(tokens=(2, 7)), True, lambda i, j: i in (2, 7) or j in (2, 7)),
    (GlobalAttention.spec(tokens=()), False, lambda i, j: False),
    (LongformerAttention.spec(window=5, tokens=(0, 9)), False, lambda i, j: abs(i - j) < 3 or {i, j} & {0, 9} != set()),
    (LongformerAttention.spec(window=4), True, lambda i, j: i - j < 4 or j == 0),
    (LongformerAttention.spec(window=1, tokens=()), False, lambda i, j: i == j),
    (
        BigBirdAttention.spec(block=2, global_blocks=1, random_blocks=0),
        False,
        lambda i, j: abs(i // 2 - j // 2) < 2 or min(i // 2, j // 2) == 0,
    ),
    (
        BigBirdAttention.spec(block=3, window_blocks=1, global_blocks=0, random_blocks=0),
        True,
        lambda i, j: i // 3 == j // 3,
    ),
]


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa"])
@pytest.mark.parametrize(("spec", "causal", "sees"), RULES)
def test_values_and_gradients_are_those_of_the_rule(
    spec: Spec, causal: bool, sees: Callable[[int, int], bool], backend: str
) -> None:
    part = vf.build(spec.replace(backend=backend, scale=0.7), causal=causal)
    given = qkv(kv_heads=2)
    out, wanted = part(*given, Sides()), plain(*given, rule(sees, causal=causal), scale=0.7)
    torch.testing.assert_close(out, wanted, **EXACT)
    weights = torch.randn_like(out)
    got, right = (torch.autograd.grad((y * weights).sum(), given, allow_unused=True) for y in (out, wanted))
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b, **EXACT)


def seen(part: Any, length: int) -> Tensor:
    """The pairs that a part uses: the weights are not zero exactly there."""
    q, k, _ = (t.detach() for t in qkv(length))
    v = torch.eye(length, dtype=torch.float64).expand(2, 4, length, length)
    with torch.no_grad():
        return (part(q, k, v, Sides()) > 0).all(0).all(0)


def test_bigbird_links_each_block_with_earlier_ones() -> None:
    blocks = 40
    spec = BigBirdAttention.spec(block=1, window_blocks=1, global_blocks=0, random_blocks=3, seed=5)
    pairs = seen(vf.build(spec), blocks)
    assert pairs.equal(pairs.T)
    causal = seen(vf.build(spec, causal=True), blocks)
    assert causal.equal(pairs.tril())
    assert (causal.fill_diagonal_(False).sum(1)[6:] >= 2).all()  # of three draws one may be the position itself
    other = vf.build(spec.replace(seed=6))
    assert not seen(other, blocks).equal(pairs)
    wide = seen(vf.build(spec.replace(block=4)), blocks)
    assert wide.equal(torch.kron(pairs[:10, :10].int(), torch.ones(4, 4).int()).bool())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("r", [0.05, 0.4])
def test_random_sees_itself_and_a_share_of_the_others(r: float, causal: bool) -> None:
    length = 200
    pairs = seen(vf.build(RandomAttention.spec(r=r, seed=1), causal=causal), length)
    assert pairs.diagonal().all()
    others = length * (length - 1) // (2 if causal else 1)
    share = (int(pairs.sum()) - length) / others
    assert abs(share - r) < 5 * (r * (1 - r) / others) ** 0.5
    assert not causal or not pairs.triu(1).any()
    assert not seen(vf.build(RandomAttention.spec(r=r, seed=2), causal=causal), length).equal(pairs)
    given = qkv(length)
    part = vf.build(RandomAttention.spec(r=r, seed=1), causal=causal)
    torch.testing.assert_close(part(*given, Sides()), plain(*given, pairs), **EXACT)


def test_random_pairs_are_saved_with_the_weights() -> None:
    first, second = (vf.build(RandomAttention.spec(r=0.3, seed=seed)) for seed in (1, 2))
    pairs = seen(first, 50)
    assert not seen(second, 50).equal(pairs)
    second.load_state_dict(first.state_dict())
    assert seen(second, 50).equal(pairs)
    assert seen(copy.deepcopy(first), 50).equal(pairs)
    second.load_state_dict({"seed": torch.tensor(9)}, assign=True)
    assert not seen(second, 50).equal(pairs)


def test_pairs_drawn_anew_in_training_and_fixed_in_eval() -> None:
    part = vf.build(RandomAttention.spec(r=0.3, constant_masking=False))
    part.train()
    draws = [seen(part, 60) for _ in range(3)]
    assert not draws[0].equal(draws[1])
    assert all(draw.diagonal().all() for draw in draws)
    mean = sum(seen(part, 60).float() for _ in range(400)) / 400
    off = mean[~torch.eye(60, dtype=torch.bool)]
    assert (off - 0.3).abs().max() < 6 * (0.21 / 400) ** 0.5
    torch.manual_seed(3)
    first = seen(part, 60)
    torch.manual_seed(3)
    assert seen(part, 60).equal(first)
    part.eval()
    assert seen(part, 60).equal(seen(part, 60))
    assert seen(part, 60).equal(seen(vf.build(RandomAttention.spec(r=0.3)), 60))
    assert seen(vf.build(RandomAttention.spec(r=0.3)).train(), 60).equal(seen(part, 60))


def test_masks_and_padding_restrict_the_pattern_further() -> None:
    part = vf.build(LongformerAttention.spec(window=5, tokens=(0,)))
    given, allowed = qkv(), torch.rand(LENGTH, LENGTH) > 0.4
    valid = torch.rand(2, LENGTH) > 0.3
    pairs = rule(lambda i, j: abs(i - j) < 3 or 0 in (i, j)) & allowed & valid[:, None, None]
    out = part(*given, Sides(mask=Dense(allowed), k_valid=valid))
    torch.testing.assert_close(out, plain(*given, pairs), **EXACT)


def test_dropout_acts_in_training_alone() -> None:
    given = qkv()
    for spec in (RandomAttention.spec(r=0.5), GlobalAttention.spec(), BigBirdAttention.spec(block=2)):
        part = vf.build(spec.replace(dropout=0.5))
        part.train()
        assert not torch.equal(part(*given, Sides()), part(*given, Sides()))
        part.eval()
        torch.testing.assert_close(part(*given, Sides()), vf.build(spec)(*given, Sides()), **EXACT)


@pytest.mark.parametrize(
    ("spec", "backend"),
    [
        (LongformerAttention.spec(window=65), "-> block_sparse"),
        (GlobalAttention.spec(tokens=tuple(range(9))), "-> block_sparse"),
        (BigBirdAttention.spec(random_blocks=1), "-> block_sparse"),
        (RandomAttention.spec(r=0.01), "-> sparse"),
    ],
)
def test_long_sequences_visit_few_pairs(spec: Spec, backend: str) -> None:
    model = vf.models.bert(vocab_size=11, dim=16, depth=1, heads=2, max_seq_len=2048)
    model = vf.override(model, {"stacks.0.layers.*.sublayers.0.body.attention": spec})
    assert backend in str(vf.explain(model, batch=1, length=2048))
    told = vf.describe(model, batch=1, length=2048)
    assert told.flops < told.flops_dense / 2


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (LongformerAttention.spec(window=4), "window"),
        (LongformerAttention.spec(window=0), "window"),
        (LongformerAttention.spec(window=3, tokens=(-1,)), "tokens"),
        (GlobalAttention.spec(tokens=(-1,)), "tokens"),
        (GlobalAttention.spec(backend="fastest"), "backend"),
        (BigBirdAttention.spec(window_blocks=2), "window_blocks"),
        (BigBirdAttention.spec(block=0), "block"),
        (BigBirdAttention.spec(global_blocks=-1), "global_blocks"),
        (BigBirdAttention.spec(random_blocks=-1), "random_blocks"),
        (BigBirdAttention.spec(seed="x"), "seed"),
        (RandomAttention.spec(r=0.0), "r"),
        (RandomAttention.spec(r=1.5), "r"),
        (RandomAttention.spec(constant_masking=3), "constant_masking"),
        (RandomAttention.spec(scale=-1.0), "scale"),
    ],
)
def test_settings_that_make_no_sense_are_refused(spec: Spec, path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        vf.build(spec)
