"""Whole models: what they take, what they refuse, and what their streams mean."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.core.spec import Shared
from variform.errors import ShapeError
from variform.ops.masks import Causal, Dense, Global, Window
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

SIZES = {"vocab_size": 11, "dim": 16, "depth": 2, "heads": 4, "max_seq_len": 12}
IDS = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0))


def built(spec: vf.Spec) -> Any:
    return vf.build(spec).double().eval()


@pytest.fixture
def gpt() -> Any:
    return built(vf.models.gpt(**SIZES))


# ---- refusals ----

WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "floats": (torch.zeros(2, 7), {}, "token ids are integers|ids"),
    "one axis": (torch.zeros(7, dtype=torch.long), {}, r"\[7\]"),
    "too long": (torch.zeros(1, 13, dtype=torch.long), {}, "13 tokens, and max_seq_len is 12"),
    "empty": (torch.zeros(1, 0, dtype=torch.long), {}, "empty"),
    "token out of range": (torch.full((1, 3), 11), {}, r"\[0, 11\)"),
    "negative token": (torch.full((1, 3), -1), {}, r"\[0, 11\)"),
    "valid of integers": (IDS, {"valid": torch.ones(2, 7, dtype=torch.long)}, "valid is a bool tensor"),
    "valid of another length": (IDS, {"valid": torch.ones(2, 6, dtype=torch.bool)}, r"\[2, 7\]"),
    "valid for one row": (IDS, {"valid": torch.ones(1, 7, dtype=torch.bool)}, r"\[2, 7\]"),
    "segments of floats": (IDS, {"segments": torch.zeros(2, 7)}, "segments are integers"),
    "segments without a batch": (IDS, {"segments": torch.zeros(7, dtype=torch.long)}, r"\[2, 7\]"),
    "positions of floats": (IDS, {"positions": torch.zeros(7)}, "positions are integers"),
    "positions of another length": (IDS, {"positions": torch.arange(6)}, r"\[7\]"),
    "positions beyond the table": (IDS, {"positions": torch.arange(7) + 6}, "12"),
    "a mask of floats": (IDS, {"mask": torch.zeros(7, 7)}, "bool"),
    "a mask of another size": (IDS, {"mask": torch.ones(6, 6, dtype=torch.bool)}, "6"),
    "a mask that would only broadcast": (IDS, {"mask": torch.ones(1, 7, dtype=torch.bool)}, "7"),
    "a context nobody reads": (IDS, {"context": torch.zeros(2, 3, 16)}, "context was given, and no part"),
    "a context mask nobody reads": (
        IDS,
        {"context_mask": torch.ones(2, 3, dtype=torch.bool)},
        "context_mask was given",
    ),
    "a condition nobody reads": (IDS, {"condition": torch.zeros(2, 4)}, "condition was given"),
    "a prefix nobody reads": (IDS, {"prefix": torch.zeros(2, 3, 16)}, "prefix was given"),
}


@pytest.mark.parametrize(("inputs", "streams", "words"), WRONG.values(), ids=WRONG)
def test_wrong_calls_are_shape_errors(gpt: Any, inputs: Any, streams: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        gpt(inputs, **streams)


def test_cross_attention_without_a_context_is_refused() -> None:
    layers = [Sublayer.spec(body=MultiHead.spec()), Sublayer.spec(body=CrossMultiHead.spec())]
    spec = Transformer.spec(
        embedding=TokenEmbedding.spec(), stacks=[LayerStack.spec(layers=layers)], dim=16, heads=4, vocab_size=11
    )
    with pytest.raises(ShapeError, match="needs the stream 'context'"):
        vf.build(spec)(IDS)


def test_a_model_without_attention_refuses_masks() -> None:
    spec = Transformer.spec(
        embedding=TokenEmbedding.spec(),
        stacks=[LayerStack.spec(layers=[Sublayer.spec(body=MLP.spec())])],
        dim=16,
        vocab_size=11,
    )
    for name, value in (("mask", Causal()), ("valid", torch.ones(2, 7, dtype=torch.bool)), ("segments", IDS * 0)):
        with pytest.raises(
            ShapeError,
            match=f"{name} was given, and no part of this model reads it; it reads: added, injected, positions",
        ):
            vf.build(spec)(IDS, **{name: value})


def test_features_take_the_place_of_ids_where_there_is_no_embedding() -> None:
    layers = [Sublayer.spec(body=MultiHead.spec())]
    model = vf.build(Transformer.spec(embedding=None, stacks=[LayerStack.spec(layers=layers)], dim=16, heads=4))
    assert model(torch.randn(2, 7, 16)).shape == (2, 7, 16)
    with pytest.raises((ShapeError, RuntimeError)):
        model(torch.randn(2, 7, 15))


# ---- masks ----


def test_all_kinds_of_masks_mean_the_same(gpt: Any) -> None:
    """Windows as a symbol, as a dense mask, and as bool tensors of each shape that is taken."""
    symbol = Window(2, 2)
    steps = torch.arange(7)
    dense = symbol.dense(steps, steps)
    wanted = gpt(IDS, mask=symbol)
    for mask in (Dense(dense), dense, dense.expand(1, 1, 7, 7), dense.expand(2, 1, 7, 7), dense.expand(2, 4, 7, 7)):
        torch.testing.assert_close(gpt(IDS, mask=mask), wanted)
    assert not torch.allclose(gpt(IDS), wanted)


def test_masks_combine_with_what_the_model_is() -> None:
    bert = built(vf.models.bert(**SIZES))
    torch.testing.assert_close(bert(IDS, mask=Causal()), bert(IDS, mask=torch.ones(7, 7, dtype=torch.bool).tril()))
    gpt = built(vf.models.gpt(**SIZES))
    torch.testing.assert_close(gpt(IDS, mask=Causal() | Global([6])), gpt(IDS), msg="a mask never opens the future")


def test_masks_of_each_row_and_head_are_not_mixed_up() -> None:
    bert = built(vf.models.bert(**{**SIZES, "depth": 1}))
    allowed = torch.rand(2, 4, 7, 7) > 0.4
    allowed |= torch.eye(7, dtype=torch.bool)
    whole = bert(IDS, mask=allowed)
    for row in range(2):
        one = bert(IDS[row : row + 1], mask=allowed[row : row + 1])
        torch.testing.assert_close(whole[row : row + 1], one)


# ---- positions, padding, documents ----


def test_positions_count_real_tokens(gpt: Any) -> None:
    valid = torch.tensor([[False, False, True, True, True, True, True], [True] * 7])
    by_hand = torch.tensor([[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(gpt(IDS, valid=valid), gpt(IDS, valid=valid, positions=by_hand))


def test_positions_start_anew_in_each_document(gpt: Any) -> None:
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 7]])
    by_hand = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 0]])
    torch.testing.assert_close(gpt(IDS, segments=segments), gpt(IDS, segments=segments, positions=by_hand))


def test_positions_may_be_given_for_all_rows_at_once(gpt: Any) -> None:
    shifted = torch.arange(7) + 3
    torch.testing.assert_close(gpt(IDS, positions=shifted), gpt(IDS, positions=shifted.expand(2, 7)))
    assert not torch.allclose(gpt(IDS, positions=shifted), gpt(IDS))


# ---- outputs ----


def test_hidden_states_in_place_of_logits(gpt: Any) -> None:
    hidden = gpt(IDS, hidden=True)
    assert hidden.shape == (2, 7, 16)
    torch.testing.assert_close(gpt.head(hidden, {}), gpt(IDS))


def test_an_encoder_without_a_head_gives_hidden_states() -> None:
    model = built(vf.models.seq2seq(**SIZES))
    torch.testing.assert_close(model.encode(IDS), model.encoder(IDS))


# ---- encoder and decoder ----


def test_the_source_is_read_through_the_context() -> None:
    model = built(vf.models.seq2seq(**SIZES, source_vocab_size=5, source_max_seq_len=9))
    source = torch.randint(0, 5, (2, 9))
    out = model(source, IDS)
    assert out.shape == (2, 7, 11)
    torch.testing.assert_close(model.decoder(IDS, context=model.encode(source)), out)
    with pytest.raises(ShapeError, match="max_seq_len is 9"):
        model(torch.zeros(2, 10, dtype=torch.long), IDS)
    with pytest.raises(ShapeError, match="a source is needed"):
        model(None, IDS)


def test_the_target_never_sees_its_own_future_and_always_the_whole_source() -> None:
    model = built(vf.models.seq2seq(**SIZES))
    changed = IDS.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    source = torch.randint(0, 11, (2, 4))
    assert torch.equal(model(source, changed)[:, :5], model(source, IDS)[:, :5])
    other = source.clone()
    other[:, 3] = (other[:, 3] + 1) % 11
    assert not torch.allclose(model(other, IDS)[:, 0], model(source, IDS)[:, 0])


def test_one_embedding_for_source_and_target() -> None:
    model = built(vf.models.seq2seq(**SIZES, tie=True))
    assert model.encoder.embedding is model.decoder.embedding


# ---- shared parts ----


def test_one_stack_may_stand_twice() -> None:
    stack = Shared("stack", LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec())]))
    model = built(
        Transformer.spec(embedding=None, stacks=[stack, Shared("stack")], dim=16, heads=4, causal=True, max_seq_len=9)
    )
    x = torch.randn(1, 7, 16, dtype=torch.float64)
    once = model.stacks[0](x, {})
    torch.testing.assert_close(model(x), model.stacks[0](once, {}))


def test_sizes_of_one_stack_may_differ_from_the_models() -> None:
    spec = Transformer.spec(
        embedding=None,
        dim=16,
        heads=4,
        stacks=[
            LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec())], heads=2),
            LayerStack.spec(layers=[Sublayer.spec(body=MultiHead.spec())], causal=True),
        ],
    )
    model = vf.build(spec)
    bodies = [stack.layers[0].body for stack in model.stacks]
    assert [body.heads for body in bodies] == [2, 4]
    assert [body.attention.causal for body in bodies] == [False, True]


def test_gradients_reach_every_parameter() -> None:
    for spec in (
        vf.models.gpt(**SIZES, tie=True),
        vf.models.llama(**SIZES),
        vf.models.bert(**SIZES),
        vf.models.vit(image_size=8, patch_size=4, dim=16, depth=2, heads=4, classes=3),
    ):
        model = vf.build(spec)
        args, kwargs = model.example_inputs(2, 12)
        inputs: Tensor = (
            torch.randn_like(args[0]) if args[0].is_floating_point() else torch.randint(0, 11, args[0].shape)
        )
        model(inputs, **kwargs).square().sum().backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing
