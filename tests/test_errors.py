"""Errors keep their text on the way through a pickle, as from a worker process."""

import pickle

import pytest

from variform.errors import BackendError, ConfigError, Problem, ShapeError


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a rule", path="a.b", value=3, hint="do this"),
        ConfigError("a rule without a value"),
        ConfigError([Problem("a", "one"), Problem("b", "two", None)]),
        ShapeError("sizes"),
        BackendError("no"),
    ],
    ids=str,
)
def test_errors_survive_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
