import pytest
import torch
from torch import Tensor

import variform as vf
from variform.core.dims import parse_shape, shape_text
from variform.parts.op.rearrange import Rearrange


def shapes(pattern: str, shape: tuple[int | str, ...], **lengths: int) -> str:
    spec = vf.resolve(Rearrange.spec(pattern=pattern, lengths=lengths or None))
    return shape_text(Rearrange.shapes(spec.args, (parse_shape(shape),))[0])


def run(pattern: str, x: Tensor, **lengths: int) -> Tensor:
    op = vf.build(Rearrange.spec(pattern=pattern, lengths=lengths or None))
    out: Tensor = op(x)
    expected = shapes(pattern, tuple(x.shape), **lengths)
    assert expected == shape_text(tuple(out.shape))
    return out


def test_heads_are_split_and_merged() -> None:
    x = torch.randn(2, 5, 12)
    split = run("b l (h d) -> b h l d", x, h=3)
    assert torch.equal(split, x.view(2, 5, 3, 4).transpose(1, 2))
    assert torch.equal(run("b h l d -> b l (h d)", split), x)


def test_every_kind_of_axis() -> None:
    x = torch.randn(2, 6, 5)
    assert torch.equal(run("b l d -> b d l", x), x.mT)
    assert torch.equal(run("b (l r) d -> b l (r d)", x, r=2), x.view(2, 3, 10))
    assert torch.equal(run("b (r l) d -> b l (r d)", x, r=2), x.view(2, 2, 3, 5).transpose(1, 2).reshape(2, 3, 10))
    assert torch.equal(run("b l d -> (b l) d", x), x.view(12, 5))
    assert torch.equal(run("b l d -> b 1 l d", x), x.unsqueeze(1))
    assert torch.equal(run("b () l d -> b l d", x.unsqueeze(1)), x)
    assert torch.equal(run("... d -> d ...", x), x.permute(2, 0, 1))
    assert torch.equal(run("b ... (h d) -> b h ... d", x, d=1), x.permute(0, 2, 1).unsqueeze(-1))
    assert torch.equal(run("b l d -> (b 1 l) d", x), x.view(12, 5))


def test_it_is_differentiable() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    op = vf.build(Rearrange.spec(pattern="b (l r) d -> (r d) b l", lengths={"r": 2}))
    assert torch.autograd.gradcheck(op, (x,))


@pytest.mark.parametrize(
    ("pattern", "shape", "lengths", "expected"),
    [
        ("b l (h d) -> b h l d", ("B", "L", 768), {"h": 12}, "(B, 12, L, 64)"),
        ("b h l d -> b l (h d)", ("B", 12, "L", 64), {}, "(B, L, 768)"),
        ("b l d -> (b l) d", ("B", "L", 8), {}, "(B*L, 8)"),
        ("b (l r) d -> b l (r d)", ("B", "4*L", 8), {"r": 2}, "(B, 2*L, 16)"),
        ("(b r) l -> b (r l)", ("6*B", "L"), {"r": 3}, "(2*B, 3*L)"),
        ("b l d -> b d l 1", ("B", "L + 1", 8), {}, "(B, 8, L + 1, 1)"),
    ],
)
def test_sizes_are_expressions(pattern: str, shape: tuple[int | str], lengths: dict[str, int], expected: str) -> None:
    assert shapes(pattern, shape, **lengths) == expected


@pytest.mark.parametrize(
    ("pattern", "shape", "lengths", "words"),
    [
        ("b l (h d) -> b h l d", ("B", "L", 768), {"h": 7}, "split 768, which 7 does not divide; nearest"),
        ("b (l r) d -> b l (r d)", ("B", "L", 8), {"r": 2}, "split L, which 2 does not divide"),
        ("b (l r) d -> b l (r d)", ("B", "2*L + 1", 8), {"r": 2}, "which 2 does not divide"),
        ("b l (h d) -> b h l d", ("B", "L", 768), {}, "all its axes but one need a length: h, d"),
        ("b l (h d) -> b h l d", ("B", "L", 768), {"h": 12, "d": 32}, "make 384, and the size there is 768"),
        ("b l d -> b d l", ("B", "L", 8), {"d": 9}, "make 9, and the size there is 8"),
        ("b 1 d -> b d", ("B", "L", 8), {}, "make 1, and the size there is L"),
        ("b l d -> b d l", ("B", "L"), {}, "is for 3 sizes, and the input has 2"),
        ("b l ... d -> b d l ...", ("B", "L"), {}, "is for at least 3 sizes, and the input has 2"),
    ],
)
def test_sizes_that_do_not_fit(pattern: str, shape: tuple[int | str], lengths: dict[str, int], words: str) -> None:
    with pytest.raises(vf.ShapeError) as caught:
        shapes(pattern, shape, **lengths)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "lengths", "path", "words"),
    [
        ("b l d", {}, "pattern", "two sides"),
        ("b l -> b l -> l b", {}, "pattern", "two sides"),
        ("b l (h d -> b l h d", {}, "pattern", "brackets"),
        ("b ((l) d) -> b l d", {}, "pattern", "brackets"),
        ("b l l -> b l", {}, "pattern", "names l twice"),
        ("b l d -> b l", {}, "pattern", "has d on one side only"),
        ("b l -> b l d", {}, "pattern", "neither drops nor invents"),
        ("b 2 -> 2 b", {}, "pattern", "'2' is no axis"),
        ("b (l ...) -> b l ...", {}, "pattern", "'...' stands outside of brackets"),
        ("b l d -> b d l", {"e": 2}, "lengths.e", "no axis 'e'"),
    ],
)
def test_patterns_that_are_none(pattern: str, lengths: dict[str, int], path: str, words: str) -> None:
    with pytest.raises(vf.ConfigError) as caught:
        vf.resolve(Rearrange.spec(pattern=pattern, lengths=lengths))
    assert [problem.path for problem in caught.value.problems] == [path]
    assert words in str(caught.value)


def test_contents() -> None:
    assert Rearrange.makes({}, ("ids",)) == ("ids",)
    assert Rearrange.makes({}, ("features",)) == ("",)
