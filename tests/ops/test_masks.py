import copy
import math
import pickle
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from variform.errors import ConfigError, ShapeError
from variform.ops.masks import (
    After,
    And,
    Axial,
    Blocks,
    Causal,
    Coarse,
    Dense,
    Dilated,
    Documents,
    Everything,
    Global,
    KeyPadding,
    Mask,
    Near,
    Padding,
    Random,
    RandomBy,
    RandomLinks,
    Segments,
    ShiftedWindows,
    Window,
    counts,
    from_additive,
    from_key_padding,
    from_torch_mha,
)
from variform.ops.masks.candidates import candidates

LAYOUT = torch.tensor([[True, False, True], [False, True, False], [True, True, False]])

# Of two points of a grid of 3 x 4 with rows 0..2 and columns 0..3.
RANDOM = Random(0.4, seed=3).dense(torch.arange(12), torch.arange(12))
LINKS = RandomLinks(2, seed=1).dense(torch.arange(6), torch.arange(6))


def apart(q: int, k: int) -> tuple[int, int]:
    return abs(q // 4 - k // 4), abs(q % 4 - k % 4)


# A mask and the same rule for one pair of positions in batch row b, head h.
RULES: list[tuple[Mask, Callable[[int, int, int, int], bool]]] = [
    (Everything(), lambda b, h, q, k: True),
    (Causal(), lambda b, h, q, k: k <= q),
    (Window(3), lambda b, h, q, k: 0 <= q - k <= 3),
    (Window(2, 4), lambda b, h, q, k: -4 <= q - k <= 2),
    (Window(0), lambda b, h, q, k: q == k),
    (Window(2, None), lambda b, h, q, k: q - k <= 2),
    (Window(None, 3), lambda b, h, q, k: q - k >= -3),
    (Window(None, None), lambda b, h, q, k: True),
    (Causal() & Window(2, None), lambda b, h, q, k: 0 <= q - k <= 2),
    (Causal() & Window(2, 4), lambda b, h, q, k: 0 <= q - k <= 2),
    (Global([0, 1, 5]), lambda b, h, q, k: q in (0, 1, 5) or k in (0, 1, 5)),
    (Global([]), lambda b, h, q, k: False),
    (Global(range(1, 40, 2)), lambda b, h, q, k: q % 2 == 1 or k % 2 == 1),
    (~Causal(), lambda b, h, q, k: k > q),
    (Causal() & (Window(1) | Global([0])), lambda b, h, q, k: k <= q and (q - k <= 1 or k == 0 or q == 0)),
    (Padding(torch.tensor([4, 9])), lambda b, h, q, k: k < (4, 9)[b]),
    (Documents(torch.arange(12) // 4), lambda b, h, q, k: q // 4 == k // 4),
    (
        Documents(torch.stack([torch.arange(12) // 4, torch.zeros(12).long()])),
        lambda b, h, q, k: b == 1 or q // 4 == k // 4,
    ),
    (Blocks(LAYOUT, 4), lambda b, h, q, k: bool(LAYOUT[q // 4, k // 4])),
    (Blocks(torch.stack([LAYOUT, ~LAYOUT]), 4), lambda b, h, q, k: bool(LAYOUT[q // 4, k // 4]) != (h == 1)),
    (Dense(torch.eye(12, dtype=torch.bool), by="position"), lambda b, h, q, k: q == k),
    (Near((3, 4), 2.0), lambda b, h, q, k: sum(d * d for d in apart(q, k)) < 4),
    (Near((3, 4), 2, p=1), lambda b, h, q, k: sum(apart(q, k)) < 2),
    (Near((3, 4), 9, p=3), lambda b, h, q, k: sum(d**3 for d in apart(q, k)) < 9**3),
    (Near((3, 4), 2, p=math.inf), lambda b, h, q, k: max(apart(q, k)) < 2),
    (Near((3, 4), 1, p=0), lambda b, h, q, k: q == k),
    (Near((3, 4), 2, weights=(0, 1.5)), lambda b, h, q, k: 1.5 * apart(q, k)[1] < 2),
    (Near((10,), 3), lambda b, h, q, k: abs(q - k) < 3 and max(q, k) < 10),
    (Axial((3, 4)), lambda b, h, q, k: 0 in apart(q, k)),
    (
        Axial((2, 3, 2)),
        lambda b, h, q, k: (q // 6 != k // 6) + (q // 2 % 3 != k // 2 % 3) + (q % 2 != k % 2) < 2,
    ),
    (ShiftedWindows((2, 6), 2), lambda b, h, q, k: q % 6 // 2 == k % 6 // 2),
    (
        ShiftedWindows((2, 6), 2, 1),
        lambda b, h, q, k: q // 6 == k // 6 and (q % 6 + 1) // 2 == (k % 6 + 1) // 2,
    ),
    (Dilated((3, 4), 2), lambda b, h, q, k: all(d % 2 == 0 for d in apart(q, k))),
    (Dilated((3, 4), 3), lambda b, h, q, k: all(d % 3 == 0 for d in apart(q, k))),
    (Coarse(Window(0), 5), lambda b, h, q, k: q // 5 == k // 5),
    (Coarse(Causal() & Window(1), 3) | Global([2]), lambda b, h, q, k: 0 <= q // 3 - k // 3 <= 1 or 2 in (q, k)),
    (Random(0.4, seed=3), lambda b, h, q, k: bool(RANDOM[q, k])),
    (RandomBy(0.4, torch.tensor(3)), lambda b, h, q, k: bool(RANDOM[q, k])),
    (Coarse(RandomLinks(2, seed=1), 2), lambda b, h, q, k: bool(LINKS[q // 2, k // 2])),
]


def _expected(rule: Callable[[int, int, int, int], bool], q: list[list[int]], k: list[list[int]]) -> Tensor:
    return torch.tensor([[[[rule(b, h, i, j) for j in k[b]] for i in q[b]] for h in range(2)] for b in range(2)])


@pytest.mark.parametrize(("mask", "rule"), RULES, ids=lambda value: repr(value) if isinstance(value, Mask) else "")
def test_dense_is_the_rule_at_any_positions(mask: Mask, rule: Callable[[int, int, int, int], bool]) -> None:
    plain = list(range(12))
    ragged_q, ragged_k = [[3, 4, 5], [0, 9, 11]], [[2, 4, 6, 8, 3], [1, 0, 9, 10, 11]]
    dense = mask.dense(torch.arange(12), torch.arange(12))
    assert dense.dtype == torch.bool
    assert dense.dim() in (2, 4)
    torch.testing.assert_close(dense.expand(2, 2, 12, 12), _expected(rule, [plain] * 2, [plain] * 2))
    q_pos, k_pos = torch.tensor(ragged_q), torch.tensor(ragged_k)
    dense = mask.dense(q_pos, k_pos)
    torch.testing.assert_close(dense.expand(2, 2, 3, 5), _expected(rule, ragged_q, ragged_k))
    dense = mask.dense(q_pos[0], k_pos)
    torch.testing.assert_close(dense.expand(2, 2, 3, 5), _expected(rule, [ragged_q[0]] * 2, ragged_k))


@pytest.mark.parametrize(("mask", "rule"), RULES, ids=lambda value: repr(value) if isinstance(value, Mask) else "")
def test_mask_mod_pairs_and_layout_agree_with_dense(mask: Mask, rule: object) -> None:
    dense = mask.dense(torch.arange(11), torch.arange(12)).expand(2, 2, 11, 12)
    points = torch.meshgrid(torch.arange(2), torch.arange(2), torch.arange(11), torch.arange(12), indexing="ij")
    torch.testing.assert_close(mask.mask_mod()(*points).expand(2, 2, 11, 12), dense)
    positions = torch.stack([torch.arange(11), torch.arange(11)])
    torch.testing.assert_close(mask.mask_mod(positions, torch.arange(12))(*points).expand(2, 2, 11, 12), dense)
    assert mask.pairs(11, 12) == pytest.approx(dense.double().mean().item() * 11 * 12)
    assert mask.density(11, 12) == pytest.approx(dense.double().mean().item())
    padded = torch.nn.functional.pad(dense.any(0), (0, 3, 0, 4)).view(2, 3, 5, 3, 5)
    torch.testing.assert_close(mask.layout(11, 12, 5).expand(2, 3, 3), padded.any(-1).any(2))


@pytest.mark.parametrize(
    "mask",
    [
        Causal(),
        Window(3),
        Window(2, 5),
        Window(4, None),
        Window(None, 2),
        Causal() & Window(4),
        Everything(),
        Window(50),
    ],
)
def test_closed_formula_of_bands(mask: Mask) -> None:
    for q_len in (0, 1, 2, 7, 20):
        for k_len in (0, 1, 3, 8, 20):
            assert mask.pairs(q_len, k_len) == int(
                mask.dense(torch.arange(q_len), torch.arange(k_len)).expand(q_len, k_len).sum()
            )


def test_counting_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("variform.ops.masks.counts._STRIP_ELEMENTS", 64)
    for mask in (Dense(torch.rand(40, 40) > 0.5), Blocks(LAYOUT, 16), Dense(torch.rand(2, 3, 40, 40) > 0.5)):
        dense = mask.dense(torch.arange(40), torch.arange(40))
        assert mask.pairs(40) == pytest.approx(dense.double().mean().item() * 1600)
        blocks = dense.unflatten(-1, (4, 10)).unflatten(-3, (4, 10)).any(-1).any(-2)
        torch.testing.assert_close(mask.layout(40, 40, 10), blocks.any(0) if blocks.dim() == 4 else blocks)


def test_segments() -> None:
    ids = torch.tensor([[0, 0, 1], [2, 3, 3]])
    dense = (Segments() & Causal()).dense(torch.arange(3), torch.arange(3), ids, ids)
    assert dense[0, 0].tolist() == [[True, False, False], [True, True, False], [False, False, True]]
    assert dense[1, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]
    assert Segments().needs_segments
    with pytest.raises(ShapeError, match="segment ids"):
        Segments().dense(torch.arange(3), torch.arange(3))


def test_algebra_simplifies() -> None:
    assert (Everything() & Causal()) == Causal()
    assert (Everything() | Causal()) == Everything()
    assert ~~Causal() == Causal()
    assert (Causal() & Window(2) & Window(3)) == And((Causal(), Window(2), Window(3)))
    assert Causal().is_causal
    assert (Causal() & Window(4, 2)).band() == (4, 0)
    assert (Causal() | Window(4)).band() is None
    with pytest.raises(TypeError):
        Causal() & torch.ones(2)  # type: ignore[operator]


def test_equality_is_structural() -> None:
    assert (Causal() & Window(2)) == (Causal() & Window(2))
    assert hash(Global([1, 0])) == hash(Global((0, 1)))
    assert Window(2) != Window(3)
    assert Causal() != "causal"
    tensor = torch.ones(2, 2, dtype=torch.bool)
    assert Dense(tensor) == Dense(tensor)
    assert Dense(tensor) != Dense(tensor.clone())
    assert len({Causal(), Causal(), Window(1)}) == 2


@pytest.mark.parametrize("mask", [mask for mask, _ in RULES] + [Segments()])
def test_masks_are_immutable_values(mask: Mask) -> None:
    for other in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask)), pytree.tree_map(lambda leaf: leaf, mask)):
        assert type(other) is type(mask)
        assert repr(other) == repr(mask)
        if not mask.has_tensors:
            assert other == mask
    _, spec = pytree.tree_flatten(mask)
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
    assert mask.has_tensors == bool(pytree.tree_leaves(mask))
    with pytest.raises(AttributeError):
        mask.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text", ["Causal() & Window(3)", "(Window(1, 2) | Global((0, 4))) & Causal()", "~(Causal() & Window(3))"]
)
def test_repr_is_the_constructor_call(text: str) -> None:
    assert repr(eval(text)) == text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(torch.zeros(2, 2)), "from_additive"),
        (lambda: Dense(torch.ones(2, 2, 2, dtype=torch.bool)), "per='batch'"),
        (lambda: Dense(torch.ones(2, dtype=torch.bool)), r"\[Lq, Lk\]"),
        (lambda: Dense(torch.ones(2, 2, dtype=torch.bool), per="head"), "3-D"),
        (lambda: Dense(torch.ones(1, 2, 2, dtype=torch.bool), per="row"), "per is"),  # type: ignore[arg-type]
        (lambda: Padding(torch.ones(2)), "integers"),
        (lambda: Documents(torch.ones(2)), "integers"),
        (lambda: KeyPadding(torch.ones(2, 2)), "bool"),
        (lambda: Blocks(torch.ones(2, 2), 4), "bool"),
        (lambda: Blocks(LAYOUT, 0), "block"),
        (lambda: Window(-1), ">= 0"),
        (lambda: Global([-1]), ">= 0"),
        (lambda: from_torch_mha(torch.zeros(2, 2)), "bool"),
        (lambda: from_key_padding(), "exactly one"),
        (lambda: from_additive(torch.tensor([[0.0, 1.0]])), "DenseBias"),
        (lambda: from_additive(torch.tensor([[0, 1]])), "floats"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], Mask], message: str) -> None:
    with pytest.raises((ShapeError, ConfigError), match=message):
        make()


def test_sizes_are_never_broadcast_by_accident() -> None:
    for shape in ((3, 1), (1, 4), (3, 5), (2, 1, 3, 1)):
        with pytest.raises(ShapeError, match="does not fit"):
            Dense(torch.ones(shape, dtype=torch.bool)).dense(torch.arange(3), torch.arange(4))
    with pytest.raises(ShapeError, match="batch"):
        Padding(torch.tensor([1, 2, 3])).dense(torch.zeros(2, 3).long(), torch.arange(3))
    with pytest.raises(ShapeError, match="head"):
        (Causal() & Blocks(LAYOUT.expand(3, 3, 3), 4)).check(2, 4, 12, 12)


def test_beyond_a_layout_nothing_is_attended() -> None:
    dense = (Blocks(torch.ones(1, 1, dtype=torch.bool), 2) | Documents(torch.zeros(2).long())).dense(
        torch.arange(4), torch.arange(4)
    )
    assert dense.tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2


def test_foreign_conventions() -> None:
    ignored = torch.tensor([[False, True], [False, False]])
    positions = torch.arange(2)
    assert from_torch_mha(ignored).dense(positions, positions).tolist() == [[True, False], [True, True]]
    additive = torch.zeros(2, 2).masked_fill(ignored, -torch.inf)
    assert from_additive(additive).dense(positions, positions).tolist() == [[True, False], [True, True]]
    for mask in (from_key_padding(ignore=ignored), from_key_padding(keep=~ignored)):
        assert mask.dense(positions, positions)[:, 0, 0].tolist() == [[True, False], [True, True]]


def test_plot() -> None:
    pytest.importorskip("matplotlib")
    axes = (Causal() & Window(3)).plot(8)
    assert "Window(3)" in axes.get_title()
    assert Padding(torch.tensor([2, 3])).plot(4).get_xlabel() == "key"


def test_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"variform\[plot\]"):
        Causal().plot(4)


def test_after_lets_every_query_see_the_keys_in_front() -> None:
    mask = After(Causal() & Window(2), 3)
    dense = mask.dense(torch.arange(5), torch.arange(8))
    assert dense[:, :3].all()
    assert torch.equal(dense[:, 3:], (Causal() & Window(2)).dense(torch.arange(5), torch.arange(5)))
    assert mask.pairs(5, 8) == 3 * 5 + (Causal() & Window(2)).pairs(5)
    keep = torch.tensor([[True, False, True]])
    assert After(KeyPadding(keep), 1).dense(torch.arange(2), torch.arange(4))[0].tolist() == [
        True,
        *keep[0].tolist(),
    ]
    with pytest.raises(ShapeError):
        After(KeyPadding(keep), 2).dense(torch.arange(2), torch.arange(4))


# ---- tiles that hold no pair ----

LONG = [
    Window(30, 20) | Global((0, 700)),
    Causal() & (Window(90) | Global((5, 640))),
    Coarse(Window(1, 1) | Global((0,)) | RandomLinks(2), 16),
    Causal() & Coarse(Window(1) | RandomLinks(1), 48),
    Causal() & ~Window(300),
    Global((3,)) & Window(4, 4),
    Axial((30, 30)) | Random(0.001),
]


@pytest.mark.parametrize("mask", LONG, ids=repr)
@pytest.mark.parametrize(("q_len", "k_len", "block"), [(899, 870, 48), (512, 512, 64), (130, 900, 32)])
def test_passing_over_empty_tiles_changes_no_count_and_no_layout(
    mask: Mask, q_len: int, k_len: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = mask.dense(torch.arange(q_len), torch.arange(k_len)).expand(q_len, k_len)
    monkeypatch.setattr(counts, "_LONG", 0)
    monkeypatch.setattr(counts, "_FEW", 1.0)
    monkeypatch.setattr(counts, "_TILE", block)
    padded = torch.nn.functional.pad(dense, (0, -k_len % block, 0, -q_len % block))
    tiles = padded.view(padded.shape[0] // block, block, -1, block).transpose(1, 2)
    assert mask.layout(q_len, k_len, block).equal(tiles.any(-1).any(-1))
    assert counts._counted(mask, q_len, k_len, 0) == int(dense.sum())
    later = mask.dense(torch.arange(7, q_len + 7), torch.arange(k_len))
    assert counts._counted(mask, q_len, k_len, 7) == int(later.sum())
    assert not (candidates(mask, q_len, k_len, block) < tiles.any(-1).any(-1)).any()


def test_long_sparse_masks_are_planned_from_few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(counts, "_strips", lambda *given: seen.append(given))
    mask = Causal() & (Window(255) | Global([0]))
    assert mask.layout(8192, 8192, 128).sum() == 64 * 3 - 3 + 61
    assert counts._counted(mask, 8192, 8192, 0) == 256 * 8192 - 255 * 256 // 2 + (8192 - 256)
    assert not seen
