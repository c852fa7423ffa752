"""The gallery has every feature, and is what its words and the option sets make. `tests/snippets` runs its snippets."""

import re

import pytest

import variform as vf
from tests.parity.x_transformers import gallery
from tests.parity.x_transformers.ledger import featured
from tests.parity.x_transformers.option_set import OptionSet
from variform.core.schema import part_info

PAPER = re.compile(r"arXiv:\d{4}\.\d{4,5}|https://\S+")


def test_every_feature_has_words_and_a_snippet() -> None:
    assert gallery.missing() == []


def test_the_page_is_what_is_generated() -> None:
    assert gallery.PAGE.read_text(encoding="utf-8") == gallery.page(), (
        "write it anew: python -m tests.parity.x_transformers.gallery"
    )


@pytest.mark.parametrize("one", featured(), ids=lambda one: one.name)
def test_parts_are_registered_and_papers_are_links(one: OptionSet) -> None:
    kind, _, rest = one.part.partition("/")
    name, _, field = rest.partition(".")
    fields = {known["name"] for known in part_info(vf.parts()[kind, name])["fields"]}
    assert not field or field in fields
    assert all(PAPER.fullmatch(paper) for paper in one.paper.split(", ") if paper)


def test_names_are_understood_alone() -> None:
    names = [one.feature for one in featured()]
    assert sorted(set(names), key=str.lower) == names, "two features have one name"
    assert all(re.match(r"[A-Z]|xPos", name) for name in names)
