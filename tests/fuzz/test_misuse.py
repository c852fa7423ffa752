"""Models that are called wrongly say so in one sentence: a `ShapeError` or `ConfigError` that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.ops.masks import Dense

B, L = 2, 5
IDS = torch.arange(B * L).view(B, L) % 11
VALID = torch.ones(B, L, dtype=torch.bool)
POSITIONS = torch.arange(L)
SEGMENTS = torch.zeros(B, L, dtype=torch.long)
SQUARE = torch.ones(L, L, dtype=torch.bool)
CONTEXT = torch.linspace(-1, 1, B * 4 * 6).view(B, 4, 6)
KEEP = torch.ones(B, 4, dtype=torch.bool)
FEATURES = torch.linspace(-1, 1, B * L * 16).view(B, L, 16)
IMAGES = torch.linspace(-1, 1, B * 3 * 8 * 8).view(B, 3, 8, 8)


def _stack(*bodies: Any) -> dict[str, Any]:
    return {"part": "stack", "layers": [{"part": "sublayer", "body": body} for body in bodies]}


def _decoder(*bodies: Any, **more: Any) -> Any:
    data = {"part": "transformer", "dim": 16, "heads": 2, "causal": True, "vocab_size": 11, "head": "lm"}
    data |= {"embedding": "embedding/tokens", "stacks": [_stack(*bodies)]}
    return vf.build({**data, **more}).eval()


SIZES: dict[str, int] = {"vocab_size": 11, "dim": 16, "depth": 2, "heads": 2}
MODELS: dict[str, Any] = {
    "gpt": vf.build(vf.models.gpt(**SIZES, max_seq_len=8)).eval(),
    "llama": vf.build(vf.models.llama(**SIZES, max_seq_len=8)).eval(),
    "window": vf.build(vf.models.llama(**SIZES, window=3)).eval(),
    "linear": _decoder({"part": "multi_head", "attention": "linear"}),
    "cross": _decoder("multi_head", "cross_attention", dim_context=6),
    "cross_linear": _decoder({"part": "cross_attention", "attention": "linear"}, dim_context=6),
    "pair": vf.build(vf.models.seq2seq(**SIZES, max_seq_len=8)).eval(),
    "images": vf.build(vf.models.vit(image_size=8, patch_size=4, dim=16, depth=1, heads=2, classes=3)).eval(),
    "features": _decoder("multi_head", embedding=None, head=None, vocab_size=None),
    "prefixed": _decoder("multi_head", embedding={"part": "prefixed", "embedding": "embedding/tokens"}),
}
DECODERS = ("gpt", "llama", "window", "linear")

IDS_WRONG: dict[str, tuple[Any, str]] = {
    "a list": ([[1, 2]], "must be a tensor, not a list"),
    "nothing": (None, "must be a tensor"),
    "one sequence": (IDS[0], "batch of one"),
    "a number": (IDS[0, 0], "batch of one"),
    "three axes": (IDS[None], "floats"),
    "four axes": (IDS[None, None], "floats"),
    "floats": (IDS.float(), "integers"),
    "bool": (IDS > 3, "integers"),
    "negative": (IDS - 20, r"\[0, 11\)"),
    "too large": (IDS + 20, r"\[0, 11\)"),
    "elsewhere": (IDS.to("meta"), "meta"),
    "an empty batch": (IDS[:0], "batch is empty"),
    "no token": (IDS[:, :0], "sequence is empty"),
}


@pytest.mark.parametrize("what", IDS_WRONG)
@pytest.mark.parametrize("name", DECODERS)
def test_wrong_token_ids(name: str, what: str) -> None:
    wrong, words = IDS_WRONG[what]
    with pytest.raises(vf.ShapeError, match=words):
        MODELS[name](wrong)


STREAMS_WRONG: dict[str, dict[str, Any]] = {
    "valid as floats": {"valid": VALID.float()},
    "valid as a list": {"valid": VALID.tolist()},
    "valid of one row": {"valid": VALID[0]},
    "valid of three axes": {"valid": VALID[None]},
    "valid too short": {"valid": VALID[:, :4]},
    "valid to be broadcast": {"valid": VALID[:1]},
    "valid elsewhere": {"valid": VALID.to("meta")},
    "segments as floats": {"segments": SEGMENTS.float()},
    "segments as bool": {"segments": VALID},
    "segments of one row": {"segments": SEGMENTS[0]},
    "segments too short": {"segments": SEGMENTS[:, :4]},
    "segments as a list": {"segments": SEGMENTS.tolist()},
    "positions as floats": {"positions": POSITIONS.float()},
    "positions as bool": {"positions": VALID},
    "positions of other rows": {"positions": POSITIONS.expand(3, L)},
    "positions to be broadcast": {"positions": POSITIONS.expand(1, L)},
    "positions of three axes": {"positions": POSITIONS.expand(1, B, L)},
    "positions of no axis": {"positions": POSITIONS[0]},
    "positions too short": {"positions": POSITIONS[:4]},
    "positions below zero": {"positions": POSITIONS - 2},
    "positions as a list": {"positions": POSITIONS.tolist()},
    "mask as floats": {"mask": SQUARE.float()},
    "mask of three axes": {"mask": SQUARE.expand(B, L, L)},
    "mask of one axis": {"mask": SQUARE[0]},
    "mask too small": {"mask": SQUARE[:4, :4]},
    "mask of one row": {"mask": SQUARE[:1]},
    "mask of other rows": {"mask": SQUARE.expand(3, 1, L, L)},
    "mask of other heads": {"mask": SQUARE.expand(1, 3, L, L)},
    "mask as a list": {"mask": SQUARE.tolist()},
    "mask as a name": {"mask": "causal"},
    "context to a model that reads none": {"context": CONTEXT},
    "context_mask to a model that reads none": {"context_mask": VALID},
    "condition to a model that reads none": {"condition": FEATURES[:, 0]},
    "prefix to a model that reads none": {"prefix": FEATURES},
}


@pytest.mark.parametrize("what", STREAMS_WRONG)
@pytest.mark.parametrize("name", DECODERS)
def test_wrong_streams(name: str, what: str) -> None:
    with pytest.raises((vf.ShapeError, vf.ConfigError)) as caught:
        MODELS[name](IDS, **STREAMS_WRONG[what])
    stream = next(iter(STREAMS_WRONG[what]))
    assert stream.removesuffix("s") in str(caught.value).lower(), "the stream is not named"


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_positions_beyond_the_longest(name: str) -> None:
    with pytest.raises(vf.ShapeError, match="max_seq_len = 8"):
        MODELS[name](IDS, positions=POSITIONS + 4)
    with pytest.raises(vf.ShapeError, match="9 tokens, and max_seq_len is 8"):
        MODELS[name](torch.zeros(B, 9, dtype=torch.long))


CONTEXTS_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "pass context"),
    "one row": ({"context": CONTEXT[0]}, "context is floats of shape"),
    "four axes": ({"context": CONTEXT[None]}, "context is floats of shape"),
    "to be broadcast": ({"context": CONTEXT[:1]}, "context is floats of shape"),
    "other features": ({"context": CONTEXT[..., :5]}, "6 features"),
    "another dtype": ({"context": CONTEXT.double()}, r"context\.to\(torch\.float32\)"),
    "integers": ({"context": CONTEXT.long()}, "context is floats"),
    "a list": ({"context": CONTEXT.tolist()}, "context must be a tensor"),
    "elsewhere": ({"context": CONTEXT.to("meta")}, r"context\.to\(cpu\)"),
    "a mask of floats": ({"context": CONTEXT, "context_mask": KEEP.float()}, "context_mask is bool"),
    "a mask of one row": ({"context": CONTEXT, "context_mask": KEEP[:1]}, "context_mask is bool of shape"),
    "a short mask": ({"context": CONTEXT, "context_mask": KEEP[:, :3]}, "context_mask is bool of shape"),
    "a mask of three axes": ({"context": CONTEXT, "context_mask": KEEP[:, None].expand(B, L, 4)}, "Dense"),
    "a mask alone": ({"context_mask": KEEP}, "pass context"),
    "a mask of pairs that does not fit": ({"context": CONTEXT, "context_mask": Dense(SQUARE)}, "does not fit|honour"),
}


@pytest.mark.parametrize("what", CONTEXTS_WRONG)
@pytest.mark.parametrize("name", ["cross", "cross_linear"])
def test_wrong_contexts(name: str, what: str) -> None:
    streams, words = CONTEXTS_WRONG[what]
    with pytest.raises(vf.ShapeError, match=words):
        MODELS[name](IDS, **streams)


def test_a_mask_of_pairs_over_the_context_is_honoured_or_refused() -> None:
    mask = Dense(torch.tensor([[True, False, False, False]]).expand(L, 4))
    wanted = MODELS["cross"](IDS, context=CONTEXT[:, :1])
    torch.testing.assert_close(MODELS["cross"](IDS, context=CONTEXT, context_mask=mask), wanted)
    with pytest.raises(vf.ShapeError, match="'linear' cannot honour"):
        MODELS["cross_linear"](IDS, context=CONTEXT, context_mask=mask)


def _state(name: str, *sizes: int, **more: Any) -> Any:
    return MODELS[name].init_state(*(sizes or (B, 8)), **more)


STATES_WRONG: dict[str, tuple[Callable[[str], Any], str]] = {
    "of another batch": (lambda name: _state(name, 3, 8), "batch of 3"),
    "of another model": (lambda name: _state("linear" if name == "gpt" else "gpt"), "another model"),
    "empty": (lambda name: {}, "no decode state"),
    "a tensor": (lambda name: IDS, "no decode state"),
    "of a pair": (lambda name: _state("pair", source=IDS), "no decode state"),
    "too small": (lambda name: _state(name, B, 4), "holds 4 tokens a row and would need 5"),
    "full": (lambda name: MODELS[name](IDS, state=_state(name))[1], "holds 8 tokens a row and would need 10"),
}


@pytest.mark.parametrize("what", STATES_WRONG)
@pytest.mark.parametrize("name", DECODERS)
def test_wrong_states(name: str, what: str) -> None:
    make, words = STATES_WRONG[what]
    with torch.no_grad(), pytest.raises(vf.ShapeError, match=words):
        MODELS[name](IDS, state=make(name))


@pytest.mark.parametrize("depth", [1, 3])
def test_a_state_of_another_depth(depth: int) -> None:
    other = vf.build(vf.models.gpt(**{**SIZES, "depth": depth}, max_seq_len=8)).eval()
    with pytest.raises(vf.ShapeError, match="another model"):
        other(IDS, state=_state("gpt"))


@pytest.mark.parametrize("name", DECODERS)
def test_a_state_that_is_used_twice(name: str) -> None:
    model = MODELS[name]
    with torch.no_grad():
        first = model(IDS[:, :2], state=_state(name))[1]
        model(IDS[:, 2:4], state=first)
        with pytest.raises(vf.ShapeError, match="used already"):
            model(IDS[:, 2:4], state=first)
    with_gradients = model(IDS[:, :2], state=_state(name))[1]
    outs = [model(IDS[:, 2:4], state=with_gradients)[0] for _ in range(2)]
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "more", "word"),
    [
        ((-1, 8), {}, "batch"),
        ((0, 8), {}, "batch"),
        ((B, 0), {}, "max_len"),
        ((B, -3), {}, "max_len"),
        ((B, "8"), {}, "max_len"),
        ((B, 2.0), {}, "max_len"),
        ((B, True), {}, "max_len"),
        ((B, 8), {"bucket": -1}, "bucket"),
        ((B, 8), {"bucket": None}, "bucket"),
        ((B, 8), {"contxt": CONTEXT}, "did you mean 'context'"),
    ],
)
@pytest.mark.parametrize("name", DECODERS)
def test_wrong_sizes_of_a_state(name: str, arguments: Any, more: dict[str, Any], word: str) -> None:
    with pytest.raises(vf.ConfigError, match=word):
        MODELS[name].init_state(*arguments, **more)


def test_a_state_keeps_its_context_and_mask() -> None:
    model, keep = MODELS["cross"], torch.tensor([[True, True, False, False], [True, False, False, True]])
    with torch.no_grad():
        wanted = model(IDS, context=CONTEXT, context_mask=keep)
        state = model.init_state(B, 8, context=CONTEXT, context_mask=keep)
        outs = []
        for place in range(L):
            out, state = model(IDS[:, place : place + 1], state=state)
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 1), wanted)
        for name, value in (("context", CONTEXT), ("context_mask", keep)):
            with pytest.raises(vf.ShapeError, match=name):
                model(IDS[:, :1], state=state, **{name: value})


def test_pairs() -> None:
    model, state = MODELS["pair"], _state("pair", source=IDS)
    for source, streams, words in (
        (None, {}, "a source is needed"),
        (IDS[:1], {}, "context is floats of shape"),
        (IDS, {"source_valid": VALID[:, :4]}, "valid is a bool tensor"),
        (IDS, {"contxt": CONTEXT}, "takes no 'contxt'"),
        (IDS, {"context": CONTEXT}, "takes no 'context'"),
        (IDS, {"state": state}, "give source=None"),
        (None, {"state": state, "source_valid": VALID}, "give source_valid=None"),
        (None, {"state": _state("gpt")}, "no decode state of an encoder-decoder"),
    ):
        with pytest.raises(vf.ShapeError, match=words):
            model(source, IDS, **streams)


@pytest.mark.parametrize(
    ("images", "streams", "words"),
    [
        (IMAGES[0], {}, "images must have shape"),
        (IMAGES[..., :4], {}, "images must have shape"),
        (IMAGES.byte(), {}, "floats"),
        (IMAGES.double(), {}, "torch.float32"),
        (IMAGES[:0], {}, "batch is empty"),
        (IDS, {}, "images must have shape"),
        (IMAGES, {"valid": VALID[:, :4]}, "valid"),
        (IMAGES, {"segments": SEGMENTS[:, :3]}, "segments"),
        (IMAGES, {"positions": POSITIONS}, "positions"),
        (IMAGES, {"state": {}}, "state"),
    ],
)
def test_wrong_images(images: Tensor, streams: dict[str, Any], words: str) -> None:
    with pytest.raises(vf.ShapeError, match=words):
        MODELS["images"](images, **streams)


@pytest.mark.parametrize(
    "features",
    [IDS, FEATURES[0], FEATURES[..., :8], FEATURES.double(), FEATURES.half(), FEATURES.long(), FEATURES[None]],
)
def test_wrong_features(features: Tensor) -> None:
    with pytest.raises(vf.ShapeError, match=r"features|torch\.float32"):
        MODELS["features"](features)


@pytest.mark.parametrize(
    ("streams", "words"),
    [
        ({"prefix": FEATURES[:1]}, "prefix must have shape"),
        ({"prefix": FEATURES[..., :4]}, "prefix must have shape"),
        ({"prefix": FEATURES.long()}, "prefix is features"),
        ({"prefix": FEATURES.tolist()}, "prefix must be a tensor"),
        ({"prefix_valid": VALID}, "without a prefix"),
        ({"prefix": FEATURES, "prefix_valid": VALID[:, :3]}, "prefix_valid"),
        ({"prefix": FEATURES, "segments": SEGMENTS}, "segments"),
        ({"prefix": FEATURES, "mask": SQUARE}, "does not fit"),
    ],
)
def test_wrong_prefixes(streams: dict[str, Any], words: str) -> None:
    with pytest.raises(vf.ShapeError, match=words):
        MODELS["prefixed"](IDS, **streams)
