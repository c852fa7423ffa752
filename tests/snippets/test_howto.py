"""Every question that the guide of xFormers answers has an answer in ours, with a recipe that runs."""

from pathlib import Path

import pytest

from tests.snippets.markdown import blocks

HOWTO = Path(__file__).parents[2] / "docs" / "howto.md"

# A heading of the guide that came with xFormers -> ours.
HEADINGS = {
    "HOW TO ?": "How to",
    "Understanding the dimension conventions": "Dimensions",
    "Batch dimensions": "Batch, sequence, features",
    "Attention masks": "Masks of attention",
    "Sparse Attention": "Sparse attention",
    "How to use it ?": "Use it",
    "Create complex sparsity patterns with xFormers": "Make patterns and join them",
    "Replace all attentions from an existing ViT model with a sparse equivalent ?": "Make a vision transformer sparse",
    "Some more examples": "Notebooks",
    "BlockSparseAttention": "Block-sparse attention",
    "From cherry picking attentions to building whole models": "From one attention to whole models",
    "Testing out an attention mechanism": "Try an attention",
    "Building an encoder, comparing to PyTorch": "Build an encoder",
    "PyTorch Encoder Layer": "PyTorch's layer, for comparison",
    "Warning": "What is the other way round",
    "Block factory": "A block from a configuration",
    "Fair enough, now I just want to build models and be done with it": "Build whole models",
    "PyTorch Transformer": "PyTorch's transformer, for comparison",
    "model factory": "A model from a configuration",
    "practical usecase: microGPT": "microGPT",
    "another practical usecase: microViT": "microViT",
    "Extensibility": "Extending",
    "Extend the xFormers parts zoo locally": "A part of your own",
    "Contributing an extension to the xFormers repository": "Contributing it",
    "Reversible block": "Reversible blocks",
    "Intro": "The idea",
    "Transformer": "In a transformer",
    "In practice": "In practice",
    "Hierarchical Transformers": "Hierarchical transformers",
}

# These hold other headings, or links to what runs elsewhere; every other one has a block of its own.
WITHOUT_A_BLOCK = {
    "Sparse attention",
    "Notebooks",
    "From one attention to whole models",
    "Build an encoder",
    "Build whole models",
    "Extending",
    "Reversible blocks",
    "Dimensions",
}


def headings() -> list[str]:
    """Those outside code, in order."""
    found, inside = [], False
    for line in HOWTO.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        if line.startswith("#") and not inside:
            found.append(line.lstrip("#").strip())
    return found


def test_every_heading_has_a_counterpart_in_order() -> None:
    ours = headings()
    places = [ours.index(name) for name in HEADINGS.values()]
    assert places == sorted(places)
    assert len(set(places)) == len(HEADINGS)


@pytest.mark.parametrize("heading", [name for name in HEADINGS.values() if name not in WITHOUT_A_BLOCK])
def test_it_has_a_recipe(heading: str) -> None:
    assert any(block.heading == heading and block.language in ("python", "bash") for block in blocks(HOWTO))


def test_what_has_no_recipe_has_text() -> None:
    text = HOWTO.read_text(encoding="utf-8")
    assert set(headings()) >= WITHOUT_A_BLOCK
    assert all(f"](notebooks/{name}.md)" in text for name in ("2d_attention_patterns", "vision_transformers"))
