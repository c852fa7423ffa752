import pytest

from variform.inspect.symbols import Sizes

LENGTHS = Sizes((2, 3, 4), (64, 64, 32))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((768, 768, 768), "768"),
        ((2, 3, 4), "B"),
        ((64, 64, 32), "L"),
        ((65, 65, 33), "L + 1"),
        ((63, 63, 31), "L - 1"),
        ((192, 192, 96), "3 L"),
        ((16, 16, 8), "L // 4"),
        ((128, 192, 128), "B * L"),
        ((130, 195, 132), "B * (L + 1)"),
        ((20, 30, 40), "B * 10"),
        ((64, 65, 32), "64"),  # fits nothing, so it stays a number
        ((0, 0, 0), "0"),
        ((4, 0, 0), "4"),
    ],
)
def test_sizes_are_named_where_every_run_agrees(values: tuple[int, ...], name: str) -> None:
    assert LENGTHS.symbol(values) == name


def test_rounding_up_and_down_are_told_apart() -> None:
    sizes = Sizes((2, 3, 4), (33, 33, 31))
    assert sizes.symbol((16, 16, 15)) == "L // 2"
    assert sizes.symbol((17, 17, 16)) == "ceil(L / 2)"


def test_shapes() -> None:
    assert LENGTHS.shape([(2, 64, 8), (3, 64, 8), (4, 32, 8)]) == "(B, L, 8)"
    assert LENGTHS.shape([(64,), (64,), (32,)]) == "(L,)"
    assert LENGTHS.shape([(2, 64), (3,), (4, 32)]) == "(2, 64)"
    assert Sizes((2, 3), None).shape([(2, 64), (3, 64)]) == "(B, 64)"
