"""Decode state on whole models: however a sequence is cut, decoding it equals reading it at once, in float64."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import variform as vf
from variform.parts.attention.linear import LinearAttention
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.head.heads import LMHead
from variform.parts.kinds import Model
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.position.absolute import LearnedPosition
from variform.parts.position.bias import AlibiBias, T5Bias
from variform.parts.position.rotary import RotaryRotation
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

VOCAB, LENGTH, ROWS = 29, 33, 3
WHOLE = {"atol": 1e-10, "rtol": 0.0}

MIXERS: dict[str, vf.Spec] = {
    "softmax": MultiHead.spec(),
    "grouped": MultiHead.spec(kv_heads=1, q_norm={"part": "rms_norm"}, k_norm={"part": "rms_norm"}),
    "rotary": MultiHead.spec(rotation=RotaryRotation.spec()),
    "alibi": MultiHead.spec(position_bias=AlibiBias.spec()),
    "t5": MultiHead.spec(position_bias=T5Bias.spec(std=1.0)),
    "reference": MultiHead.spec(attention=SoftmaxAttention.spec(backend="reference")),
    "local": MultiHead.spec(attention=LocalAttention.spec(window=5)),
    "local, one": MultiHead.spec(attention=LocalAttention.spec(window=1)),
    "local, rotary, alibi": MultiHead.spec(
        attention=LocalAttention.spec(window=9), rotation=RotaryRotation.spec(), position_bias=AlibiBias.spec()
    ),
    "linear": MultiHead.spec(attention=LinearAttention.spec()),
}


def model_of(mixer: vf.Spec, *, shared: bool = False, **stack: Any) -> Model:
    """Three layers; shared, the first of two stands at both ends."""
    steps = [Sublayer.spec(body=mixer), Sublayer.spec(body=MLP.spec())]
    layer = TransformerLayer.spec(sublayers=steps)
    ends: Any = vf.Shared("ends", layer) if shared else layer
    spec = Transformer.spec(
        embedding=TokenEmbedding.spec(position=LearnedPosition.spec(std=0.5), init_std=1.0),
        stacks=[LayerStack.spec(layers=[ends, layer, ends], **stack), LayerStack.spec(layers=[layer])],
        head=LMHead.spec(),
        dim=16,
        heads=2,
        causal=True,
        max_seq_len=LENGTH + 4,
        vocab_size=VOCAB,
        init_std=0.3,
    )
    model = vf.build(spec).double().eval()
    assert isinstance(model, Model)
    return model


def sizes(seed: int, total: int = LENGTH, largest: int = 6) -> Iterator[int]:
    draw = random.Random(seed)
    while total:
        size = min(total, draw.choice([1, 1, 2, 3, largest]))
        yield size
        total -= size


def in_chunks(model: Model, ids: Tensor, seed: int, bucket: int = 0, **streams: Tensor) -> Tensor:
    """All rows alike."""
    state, outs, start = model.init_state(len(ids), LENGTH + 1, bucket=bucket), [], 0
    for size in sizes(seed, ids.shape[1]):
        now = {name: stream[:, start : start + size] for name, stream in streams.items()}
        out, state = model(ids[:, start : start + size], state=state, **now)
        outs.append(out)
        start += size
    return torch.cat(outs, 1)


def ragged(model: Model, ids: Tensor, seed: int, bucket: int = 0, segments: Tensor | None = None) -> Tensor:
    """Each row its own cuts: some have no token in a chunk; padding is left, right, or on both sides."""
    draw = random.Random(seed)
    state = model.init_state(len(ids), LENGTH, bucket=bucket)
    taken: list[list[Tensor]] = [[] for _ in ids]
    done = [0] * len(ids)
    while min(done) < LENGTH:
        counts = [min(draw.choice([0, 0, 1, 2, 5]), LENGTH - at) for at in done]
        width = max(counts) + draw.randint(0, 2)
        if not width:
            continue
        chunk, valid = torch.randint(VOCAB, (len(ids), width)), torch.zeros(len(ids), width, dtype=torch.bool)
        document = torch.randint(99, (len(ids), width))
        places = []
        for row, count in enumerate(counts):
            first = draw.randint(0, width - count)
            places.append(slice(first, first + count))
            chunk[row, places[row]] = ids[row, done[row] : done[row] + count]
            valid[row, places[row]] = True
            if segments is not None:
                document[row, places[row]] = segments[row, done[row] : done[row] + count]
        out, state = model(chunk, valid=valid, segments=None if segments is None else document, state=state)
        for row, place in enumerate(places):
            taken[row].append(out[row, place])
            done[row] += counts[row]
    return torch.stack([torch.cat(row) for row in taken])


def ids_and_segments() -> tuple[Tensor, Tensor]:
    starts = torch.rand(ROWS, LENGTH) < 0.15
    return torch.randint(VOCAB, (ROWS, LENGTH)), starts.long().cumsum(1)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("grad", [False, True])
def test_any_chunks_equal_the_whole(name: str, grad: bool) -> None:
    """With autograd on the state is copied, with it off updated in place."""
    model, (ids, _) = model_of(MIXERS[name]), ids_and_segments()
    with torch.set_grad_enabled(grad):
        whole = model(ids)
        for seed in (1, 2):
            torch.testing.assert_close(in_chunks(model, ids, seed), whole, **WHOLE)
            torch.testing.assert_close(ragged(model, ids, seed), whole, **WHOLE)


@pytest.mark.parametrize("name", MIXERS)
def test_a_bucketed_state_changes_nothing(name: str) -> None:
    model, (ids, segments) = model_of(MIXERS[name]), ids_and_segments()
    with torch.no_grad():
        whole, packed = model(ids), model(ids, segments=segments)
        for bucket in (1, 7, 16, 64):
            torch.testing.assert_close(in_chunks(model, ids, bucket, bucket), whole, **WHOLE)
            torch.testing.assert_close(ragged(model, ids, bucket, bucket), whole, **WHOLE)
            torch.testing.assert_close(in_chunks(model, ids, 3, bucket, segments=segments), packed, **WHOLE)


@pytest.mark.parametrize("name", MIXERS)
def test_documents_across_chunks_see_only_themselves(name: str) -> None:
    model, (ids, segments) = model_of(MIXERS[name]), ids_and_segments()
    with torch.no_grad():
        whole = model(ids, segments=segments)
        first = (segments[0] == segments[0, 0]).sum()
        torch.testing.assert_close(whole[:1, :first], model(ids[:1, :first]), **WHOLE)
        last = (segments[0] == segments[0, -1]).sum()
        torch.testing.assert_close(whole[:1, -last:], model(ids[:1, -last:]), **WHOLE)
        assert not torch.allclose(whole, model(ids))
        torch.testing.assert_close(in_chunks(model, ids, 5, segments=segments), whole, **WHOLE)
        torch.testing.assert_close(ragged(model, ids, 5, segments=segments), whole, **WHOLE)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("executor", ["plain", "checkpoint"])
def test_a_layer_used_twice_has_two_states(name: str, executor: str) -> None:
    model, (ids, _) = model_of(MIXERS[name], shared=True, executor=executor), ids_and_segments()
    assert len(list(model.stacks[0].layers)) == 2  # type: ignore[index, union-attr]
    state = model.init_state(ROWS, LENGTH)
    assert list(state["parts"]["stacks.0"]) == ["layers.0", "layers.1", "layers.2"]
    model.train()
    whole = model(ids)
    torch.testing.assert_close(in_chunks(model, ids, 4), whole, **WHOLE)
    torch.testing.assert_close(ragged(model, ids, 4), whole, **WHOLE)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("executor", ["plain", "checkpoint"])
@pytest.mark.parametrize("how", [in_chunks, ragged])
def test_gradients_flow_through_the_state(name: str, executor: str, how: Any) -> None:
    """The loss of the last tokens reaches the parameters through the keys of the first chunks."""
    model, (ids, _) = model_of(MIXERS[name], shared=True, executor=executor).train(), ids_and_segments()
    weight = torch.randn(ROWS, LENGTH, VOCAB, dtype=torch.float64)
    weight[:, : LENGTH // 2] = 0
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad((model(ids) * weight).sum(), list(parameters.values()))
    found = torch.autograd.grad((how(model, ids, 6) * weight).sum(), list(parameters.values()))
    for (key, _), want, got in zip(parameters.items(), wanted, found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", MIXERS)
def test_with_gradients_an_old_state_remains_good(name: str) -> None:
    """So that several continuations can be read from one prompt, and a recomputation sees what the first run saw."""
    model, (ids, _) = model_of(MIXERS[name]), ids_and_segments()
    _, state = model(ids[:, :9], state=model.init_state(ROWS, LENGTH))
    first, _ = model(ids[:, 9:14], state=state)
    model(ids[:, 20:27], state=state)
    again, _ = model(ids[:, 9:14], state=state)
    assert torch.equal(first, again)


def test_positions_given_by_the_caller_are_kept() -> None:
    """Also once the caller leaves counting to the state again: it counts slots."""
    model, (ids, _) = model_of(MIXERS["alibi"]), ids_and_segments()
    positions = torch.arange(LENGTH) // 2
    positions[20:] = torch.arange(20, LENGTH)
    whole = model(ids, positions=positions, mask=torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())
    with torch.no_grad():
        state, outs = model.init_state(ROWS, LENGTH), []
        for start, end in ((0, 1), (1, 8), (8, 20)):
            # Two tokens share a position, and both may see each other: the chunk's mask forbids it.
            keep = torch.ones(end - start, end, dtype=torch.bool).tril(start)
            out, state = model(ids[:, start:end], positions=positions[start:end], mask=keep, state=state)
            outs.append(out)
        for place in range(20, LENGTH):
            out, state = model(ids[:, place : place + 1], state=state)
            outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, **WHOLE)


@pytest.mark.parametrize("preset", ["gpt", "llama"])
def test_presets_in_single_tokens(preset: str) -> None:
    sizes_ = {"vocab_size": VOCAB, "dim": 24, "depth": 2, "heads": 3, "max_seq_len": LENGTH, "init_std": 0.3}
    model = vf.build(getattr(vf.models, preset)(**sizes_)).double().eval()
    ids = torch.randint(VOCAB, (2, LENGTH))
    with torch.no_grad():
        state, outs = model.init_state(2), []
        for place in range(LENGTH):
            out, state = model(ids[:, place : place + 1], state=state)
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 1), model(ids), **WHOLE)


def test_an_encoder_decoder_reads_its_source_once() -> None:
    spec = vf.models.seq2seq(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=LENGTH, init_std=0.3)
    model = vf.build(spec).double().eval()
    source, target = torch.randint(VOCAB, (2, 11)), torch.randint(VOCAB, (2, LENGTH))
    keep = torch.ones(2, 11, dtype=torch.bool)
    keep[1, :4] = False
    with torch.no_grad():
        whole = model(source, target, source_valid=keep)
        state, outs = model.init_state(2, source=source, source_valid=keep), []
        model.encoder = None
        for start, end in ((0, 7), (7, 8), (8, 20), (20, LENGTH)):
            out, state = model(None, target[:, start:end], state=state)
            outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, **WHOLE)


@pytest.mark.parametrize("bucket", [0, 16])
def test_compiled_steps_share_two_graphs(bucket: int) -> None:
    """One for the first length, one for all others, without a break."""
    torch._dynamo.reset()
    counter = CompileCounter()
    model = model_of(MIXERS["rotary"])
    step = torch.compile(model, backend=counter, fullgraph=True)
    ids = torch.randint(VOCAB, (2, LENGTH))
    with torch.no_grad():
        whole = model(ids)
        out, state = model(ids[:, :3], state=model.init_state(2, LENGTH + 1, bucket=bucket))
        outs = [out]
        for place in range(3, LENGTH):
            out, state = step(ids[:, place : place + 1], state=state)
            outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, **WHOLE)
    assert counter.frame_count <= 2


def test_too_many_tokens_or_other_rows_are_refused() -> None:
    model, (ids, segments) = model_of(MIXERS["softmax"]), ids_and_segments()
    with pytest.raises(vf.ShapeError, match="holds 8 tokens a row and would need 9"):
        model(ids[:, :9], state=model.init_state(ROWS, 8))
    valid = torch.ones(ROWS, 9, dtype=torch.bool)
    valid[1] = False
    with pytest.raises(vf.ShapeError, match="holds 8 tokens a row and would need 9"):
        model(ids[:, :9], valid=valid, state=model.init_state(ROWS, 8))
    with pytest.raises(vf.ShapeError, match="batch of 2, this call has 3 rows"):
        model(ids, state=model.init_state(2))
    _, state = model(ids[:, :3], state=model.init_state(ROWS))
    with pytest.raises(vf.ShapeError, match="segments must be given in every call"):
        model(ids[:, 3:5], segments=segments[:, 3:5], state=state)
