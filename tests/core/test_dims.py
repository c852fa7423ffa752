import copy
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from variform.core.dims import Dim, ceil_div, parse_dim, parse_shape, shape_text, size_of
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


# ---- divisions ----


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("(L//2)//2", "L//4"),
        ("((L + 1)//2 + 1)//2", "(L + 3)//4"),
        ("(L + 3)//2", "(L + 1)//2 + 1"),
        ("L - L//2", "(L + 1)//2"),
        ("L//2 + (L + 1)//2", "L"),
        ("L//3 + (L + 1)//3 + (L + 2)//3", "L"),
        ("(2*L + 1)//4", "L//2"),
        ("3*L//2", "L + L//2"),
        ("-(-L//3)", "(L + 2)//3"),
        ("(B*L*6)//4", "B*L + (B*L)//2"),
        ("(B*L - B*L + 7)//2", "3"),
        ("(L//2)*2 + L - 2*(L//2)", "L"),
        ("((L + 1)//2 - L//2)*((L + 1)//2 - L//2)", "(L + 1)//2 - L//2"),
    ],
)
def test_divided_sizes_that_are_equal_are_found_equal(text: str, same: str) -> None:
    a, b = parse_dim(text), parse_dim(same)
    assert a == b
    assert hash(a) == hash(b)
    assert a - b == 0


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("2*(L//2)", "L"),
        ("(L + 1)//2", "L//2"),
        ("(L + 1)//2", "L//2 + 1"),
        ("(L//2)//3", "L//5"),
        ("L//2 + C//2", "(L + C)//2"),
        ("(B*L)//2", "B*(L//2)"),
        ("(L + 1)//997", "L//997"),
        ("L//1009", "(L + 1008)//1009"),
    ],
)
def test_divided_sizes_that_differ_somewhere_are_different(text: str, other: str) -> None:
    assert parse_dim(text) != parse_dim(other)


def test_ceil_div() -> None:
    assert str(ceil_div(L, 2)) == "(L + 1)//2"
    assert ceil_div(ceil_div(L, 2), 3) == ceil_div(L, 6)
    assert [ceil_div(n, 4) for n in (1, 4, 5)] == [1, 1, 2]


def expressions() -> st.SearchStrategy[str]:
    """Texts of integer expressions over B and L."""
    atoms = st.sampled_from(["B", "L", "1", "2", "5"])
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(inner, atoms).map(lambda t: f"{t[0]}*{t[1]}"),
            st.tuples(inner, st.sampled_from([2, 3, 4])).map(lambda t: f"(({t[0]})//{t[1]})"),
        ),
        max_leaves=5,
    )


GRID = [{"B": b, "L": length} for b in range(1, 8) for length in range(1, 10)]
GRID += [{"B": b, "L": 7} for b in range(1, 600)] + [{"B": 5, "L": length} for length in range(1, 600)]
GRID += [{"B": 997 * i % 1021, "L": 541 * i % 1031} for i in range(1, 300)]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(expressions(), expressions())
def test_equality_is_that_of_the_values(text: str, other: str) -> None:
    a, b = parse_dim(text), parse_dim(other)
    codes = [compile(t, "size", "eval") for t in (text, other)]
    values = [[eval(code, {}, point) for point in GRID] for code in codes]
    assert values == [[size_of(dim, point) for point in GRID] for dim in (a, b)]
    if a == b:
        assert values[0] == values[1]
        assert hash(a) == hash(b)
    else:
        assert values[0] != values[1]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(expressions(), expressions(), st.integers(1, 6), st.integers(1, 6), st.integers(-4, 4))
def test_equal_forms_are_found_equal(text: str, other: str, by: int, again: int, plus: int) -> None:
    pairs = [
        (f"({text})//{by}//{again}", f"({text})//{by * again}"),
        (f"({text} + {by * plus})//{by}", f"({text})//{by} + {plus}"),
        (f"-(-({text})//{by})", f"({text} + {by - 1})//{by}"),
        (f"{by}*(({text})//{by}) + {other} - {by}*(({text})//{by})", other),
    ]
    for left, right in pairs:
        a, b = parse_dim(left), parse_dim(right)
        assert a == b, (left, right)
        assert hash(a) == hash(b)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(expressions())
def test_an_expression_reads_back_as_it_prints(text: str) -> None:
    dim = parse_dim(text)
    if isinstance(dim, Dim):
        assert parse_dim(str(dim)) == dim
        assert str(parse_dim(str(dim))) == str(dim)


@pytest.mark.parametrize(
    "text",
    ["", "L +", "L/2", "L**2", "a.b", "f(L)", "1.5", "'L'", "L // B", "__import__('os')", "L//0", "True", "(" * 300],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a size"):
        parse_dim(text)


@pytest.mark.parametrize("value", [True, None, 1.5, b"L", ("L",)])
def test_what_is_no_text_and_no_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="not a size"):
        parse_dim(value)


@pytest.mark.parametrize("value", [0, -3])
def test_numbers_start_at_one(value: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        parse_dim(value)
    with pytest.raises(ConfigError, match="at least 1"):
        parse_shape(["B", f"L - L + {value}"])


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
