import copy
import pickle
import random

import pytest

from variform.core.dims import Dim, parse_dim, parse_shape, shape_text, size_of
from variform.errors import ConfigError

B, L = Dim.symbol("B"), Dim.symbol("L")


def test_equal_expressions_are_equal_however_written() -> None:
    assert parse_dim("2*L + L - 1") == 3 * L - 1
    assert parse_dim("(B + L)*(B + L)") == B * B + 2 * B * L + L * L
    assert parse_dim("(4*L + 3)//2") == 2 * L + 1
    assert parse_dim("L - L + 3") == 3
    assert parse_dim("-(-L)") == L
    assert L != B
    assert L + 0 == L
    assert hash(B * L) == hash(L * B)


def test_text() -> None:
    assert str(L - 2) == "L - 2"
    assert str(2 * B) == "2*B"
    assert str((L + 1) // 2) == "(L + 1)//2"
    assert str(L // 3) == "L//3"
    assert str(5 - L) == "-L + 5"
    assert shape_text(parse_shape(["BSZ", 12, "L_in", "L_in"])) == "(BSZ, 12, L_in, L_in)"


def random_text(depth: int) -> str:
    if depth == 0:
        return random.choice(["B", "L", str(random.randint(0, 5))])
    left, right = random_text(depth - 1), random_text(depth - 1)
    return random.choice([f"({left} + {right})", f"({left} - {right})", f"({left} * {right})", f"({left})//2", left])


def test_values_are_those_of_the_expression() -> None:
    random.seed(0)
    for _ in range(300):
        text = random_text(4)
        dim = parse_dim(text)
        for b, length in ((1, 1), (2, 7), (3, 10)):
            wanted = eval(text, {"B": b, "L": length})
            assert size_of(dim, {"B": b, "L": length}) == wanted, text
        if isinstance(dim, Dim):
            assert parse_dim(str(dim)) == dim, text


@pytest.mark.parametrize("text", ["", "L +", "L/2", "L**2", "a.b", "f(L)", "1.5", "'L'", "L // B", "__import__('os')"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a size"):
        parse_dim(text)


@pytest.mark.parametrize("value", [0, -3])
def test_numbers_start_at_one(value: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        parse_dim(value)


def test_division_by_less_than_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="positive"):
        L // 0


def test_symbols_and_copies() -> None:
    dim = (B * L + 1) // 2
    assert isinstance(dim, Dim)
    assert dim.symbols() == {"B", "L"}
    assert pickle.loads(pickle.dumps(dim)) == dim
    assert copy.deepcopy(dim) == dim
    with pytest.raises(AttributeError):
        dim.terms = ()
