"""The gallery has every feature, and is what its words and the option sets make. `tests/snippets` runs its snippets."""

from tests.parity.x_transformers import gallery


def test_every_feature_has_words_and_a_snippet() -> None:
    assert gallery.missing() == []


def test_the_page_is_what_is_generated() -> None:
    assert gallery.PAGE.read_text(encoding="utf-8") == gallery.page(), (
        "write it anew: python -m tests.parity.x_transformers.gallery"
    )
