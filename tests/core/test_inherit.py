"""The INHERIT marker."""

import copy
import pickle

import pytest

from variform.core.inherit import INHERIT, Inherit, inherit


def test_there_is_one_object_per_fallback() -> None:
    assert Inherit() is INHERIT
    assert inherit(False) is inherit(False)
    assert inherit(False) is not inherit(None)
    assert inherit(False) is not INHERIT


def test_a_fallback_is_told_apart_by_type() -> None:
    assert inherit(0) is not inherit(False)
    assert inherit("1") is not inherit(1)


@pytest.mark.parametrize("marker", [INHERIT, inherit(False), inherit(3), inherit(None)], ids=repr)
def test_markers_survive_copy_deepcopy_and_pickle(marker: Inherit) -> None:
    assert copy.copy(marker) is marker
    assert copy.deepcopy({"a": [marker]})["a"][0] is marker
    assert pickle.loads(pickle.dumps(marker)) is marker


def test_a_marker_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(INHERIT)


def test_markers_read_as_they_are_written() -> None:
    assert repr(INHERIT) == "INHERIT"
    assert repr(inherit(2)) == "inherit(2)"
