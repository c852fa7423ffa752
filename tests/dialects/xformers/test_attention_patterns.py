"""Patterns and layouts under upstream's names, against loops over their definitions."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import variform.dialects.xformers.components.attention.attention_patterns as AP
from variform.dialects.xformers.components.attention.sparsity_config import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    SparsityConfig,
    VariableSparsityConfig,
)
from variform.errors import ConfigError

H, W = 6, 4
POINTS = list(itertools.product(range(H), range(W)))


def pixels(rule: Any) -> Tensor:
    """A rule on the row and column distance of two pixels, for all pairs."""
    return torch.tensor([[rule(abs(a - c), abs(b - d)) for c, d in POINTS] for a, b in POINTS])


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        (AP.axial_2d_pattern(H, W), pixels(lambda y, x: 0 in (y, x))),
        (AP.axial_nd_pattern(H, W), pixels(lambda y, x: 0 in (y, x))),
        (AP.local_2d_pattern(H, W, distance=2.5), pixels(lambda y, x: y * y + x * x < 6.25)),
        (AP.local_2d_pattern(H, W, distance=3, p=1.0), pixels(lambda y, x: y + x < 3)),
        (AP.local_nd_pattern(H, W, distance=2, p=2.0), pixels(lambda y, x: y * y + x * x < 4)),
        (AP.dilated_2d_pattern(H, W), pixels(lambda y, x: y % 2 == 0 and x % 2 == 0)),
        (AP.dilated_2d_pattern(H, W, k=3), pixels(lambda y, x: y % 3 == 0 and x % 3 == 0)),
        (AP.local_1d_pattern(9, 5), (torch.arange(9)[:, None] - torch.arange(9)).abs() < 3),
        (AP.causal_1d_pattern(9), torch.ones(9, 9, dtype=torch.bool).tril()),
    ],
)
def test_patterns_are_their_rules(pattern: Tensor, wanted: Tensor) -> None:
    assert pattern.dtype == torch.bool
    assert pattern.equal(wanted)


@pytest.mark.parametrize(
    ("distance", "wanted"),
    [
        (AP.local_nd_distance(H, W), pixels(lambda y, x: (y * y + x * x) ** 0.5)),
        (AP.local_nd_distance(H, W, p=1.0, weights=(1, 2)), pixels(lambda y, x: float(y + 2 * x))),
        (AP.local_2d_distance(H, W, p=1.0), pixels(lambda y, x: float(y + x))),
        (AP.horizontal_axial_2d_distance(H, W), pixels(lambda y, x: float(y))),
        (AP.vertical_axial_2d_distance(H, W, p=1.0), pixels(lambda y, x: float(x))),
        (AP.local_2d_gausian_distribution(H, W, sigma=2), torch.exp(-pixels(lambda y, x: (y * y + x * x) / 8.0))),
        (AP.local_nd_gaussian_distribution(H, W), torch.exp(-pixels(lambda y, x: (y * y + x * x) / 2.0))),
    ],
)
def test_distances_are_their_formulas(distance: Tensor, wanted: Tensor) -> None:
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, wanted)


def test_a_point_exactly_at_the_distance_is_left_out() -> None:
    pattern = AP.local_2d_pattern(20, 30, distance=5, p=2.0)
    assert not pattern[0, 3 * 30 + 4]  # 3, 4, 5
    assert pattern[0, 4]


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_swin_windows_are_those_of_a_rolled_image(shift: int) -> None:
    size, height, width = 4, 8, 12
    # Swin rolls the image, cuts it into windows, and tells apart in them what was not neighbouring before.
    piece = torch.zeros(height, width)
    for number, (rows, columns) in enumerate(
        itertools.product(*[(slice(0, -size), slice(-size, -shift or None), slice(-shift or None, None))] * 2)
    ):
        piece[rows, columns] = number if shift else 0
    rolled = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
    wanted = torch.zeros(height * width, height * width, dtype=torch.bool)
    for top, left in itertools.product(range(0, height, size), range(0, width, size)):
        ids, parts = (t[top : top + size, left : left + size].flatten() for t in (rolled, piece))
        wanted[ids[:, None], ids] = parts[:, None] == parts
    assert AP.swin_attention_pattern(height, width, size, shift).equal(wanted)


def test_random_patterns_have_their_share_or_their_number() -> None:
    pattern = AP.random_pattern(300, sparsity=0.8)
    assert abs(float(pattern.float().mean()) - 0.2) < 5 * 0.4 / 300
    weights = AP.local_2d_gausian_distribution(H, W, sigma=2)
    exact = AP.random_pattern_from_probability_matrix(weights, 57)
    assert exact.dtype == torch.bool
    assert exact.shape == weights.shape
    assert int(exact.sum()) == 57
    for make in (
        lambda generator: AP.random_pattern(30, 0.5, generator=generator),
        lambda generator: AP.random_pattern_from_probability_matrix(weights, 57, generator=generator),
    ):
        first, again, other = (make(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert first.equal(again)
        assert not first.equal(other)


def test_global_tokens_are_rows_and_columns() -> None:
    mask = torch.tensor([False, True, False, True])
    assert AP.global_token_pattern(mask).int().tolist() == [[0, 1, 0, 1], [1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]]


def test_blocks_are_taken_in_the_order_of_the_layout() -> None:
    layout = torch.rand(3, 4, 4) > 0.5
    x = torch.randn(2, 3, 12, 12)
    wanted = [x[:, h, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3] for h, i, j in layout.nonzero().tolist()]
    assert AP.block_sparsify_tensor(x, layout.long(), 3).equal(torch.stack(wanted, 1))


@pytest.mark.parametrize("block", [1, 3, 5, 16])
def test_layouts_and_patterns_lead_to_one_another(block: int) -> None:
    layout = (torch.rand(2, 4, 3) > 0.5).long()
    pattern = AP.layout_to_pattern(layout, block)
    assert pattern.dtype == torch.float32
    assert pattern.equal(torch.kron(layout.float(), torch.ones(block, block)))
    for given in (pattern, pattern.bool(), pattern.bool() & (torch.rand_like(pattern) > 0)):
        found = AP.pattern_to_layout(given, block)
        assert found.dtype == torch.int64
        assert found.equal(layout)
    assert AP.pattern_to_layout(pattern[1], block).equal(layout[1])


def test_alibi_patterns_keep_what_alibi_lowers_little() -> None:
    pattern = AP.alibi_pattern(0.9, (4, 8, 8))
    for head, row, column in itertools.product(range(4), range(8), range(8)):
        assert bool(pattern[head, row, column]) == (abs(row - column) * 2.0 ** (-2 * (head + 1)) < 0.9)
    assert pattern.shape == (4, 8, 8)
    assert pattern[:, 0, 0].all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: AP.random_pattern(4, 0.0),
        lambda: AP.random_pattern(4, 1.0),
        lambda: AP.local_1d_pattern(8, 4),
        lambda: AP.global_token_pattern(torch.ones(4)),
        lambda: AP.global_token_pattern(torch.ones(4, 1, dtype=torch.bool)),
        lambda: AP.local_nd_distance(3, 4, weights=(1,)),
        lambda: AP.local_2d_gausian_distribution(3, 4, sigma=0),
        lambda: AP.swin_attention_pattern(6, 8, 4),
        lambda: AP.swin_attention_pattern(8, 6, 4),
        lambda: AP.swin_attention_pattern(8, 8, 4, 4),
        lambda: AP.swin_attention_pattern(8, 8, 4, -1),
        lambda: AP.dilated_2d_pattern(8, 8, 0),
        lambda: AP.pattern_to_layout(torch.ones(8), 4),
        lambda: AP.pattern_to_layout(torch.ones(1, 1, 8, 8), 4),
        lambda: AP.pattern_to_layout(torch.ones(10, 8), 4),
        lambda: AP.pattern_to_layout(torch.ones(2, 8, 10), 4),
        lambda: AP.random_pattern_from_probability_matrix(torch.eye(3), 4),
        lambda: AP.block_sparsify_tensor(torch.ones(1, 2, 8, 8), torch.ones(3, 2, 2), 4),
        lambda: AP.alibi_pattern(0.1, (8, 8)),
    ],
)
def test_what_makes_no_sense_is_an_assertion_error(make: Any) -> None:
    with pytest.raises(AssertionError):
        make()


# ---- layouts by rule ----

BLOCKS = 10


def blocks(config: SparsityConfig, count: int = BLOCKS) -> Tensor:
    layout = config.make_layout(count * config.block_size)
    assert layout.dtype == torch.int64
    assert layout.shape == (config.num_heads, count, count)
    return layout


def made(rule: Any, count: int = BLOCKS) -> Tensor:
    return torch.tensor([[int(bool(rule(i, j))) for j in range(count)] for i in range(count)])


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (DenseSparsityConfig(2), lambda i, j: True),
        (FixedSparsityConfig(2), lambda i, j: i // 4 == j // 4 or j in (3, 7, 9)),
        (FixedSparsityConfig(2, num_local_blocks=5), lambda i, j: i // 5 == j // 5 or j in (4, 9)),
        (
            FixedSparsityConfig(2, num_local_blocks=6, num_global_blocks=2),
            lambda i, j: i // 6 == j // 6 or j in (4, 5, 8, 9),
        ),
        (
            FixedSparsityConfig(2, attention="unidirectional"),
            lambda i, j: j <= i and (i // 4 == j // 4 or j in (3, 7, 9)),
        ),
        (
            FixedSparsityConfig(2, horizontal_global_attention=True),
            lambda i, j: i // 4 == j // 4 or j in (3, 7, 9) or i in (3, 7, 9),
        ),
        (VariableSparsityConfig(2), lambda i, j: i // 4 == j // 4 or j == 0),
        (
            VariableSparsityConfig(2, local_window_blocks=[1, 3, 2], global_block_indices=[5, 20]),
            lambda i, j: j == 5 or (0, 1, 1, 1, 2, 2, 3, 3, 4, 4)[i] == (0, 1, 1, 1, 2, 2, 3, 3, 4, 4)[j],
        ),
        (
            VariableSparsityConfig(2, global_block_indices=[2], global_block_end_indices=[4]),
            lambda i, j: i // 4 == j // 4 or j in (2, 3),
        ),
        (
            VariableSparsityConfig(2, global_block_indices=[1], horizontal_global_attention=True),
            lambda i, j: i // 4 == j // 4 or 1 in (i, j),
        ),
        (
            VariableSparsityConfig(2, global_block_indices=[1], attention="unidirectional"),
            lambda i, j: j <= i and (i // 4 == j // 4 or j == 1),
        ),
        (BigBirdSparsityConfig(2, num_random_blocks=0), lambda i, j: abs(i - j) < 2 or 0 in (i, j)),
        (
            BigBirdSparsityConfig(2, num_random_blocks=0, num_sliding_window_blocks=5, num_global_blocks=2),
            lambda i, j: abs(i - j) < 3 or min(i, j) < 2,
        ),
        (
            BigBirdSparsityConfig(2, num_random_blocks=0, attention="unidirectional"),
            lambda i, j: j <= i and (abs(i - j) < 2 or 0 in (i, j)),
        ),
        (BSLongformerSparsityConfig(2), lambda i, j: abs(i - j) < 2 or 0 in (i, j)),
        (
            BSLongformerSparsityConfig(
                2, num_sliding_window_blocks=1, global_block_indices=[3, 8], global_block_end_indices=[5, 9]
            ),
            lambda i, j: i == j or {i, j} & {3, 4, 8} != set(),
        ),
        (
            BSLongformerSparsityConfig(2, global_block_indices=[2], attention="unidirectional"),
            lambda i, j: j <= i and (abs(i - j) < 2 or 2 in (i, j)),
        ),
    ],
)
def test_layouts_are_their_rules(config: SparsityConfig, rule: Any) -> None:
    layout = blocks(config)
    assert layout[0].equal(made(rule))
    assert layout[1].equal(layout[0])
    assert config.block_size == 16


def test_heads_may_take_different_global_blocks() -> None:
    config = FixedSparsityConfig(4, 8, different_layout_per_head=True, num_different_global_patterns=2)
    layout = blocks(config, 8)
    assert layout[0].equal(made(lambda i, j: i // 4 == j // 4 or j in (3, 7), 8))
    assert layout[1].equal(made(lambda i, j: i // 4 == j // 4 or j in (2, 6), 8))
    assert layout[2].equal(layout[0])


@pytest.mark.parametrize("cls", [DenseSparsityConfig, BSLongformerSparsityConfig])
def test_heads_of_one_rule_are_equal_whatever_is_asked(cls: Any) -> None:
    assert blocks(cls(3, 16, different_layout_per_head=True)).equal(blocks(cls(3, 16)))


@pytest.mark.parametrize("attention", ["bidirectional", "unidirectional"])
@pytest.mark.parametrize("cls", [BigBirdSparsityConfig, VariableSparsityConfig])
def test_random_blocks_are_counted_seeded_and_drawn_by_head(cls: Any, attention: str) -> None:
    def layout(seed: int | None, different: bool = True, count: int = 3) -> Tensor:
        return blocks(cls(3, 16, different, num_random_blocks=count, attention=attention, seed=seed), 40)

    first = layout(1)
    assert first.equal(layout(1))
    assert not first.equal(layout(2))
    assert not first[0].equal(first[1])
    together = layout(1, different=False)
    assert together[0].equal(together[1])
    assert together[0].equal(first[0])
    without = layout(None, count=0)
    extra = (first - without)[0].sum(1)
    assert int(extra.min()) >= 0
    assert int(extra.max()) == 3
    assert attention == "bidirectional" or not first.triu(1).any()
    torch.manual_seed(5)
    drawn = layout(None)
    assert not drawn.equal(layout(None))
    torch.manual_seed(5)
    assert layout(None).equal(drawn)


@pytest.mark.parametrize("quick", [AP.quick_fixed_layout, AP.quick_bslongformer_layout, AP.quick_variable_layout])
def test_quick_layouts_take_the_defaults(quick: Any) -> None:
    cls = {
        AP.quick_fixed_layout: FixedSparsityConfig,
        AP.quick_bslongformer_layout: BSLongformerSparsityConfig,
        AP.quick_variable_layout: VariableSparsityConfig,
    }[quick]
    assert quick(num_heads=2, block_size=8, seq_len=64).equal(cls(2, 8).make_layout(64))


def test_the_quick_bigbird_layout_is_drawn_by_torch() -> None:
    torch.manual_seed(0)
    layout = AP.quick_bigbird_layout(2, 8, 160)
    torch.manual_seed(0)
    assert layout.equal(BigBirdSparsityConfig(2, 8).make_layout(160))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: SparsityConfig(2, 16).make_layout(100), ValueError),
        (lambda: SparsityConfig(2, 16).make_layout(160), NotImplementedError),
        (lambda: SparsityConfig(0), ValueError),
        (lambda: DenseSparsityConfig(2, 0), ValueError),
        (lambda: DenseSparsityConfig(2, 16).make_layout(100), ValueError),
        (lambda: FixedSparsityConfig(2, num_local_blocks=4, num_global_blocks=3), ValueError),
        (lambda: FixedSparsityConfig(2, num_local_blocks=0), ValueError),
        (lambda: FixedSparsityConfig(2, attention="sideways"), NotImplementedError),
        (lambda: FixedSparsityConfig(2, attention="unidirectional", horizontal_global_attention=True), ValueError),
        (lambda: FixedSparsityConfig(2, num_different_global_patterns=2), ValueError),
        (lambda: FixedSparsityConfig(2, 16, True, num_different_global_patterns=5), ValueError),
        (lambda: VariableSparsityConfig(2, attention="sideways"), NotImplementedError),
        (lambda: VariableSparsityConfig(2, attention="unidirectional", horizontal_global_attention=True), ValueError),
        (lambda: VariableSparsityConfig(2, global_block_indices=[1, 2], global_block_end_indices=[3]), ValueError),
        (lambda: VariableSparsityConfig(2, global_block_indices=[3], global_block_end_indices=[3]), ValueError),
        (lambda: VariableSparsityConfig(2, local_window_blocks=[]), ValueError),
        (lambda: VariableSparsityConfig(2, num_random_blocks=11).make_layout(160), ValueError),
        (lambda: BigBirdSparsityConfig(2, attention="sideways"), NotImplementedError),
        (lambda: BigBirdSparsityConfig(2, num_random_blocks=11).make_layout(160), ValueError),
        (lambda: BigBirdSparsityConfig(2, num_sliding_window_blocks=11).make_layout(160), ValueError),
        (lambda: BigBirdSparsityConfig(2, num_global_blocks=11).make_layout(160), ValueError),
        (lambda: BSLongformerSparsityConfig(2, attention="sideways"), NotImplementedError),
        (lambda: BSLongformerSparsityConfig(2, global_block_indices=[1], global_block_end_indices=[]), ValueError),
        (lambda: BSLongformerSparsityConfig(2, global_block_indices=[1], global_block_end_indices=[0]), ValueError),
        (lambda: BSLongformerSparsityConfig(2, num_sliding_window_blocks=11).make_layout(160), ValueError),
    ],
)
def test_settings_that_make_no_sense_are_refused_as_upstream_did(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        make()
    assert isinstance(caught.value, ConfigError) or error is NotImplementedError
