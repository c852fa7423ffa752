"""Decode state of programs: however a sequence is cut, decoding it equals reading it at once, in float64."""

import copy
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import variform as vf
from variform.dialects.configaformers import ConfigaFormer, get_alibi
from variform.dialects.configaformers.prebuilt_blocks import copygate_block, normformer_block, transformer_block
from variform.lower import lower
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Model
from variform.parts.op.heads import MergeHeads, Offset, Scores, SplitHeads, WeightedSum
from variform.parts.op.rotary import Rotary
from variform.parts.op.shift import ShiftOp
from variform.parts.op.tokenwise import CopyOp, EmbeddingOp, LinearOp, MergeOp
from variform.parts.position.bias import AlibiBias
from variform.parts.position.rotary import RotaryRotation
from variform.stack.lines import Block, Step
from variform.stack.program import Program, ProgramModel

VOCAB, LENGTH, ROWS, DIM, HEADS = 29, 17, 3, 16, 4
WHOLE = {"atol": 1e-10, "rtol": 0.0}
Held = dict[str, Tensor]


def step(op: Any, reads: str = "x", into: str = "x") -> vf.Spec:
    return Step.spec(op=op, reads=reads.split(), into=into.split())


def seed_attention(*before: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """The seed generation's spelling: values are split into heads by the sum; rotary and ALiBi together."""
    heads = [
        {"type": kind, "input_name": name, "output_name": name, **size}
        for kind, size in (("make_heads", {"num_heads": HEADS}), ("rope", {"rotate_dim": 2, "max_length": 64}))
        for name in ("q", "k")
    ]
    return [
        {"type": "make_stream", "output_name": "residual"},
        {"type": "norm"},
        *before,
        *({"type": "linear", "output_name": name, "output_dim": DIM} for name in "qkv"),
        *heads,
        {"type": "mha_dots", "input_name_queries": "q", "input_name_keys": "k"},
        {"type": "attention_offset", "scaled": options.pop("scaled", False)},
        {"type": "mha_sum", "input_name_values": "v", **options},
        {"type": "linear", "output_dim": DIM},
        {"type": "merge_streams", "input_name_1": "residual"},
    ]


def former(*blocks: list[dict[str, Any]], **inputs: list[Any]) -> ConfigaFormer:
    """Blocks between an embedding and a head; `emb_ids` and the usual offset are inputs."""
    config = [
        {"config": [{"type": "embedding", "num_classes": VOCAB, "output_dim": DIM}], "repeat": 1},
        *({"config": block, "repeat": 1} for block in blocks),
        {"config": [{"type": "norm"}, {"type": "linear", "output_dim": VOCAB}], "repeat": 1},
    ]
    shapes = {"emb_ids": ["B", "L_in"], "attn_offset": ["B", HEADS, "L_in", "L_in"], **inputs}
    return ConfigaFormer(blocks=config, input_shapes=shapes, verbose=False, output_streams=["x"])


SHIFT = {
    "type": "shift",
    "instructions": [
        {"features": (0, 4), "relative_pos": 0},
        {"features": (4, 12), "relative_pos": -1},
        {"features": (0, 9), "relative_pos": -3},
    ],
}
WIDE = {"type": "linear", "output_dim": DIM}
LAZY = [  # the second sum takes the weights of the first (LazyFormer)
    *seed_attention(output_name_attention_scores="weights")[:-2],
    {"type": "mha_sum", "input_name_values": "v", "input_name_attn_scores": "weights"},
    *seed_attention()[-2:],
]
NESTED = {
    "type": "program",
    "config": seed_attention(SHIFT, WIDE),
    "streams": {"attn_offset": ["B", HEADS, "L", "L"]},
    "input_names": ["x", "attn_offset"],
}
OFFSET = get_alibi(HEADS, LENGTH + 9).double()
ONE = {"one": torch.ones(1, dtype=torch.float64)}

FORMERS: dict[str, tuple[Callable[[], ConfigaFormer], Held]] = {
    "demo": (lambda: former(seed_attention(), seed_attention()), {}),
    "token shift": (lambda: former(seed_attention(SHIFT, WIDE), seed_attention(SHIFT, WIDE)), {}),
    "scaled offset": (lambda: former(seed_attention(scaled=True)), {}),
    "relu": (lambda: former(seed_attention(attn_function="relu", norm_value_heads="rms_norm")), {}),
    "tanh": (lambda: former(seed_attention(attn_function="tanh")), {}),
    "weights used again": (lambda: former(LAZY), {}),
    "transformer_block": (lambda: former(transformer_block(HEADS, DIM), transformer_block(HEADS, DIM)), {}),
    "normformer_block": (lambda: former(normformer_block(HEADS, DIM)), {}),
    "copygate_block": (lambda: former(copygate_block(HEADS, DIM), one=[1]), ONE),
    "program in a program": (
        lambda: former(
            [NESTED, NESTED], [{"type": "linear", "output_name": "y"}, {"type": "merge_streams", "input_name_2": "y"}]
        ),
        {},
    ),
    "parts": (
        lambda: former(
            seed_attention(), [{"type": "multi_head", "heads": HEADS, "attention": {"part": "softmax", "causal": True}}]
        ),
        {},
    ),
}


def built(name: str) -> tuple[ConfigaFormer, Held]:
    torch.manual_seed(3)
    make, held = FORMERS[name]
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, {"attn_offset": OFFSET, **held}


def at_once(model: Model, ids: Tensor, held: Held) -> Tensor:
    length = ids.shape[1]
    trimmed = {name: x[:, :, :length, :length].expand(len(ids), -1, -1, -1) for name, x in held.items() if x.dim() == 4}
    result: Tensor = model({"emb_ids": ids, **held, **trimmed})["x"]
    return result


def sizes(seed: int, total: int = LENGTH) -> Iterator[int]:
    draw = random.Random(seed)
    while total:
        size = min(total, draw.choice([1, 1, 2, 3, 6]))
        yield size
        total -= size


def in_chunks(model: Model, ids: Tensor, held: Held, seed: int, bucket: int = 0) -> Tensor:
    state, outs, start = model.init_state(len(ids), LENGTH + 1, bucket=bucket, **held), [], 0
    for size in sizes(seed, ids.shape[1]):
        out, state = model({"emb_ids": ids[:, start : start + size]}, state=state)
        outs.append(out["x"])
        start += size
    return torch.cat(outs, 1)


def ragged(run: Callable[..., Any], state: Any, ids: Tensor, seed: int) -> Tensor:
    """Each row its own cuts: some have no token in a chunk; padding is left, right, or on both sides."""
    draw = random.Random(seed)
    taken: list[list[Tensor]] = [[] for _ in ids]
    done = [0] * len(ids)
    while min(done) < LENGTH:
        counts = [min(draw.choice([0, 0, 1, 2, 5]), LENGTH - at) for at in done]
        width = max(counts) + draw.randint(0, 2)
        if not width:
            continue
        chunk, valid = torch.randint(VOCAB, (len(ids), width)), torch.zeros(len(ids), width, dtype=torch.bool)
        places = []
        for row, count in enumerate(counts):
            first = draw.randint(0, width - count)
            places.append(slice(first, first + count))
            chunk[row, places[row]] = ids[row, done[row] : done[row] + count]
            valid[row, places[row]] = True
        out, state = run(chunk, valid=valid, state=state)
        assert out.isfinite().all()
        for row, place in enumerate(places):
            taken[row].append(out[row, place])
            done[row] += counts[row]
    return torch.stack([torch.cat(row) for row in taken])


def in_ragged_chunks(model: Model, ids: Tensor, held: Held, seed: int, bucket: int = 0) -> Tensor:
    def run(chunk: Tensor, **more: Any) -> Any:
        out, state = model({"emb_ids": chunk}, **more)
        return out["x"], state

    return ragged(run, model.init_state(len(ids), LENGTH, bucket=bucket, **held), ids, seed)


def some_ids() -> Tensor:
    return torch.randint(VOCAB, (ROWS, LENGTH))


@pytest.mark.parametrize("name", FORMERS)
@pytest.mark.parametrize("grad", [False, True])
def test_any_chunks_equal_the_whole(name: str, grad: bool) -> None:
    """With autograd on the state is copied, with it off updated in place."""
    (model, held), ids = built(name), some_ids()
    with torch.set_grad_enabled(grad):
        whole = at_once(model, ids, held)
        for seed, bucket in ((1, 0), (2, 8)):
            torch.testing.assert_close(in_chunks(model, ids, held, seed, bucket), whole, **WHOLE)
            torch.testing.assert_close(in_ragged_chunks(model, ids, held, seed, bucket), whole, **WHOLE)


@pytest.mark.parametrize("name", ["demo", "token shift", "parts", "weights used again"])
@pytest.mark.parametrize("executor", ["plain", "checkpoint"])
@pytest.mark.parametrize("how", [in_chunks, in_ragged_chunks])
def test_gradients_flow_through_the_state(name: str, executor: str, how: Any) -> None:
    """The loss of the last tokens reaches the parameters through what the first chunks left."""
    (model, held), ids = built(name), some_ids()
    model.train().executor = executor
    weight = torch.randn(ROWS, LENGTH, VOCAB, dtype=torch.float64)
    weight[:, : LENGTH // 2] = 0
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad((at_once(model, ids, held) * weight).sum(), list(parameters.values()))
    found = torch.autograd.grad((how(model, ids, held, 6) * weight).sum(), list(parameters.values()))
    for (key, _), want, got in zip(parameters.items(), wanted, found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def test_an_offset_may_differ_from_row_to_row() -> None:
    (model, _), ids = built("demo"), some_ids()
    rows = OFFSET * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    whole = at_once(model, ids, {"attn_offset": rows})
    assert not torch.allclose(whole, at_once(model, ids, {"attn_offset": OFFSET}))
    with torch.no_grad():
        torch.testing.assert_close(in_chunks(model, ids, {"attn_offset": rows}, 1), whole, **WHOLE)
        torch.testing.assert_close(in_ragged_chunks(model, ids, {"attn_offset": rows}, 1), whole, **WHOLE)


def test_nothing_that_is_given_changes() -> None:
    (model, held), ids = built("copygate_block"), some_ids()
    before, inputs = copy.deepcopy(held), {"emb_ids": ids[:, :4]}
    with torch.no_grad():
        model(inputs, state=model.init_state(ROWS, 9, **held))
    assert list(inputs) == ["emb_ids"]
    assert all(torch.equal(held[name], before[name]) for name in held)


def test_a_copy_of_a_state_lives_on_and_a_used_one_is_refused() -> None:
    (model, held), ids = built("token shift"), some_ids()
    with torch.no_grad():
        _, state = model({"emb_ids": ids[:, :5]}, state=model.init_state(ROWS, LENGTH, **held))
        kept = copy.deepcopy(state)
        first, _ = model({"emb_ids": ids[:, 5:8]}, state=state)
        again, _ = model({"emb_ids": ids[:, 5:8]}, state=kept)
        assert torch.equal(first["x"], again["x"])
        with pytest.raises(vf.ShapeError, match="used already"):
            model({"emb_ids": ids[:, 5:8]}, state=state)


def test_bfloat16() -> None:
    (model, held), ids = built("parts"), some_ids()
    model, held = model.bfloat16(), {name: x.bfloat16() for name, x in held.items()}
    with torch.no_grad():
        whole, found = at_once(model, ids, held), in_ragged_chunks(model, ids, held, 1)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, whole, atol=0.1, rtol=0.1)


# ---- the language of programs, and programs as layers ----


def attention(rotary: bool = False, **options: Any) -> list[vf.Spec]:
    turn = [step(Rotary.spec(features=2), name, name) for name in ("q", "k")] if rotary else []
    return [
        *(step(LinearOp.spec(bias=False), "x", name) for name in "qkv"),
        *(step(SplitHeads.spec(heads=HEADS), name, name) for name in "qkv"),
        *turn,
        step(Scores.spec(), "q k", "s"),
        step(WeightedSum.spec(**options), "v s", "x"),
        step(MergeHeads.spec()),
    ]


def native(program: list[Any], causal: bool = True, **more: Any) -> Any:
    """A transformer whose layers are a program, a usual one, and the program again (one module)."""
    own: Any = vf.Shared("own", vf.Spec(Program, {"lines": program, **more}))
    layers = [own, {"part": "sublayer", "body": {"part": "multi_head"}}, own]
    spec = {"part": "transformer", "dim": DIM, "heads": HEADS, "vocab_size": VOCAB, "causal": causal}
    rest = {"embedding": "tokens", "stacks": [{"part": "stack", "layers": layers}], "head": "lm", "max_seq_len": 40}
    return vf.build(vf.from_dict({**spec, **rest})).double().eval()


LAYERS: dict[str, list[vf.Spec]] = {
    "rotary": attention(rotary=True),
    "shift": [step(ShiftOp.spec(pieces=[(0, 8, -2), (8, 16, 0)])), *attention()],
    "weights": [*attention(), step({"part": "multi_head"}, "x", "y"), step(MergeOp.spec(), "x y")],
    "attention part": [
        *attention()[:6],
        step(SoftmaxAttention.spec(), "q k v", "x"),
        step(MergeHeads.spec()),
    ],
    "rotation and bias parts": [
        *attention()[:6],
        step(RotaryRotation.spec(), "q k", "q k"),
        step(Scores.spec(), "q k", "s"),
        step(AlibiBias.spec(), "s", "s"),
        step(WeightedSum.spec(), "v s", "x"),
        step(MergeHeads.spec()),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_program_in_a_native_stack_decodes(name: str) -> None:
    """It stands there twice, as one module with two branches of state."""
    model, ids = native(LAYERS[name]), some_ids()
    with torch.no_grad():
        whole = model(ids)
        for seed in (1, 2):
            torch.testing.assert_close(ragged(model, model.init_state(ROWS, LENGTH), ids, seed), whole, **WHOLE)
            state, outs, start = model.init_state(ROWS, LENGTH, bucket=4), [], 0
            for size in sizes(seed):
                out, state = model(ids[:, start : start + size], state=state)
                outs.append(out)
                start += size
            torch.testing.assert_close(torch.cat(outs, 1), whole, **WHOLE)


def test_a_program_refuses_documents_and_masks_also_with_a_state() -> None:
    model, ids = native(attention()), some_ids()
    for name, value in {
        "segments": torch.zeros_like(ids),
        "mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool),
    }.items():
        with pytest.raises(vf.ShapeError, match=f"{name} given"):
            model(ids, state=model.init_state(ROWS, LENGTH), **{name: value})


def test_positions_beyond_a_table_are_refused() -> None:
    lines = attention(rotary=True)
    lines[6:8] = [step(Rotary.spec(features=2, max_len=9), name, name) for name in "qk"]
    short = native(lines)
    with pytest.raises(vf.ConfigError, match="table of 9 rows, and max_len is 10"):
        short.init_state(1, 10)
    state = short.init_state(1, 9)
    with pytest.raises(vf.ShapeError, match="table of 9 rows, and a position is 12"):
        short(torch.zeros(1, 2, dtype=torch.long), positions=torch.tensor([3, 12]), state=state)


def test_context_of_a_program_layer_is_held() -> None:
    """Its keys and values are computed once, and the state goes on without it."""
    cross = [
        step(CopyOp.spec(), "x", "r"),
        *attention(rotary=True),
        step(MergeOp.spec(), "r x"),
        step(LinearOp.spec(bias=False), "x", "q"),
        *(step(LinearOp.spec(bias=False, out=DIM), "context", name) for name in "kv"),
        *(step(SplitHeads.spec(heads=HEADS), name, name) for name in "qkv"),
        step(Scores.spec(), "q k", "s"),
        step(WeightedSum.spec(causal=False), "v s", "y"),
        step(MergeHeads.spec(), "y", "y"),
        step(MergeOp.spec(), "x y"),
    ]
    model = native(cross, streams={"context": ["B", "Lc", 12]})
    ids, context = some_ids(), torch.randn(ROWS, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        whole = model(ids, context=context)
        state = model.init_state(ROWS, LENGTH, context=context)
        torch.testing.assert_close(ragged(model, state, ids, 1), whole, **WHOLE)


@pytest.mark.parametrize("depth", ["parts", "ops"])
@pytest.mark.parametrize("preset", ["gpt", "llama", "seq2seq"])
def test_a_native_model_as_a_program_decodes(preset: str, depth: Any) -> None:
    """The encoder, which looks ahead, reads a source that the state holds: it runs once, where the state is made."""
    spec = getattr(vf.models, preset)(vocab_size=VOCAB, dim=DIM, depth=2, heads=HEADS, max_seq_len=40)
    model = vf.build(lower(spec, depth=depth).spec).double().eval()
    held = {"source": torch.randint(VOCAB, (ROWS, 5))} if preset == "seq2seq" else {}
    name, ids = "target" if held else "ids", some_ids()

    def run(chunk: Tensor, **more: Any) -> Any:
        out, state = model({name: chunk}, **more)
        return out["x"], state

    with torch.no_grad():
        state = model.init_state(ROWS, LENGTH, **held)
        assert any("held" in branch for branch in state["parts"].values()) == bool(held)
        torch.testing.assert_close(ragged(run, state, ids, 1), model({name: ids, **held})["x"], **WHOLE)


@pytest.mark.slow
def test_compiled_steps_share_two_graphs() -> None:
    """One for the first length, one for all others, without a break."""
    torch._dynamo.reset()
    counter = CompileCounter()
    (model, held), ids = built("token shift"), some_ids()
    run = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        out, state = model({"emb_ids": ids[:, :3]}, state=model.init_state(ROWS, LENGTH + 1, bucket=16, **held))
        outs = [out["x"]]
        for place in range(3, LENGTH):
            out, state = run({"emb_ids": ids[:, place : place + 1]}, state=state)
            outs.append(out["x"])
        torch.testing.assert_close(torch.cat(outs, 1), at_once(model, ids, held), **WHOLE)
    assert counter.frame_count <= 2


def test_example_states_of_programs() -> None:
    """What figures are made from: the source of an encoder-decoder is held, an offset masks the future."""
    pair = vf.models.seq2seq(vocab_size=VOCAB, dim=DIM, depth=1, heads=HEADS, max_seq_len=40)
    state = vf.build(lower(pair).spec).example_state(2, 9)
    assert list(state["held"]) == ["source"]
    model, _ = built("demo")
    assert state["positions"].shape == (2, 10)
    assert model.example_state(2, 9)["templates"]["attn_offset"].shape == (2, HEADS, 9, 9)
    with pytest.raises(vf.ConfigError, match="not causal cannot decode"):
        program(*attention(causal=False)).example_state(2, 9)


# ---- what is refused, before anything runs ----


def program(*lines: vf.Spec, inputs: dict[str, list[Any]] | None = None, **more: Any) -> Any:
    given = inputs or {"ids": ["B", "L"]}
    first = step(EmbeddingOp.spec(classes=VOCAB, out=DIM), "ids", "x")
    return vf.build(ProgramModel.spec(lines=[first, *lines], inputs=given, strict=False, **more)).double()


def refusal(model: Any, *, max_len: int = 8, **held: Any) -> str:
    with pytest.raises((vf.ConfigError, vf.ShapeError)) as error:
        model.init_state(2, max_len, **held)
    return str(error.value)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (attention(causal=False), "lines.8: line 9 .weighted_sum.: .*a program that is not causal cannot decode"),
        (
            [step({"part": "down_sample", "stride": 2})],
            "lines.1.op: line 2 .down_sample.: cannot decode step by step: op 'down_sample' has no decode state",
        ),
        ([step({"part": "cut", "start": 0, "stop": 4})], r"'cut' makes \(B, 4, 16\): its result is not token by token"),
        ([step(ShiftOp.spec(pieces=[(0, 16, 1)]))], "line 2 .shift.: .*has no decode state"),
        (
            [step({"part": "multi_head", "heads": 4, "attention": {"part": "softmax", "causal": False}})],
            "line 2 .multi_head.: .*is not causal",
        ),
        (
            [step(Rotary.spec(features=2)), step(LinearOp.spec())],
            "line 3 .linear.: .*counted from the end of the sequence",
        ),
        (
            [*attention(rotary=True)[:7], *attention()[6:]],
            "line 9 .scores.: .*queries and keys are not rotated alike",
        ),
        (attention(rotary=True), "line 8 .rotary.: .*table of 2048 rows, and max_len is 4000"),
    ],
    ids=["bidirectional", "down", "cut", "ahead", "native", "rotated", "one side", "table"],
)
def test_lines_that_cannot_decode_are_named(lines: list[vf.Spec], text: str) -> None:
    found = refusal(program(*lines), max_len=4000 if "4000" in text else 8)
    assert re.search(text, found.replace("\n", " ")), found


def test_all_lines_that_cannot_decode_are_named_at_once() -> None:
    down = step({"part": "down_sample", "stride": 2}, "x", "y")
    with pytest.raises(vf.ConfigError) as error:
        program(down, *attention(causal=False)).init_state(2, 8)
    assert [problem.path for problem in error.value.problems] == ["lines.1.op", "lines.9"]


def test_an_offset_that_does_not_mask_the_future_is_refused() -> None:
    model, _ = built("demo")
    assert "get_alibi(mask='causal')" in refusal(model, attn_offset=get_alibi(HEADS, 20, mask=None).double())
    leaky = OFFSET.clone()
    leaky[0, 1, 3, 4] = 0.0
    assert "not causal cannot decode" in refusal(model, attn_offset=leaky)
    leaky[0, 1, 3, 4] = -1e4
    assert "not causal cannot decode" in refusal(model, attn_offset=leaky)
    beyond = OFFSET.clone()
    beyond[0, 1, 9, 10] = 0.0
    model.init_state(2, 8, attn_offset=beyond)  # more than the state will see
    half = get_alibi(HEADS, 20, mask_precision="half").double()
    model.init_state(2, 8, attn_offset=half)
    tanh, _ = built("tanh")
    assert "not causal cannot decode" in refusal(tanh, attn_offset=half)  # tanh of -32752 is -1, not 0


def test_offsets_that_do_not_reach_or_fit_are_refused() -> None:
    model, held = built("demo")
    assert "covers [8, 8] positions, and the state is to hold 9 tokens" in refusal(
        model, max_len=9, attn_offset=OFFSET[:, :, :8, :8]
    )
    assert "must be 4" in refusal(model, attn_offset=OFFSET[:, :3])
    assert "must be 2" in refusal(model, attn_offset=OFFSET.expand(3, -1, -1, -1))
    assert "[1, 20, 20]" in refusal(model, attn_offset=torch.zeros(1, 20, 20, dtype=torch.float64))
    assert "must be a tensor" in refusal(model, attn_offset=0.0)
    assert "hold it: init_state(..., attn_offset=...)" in refusal(model)
    assert "is no input of this program" in refusal(model, offset=OFFSET)
    assert "comes with each call" in refusal(model, emb_ids=torch.zeros(2, 8, dtype=torch.long), **held)


def test_calls_that_do_not_fit_are_refused() -> None:
    (model, held), ids = built("demo"), some_ids()
    with pytest.raises(vf.ShapeError, match="holds the input 'attn_offset': leave it out"):
        model({"emb_ids": ids, "attn_offset": OFFSET}, state=model.init_state(ROWS, LENGTH, **held))
    with pytest.raises(vf.ShapeError, match="holds 8 tokens a row and would need 9"):
        model({"emb_ids": ids[:, :9]}, state=model.init_state(ROWS, 8, **held))
    with pytest.raises(vf.ShapeError, match="batch of 2, this call has 3 rows"):
        model({"emb_ids": ids}, state=model.init_state(2, LENGTH, **held))
    with pytest.raises(vf.ShapeError, match="'emb_ids' is missing"):
        model({}, state=model.init_state(2, LENGTH, **held))
    with pytest.raises(vf.ShapeError, match="valid is a bool tensor"):
        model({"emb_ids": ids}, valid=torch.ones(ROWS, 2), state=model.init_state(ROWS, LENGTH, **held))
    with pytest.raises(vf.ShapeError, match="chunk is empty"):
        model({"emb_ids": ids[:, :0]}, state=model.init_state(ROWS, LENGTH, **held))
    with pytest.raises(vf.ShapeError, match="made by another model"):
        model({"emb_ids": ids}, state=built("token shift")[0].init_state(ROWS, LENGTH, **held))
    with pytest.raises(vf.ShapeError, match="valid given, and the step"):
        model({"emb_ids": ids, **held}, valid=torch.ones(ROWS, LENGTH, dtype=torch.bool))


def test_programs_without_a_length_of_their_own() -> None:
    model = program(*attention())
    with pytest.raises(vf.ConfigError, match="give max_len"):
        model.init_state(2)
    assert "no input that comes with each call" in refusal(program(inputs={"ids": ["B", 8]}))


def test_a_named_offset_of_fixed_size_cannot_be_cut() -> None:
    lines = [*attention()[:6], step(Scores.spec(), "q k", "s"), step(Offset.spec(), "s o", "s"), *attention()[-2:]]
    model = program(*lines, inputs={"ids": ["B", "L"], "o": [1, HEADS, 64, 64]})
    found = refusal(model, o=torch.zeros(1, HEADS, 64, 64, dtype=torch.float64))
    assert "the last two sizes of both must be the tokens' length, 'L'" in found


def test_blocks_and_labels_are_in_the_message() -> None:
    spec = Block.spec(
        lines=[Step.spec(op=WeightedSum.spec(causal=False), reads=("v", "s"), into=("x",), label="sum")], label="core"
    )
    model = program(*attention()[:7], spec)
    assert "lines.8.lines.0: core, line 1 (sum): cannot decode step by step" in refusal(model)
