"""Errors: every problem with its place, value and remedy; as text, as data, through pickles."""

import pickle

import pytest

from variform.errors import (
    BackendError,
    ConfigError,
    Problem,
    ShapeError,
    VariformError,
    did_you_mean,
    join_path,
    nearest_divisors,
    nearest_multiples,
)

TWO = [Problem("a.0.b", "must be odd", 4, "nearest: 3 or 5"), Problem("", "nothing there")]


def test_a_problem_reads_place_rule_value_remedy() -> None:
    assert str(TWO[0]) == "a.0.b: must be odd (got 4); nearest: 3 or 5"
    assert str(TWO[1]) == "nothing there"
    assert str(Problem("a", "is wrong", None)) == "a: is wrong (got None)"


def test_long_values_are_cut() -> None:
    assert len(str(Problem("a", "is wrong", list(range(10000))))) < 200


def test_problems_as_data() -> None:
    assert TWO[0].to_json() == {"path": "a.0.b", "message": "must be odd", "value": "4", "hint": "nearest: 3 or 5"}
    assert TWO[1].to_json() == {"path": "", "message": "nothing there"}


def test_an_error_holds_all_problems_and_shows_the_first() -> None:
    error = ConfigError(TWO)
    assert (error.path, error.value, error.hint) == ("a.0.b", 4, "nearest: 3 or 5")
    assert str(error).splitlines() == ["2 problems:", f"  {TWO[0]}", f"  {TWO[1]}"]
    assert str(ConfigError(TWO[0])) == str(TWO[0])
    single = ConfigError("is wrong", path="a", value=3, hint="try 4")
    assert single.problems == (Problem("a", "is wrong", 3, "try 4"),)


def test_errors_survive_pickling() -> None:
    for error in (ConfigError(TWO), ConfigError("is wrong", path="a"), ShapeError("too long"), BackendError("no")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
    assert pickle.loads(pickle.dumps(ConfigError("is wrong", path="a"))).path == "a"


@pytest.mark.parametrize(
    ("error", "base"), [(ConfigError, ValueError), (ShapeError, ValueError), (BackendError, RuntimeError)]
)
def test_errors_are_what_python_users_expect(error: type[Exception], base: type[Exception]) -> None:
    assert issubclass(error, base)
    assert issubclass(error, VariformError)


def test_paths_join() -> None:
    assert [join_path(*pair) for pair in (("a", "b"), ("", "b"), ("a", ""), ("", ""))] == ["a.b", "b", "a", ""]
    assert Problem("b", "is wrong").below("a.0").path == "a.0.b"
    assert Problem("", "is wrong").below("a").path == "a"


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("heds", ["heads", "dim"], "did you mean 'heads'?"),
        ("Heads", ["heads", "dim"], "did you mean 'heads'?"),
        ("xyz", ["heads", "dim"], "known: dim, heads"),
        ("xyz", [], "none is known"),
        ("xyz", [f"name{i:02}" for i in range(20)], "known: name00, name01"),
    ],
)
def test_hints_for_names(name: str, known: list[str], hint: str) -> None:
    assert did_you_mean(name, known).startswith(hint)


@pytest.mark.parametrize(
    ("value", "wanted", "hint"), [(12, 5, "4 or 6"), (12, 100, "12"), (7, 3, "1 or 7"), (12, 0, "1")]
)
def test_hints_for_divisors(value: int, wanted: int, hint: str) -> None:
    assert nearest_divisors(value, wanted) == f"nearest that divide it: {hint}"


@pytest.mark.parametrize(("value", "divisor", "hint"), [(10, 4, "8 or 12"), (3, 4, "4"), (0, 4, "4")])
def test_hints_for_multiples(value: int, divisor: int, hint: str) -> None:
    assert nearest_multiples(value, divisor) == f"nearest: {hint}"
