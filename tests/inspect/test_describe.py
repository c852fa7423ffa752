import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.inspect.cases import BODY, MODELS, SIZES, TOKENS, counted_flops, saved_bytes, state_bytes, with_attention
from variform.core.part import Cost
from variform.core.registry import unregister
from variform.inspect.places import place_tree
from variform.parts.kinds import FeedForward, Streams

GPT = vf.models.gpt(**TOKENS, max_seq_len=64)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_equal_those_of_the_built_model(name: str) -> None:
    spec = MODELS[name]()
    model = vf.build(spec)
    described = vf.describe(spec, 2, 17)
    assert described.params == sum(p.numel() for p in model.parameters())
    for place in place_tree(model).walk():
        row = next(row for row in described.rows if row.path == place.path)
        assert row.params == sum(p.numel() for p in place.part.parameters()), place.path


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("batch", "length"), SIZES)
def test_shapes_equal_those_of_a_real_run(name: str, batch: int, length: int) -> None:
    spec = MODELS[name]()
    model = vf.build(spec)
    seen: dict[int, list[tuple[int, ...]]] = {}

    def note(part: nn.Module, args: Any, out: Any) -> None:
        tensor = out[0] if isinstance(out, tuple) else next(iter(out.values())) if isinstance(out, dict) else out
        if isinstance(tensor, Tensor):
            seen.setdefault(id(part), []).append(tuple(tensor.shape))

    for part in model.modules():
        if isinstance(part, vf.Part):
            part.register_forward_hook(note)
    args, kwargs = model.example_inputs(batch, length)
    model(*args, **kwargs)
    described = {row.path: row for row in vf.describe(spec, batch, length).rows}
    calls: dict[int, int] = {}
    for place in place_tree(model).walk():
        row, part = described[place.path], id(place.part)
        calls[part] = calls.get(part, 0) + row.calls
        if row.outputs:
            assert _sizes(row.outputs[0], batch, length) in seen[part], place.path
    assert {part: len(shapes) for part, shapes in seen.items()} == {part: calls[part] for part in seen}


def _sizes(text: str, batch: int, length: int) -> tuple[int, ...]:
    return tuple(eval(text.rpartition(": ")[2], {"B": batch, "L": length}))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("batch", "length"), SIZES)
def test_kept_bytes_equal_those_of_a_real_run(name: str, batch: int, length: int) -> None:
    spec = MODELS[name]()
    model = vf.build(spec)
    args, kwargs = model.example_inputs(batch, length)
    real = saved_bytes(model, *args, **kwargs)
    assert vf.describe(spec, batch, length).activation_bytes == real


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_kept_bytes_in_other_types(dtype: torch.dtype) -> None:
    model = vf.build(GPT, dtype=dtype)
    described = vf.describe(GPT, 2, 33, dtype=dtype)
    assert described.activation_bytes == saved_bytes(model, *model.example_inputs(2, 33)[0])
    assert described.state_bytes == state_bytes(model.init_state(2, 33))


@pytest.mark.parametrize("name", ["gpt", "gpt_tied", "llama", "llama_limited", "seq2seq", "local", "linear", "shared"])
def test_state_bytes_equal_those_of_a_real_state(name: str) -> None:
    spec = MODELS[name]()
    model = vf.build(spec)
    described = vf.describe(spec, 3, 33)
    more = {"source": model.example_inputs(3, 33)[0][0]} if name == "seq2seq" else {}
    assert described.state_bytes == state_bytes(model.init_state(3, 33, **more))
    assert vf.describe(spec, 3, 33, decode_len=9).state_bytes != described.state_bytes or name == "linear"


def test_models_that_cannot_decode_say_why() -> None:
    described = vf.describe(MODELS["bert"](), 1, 9)
    assert described.state_bytes is None
    assert "not causal" in described.state_reason
    assert "stacks.0.layers.0.sublayers.0.body.attention" in described.state_reason
    assert all(row.state_bytes is None for row in described.rows)
    with pytest.raises(vf.ConfigError, match="cannot decode"):
        described.memory_decoding()


@pytest.mark.parametrize(("batch", "length"), SIZES)
def test_flops_equal_the_formula(batch: int, length: int) -> None:
    dim, depth, vocab = TOKENS["dim"], TOKENS["depth"], TOKENS["vocab_size"]
    described = vf.describe(GPT, batch, length)
    matrices = 24 * batch * length * dim**2 * depth + 2 * batch * length * dim * vocab
    causal = length * (length + 1) // 2
    assert described.flops == matrices + depth * 4 * batch * dim * causal
    assert described.flops_dense == matrices + depth * 4 * batch * dim * length**2
    assert described.flops_backward == 2 * described.flops  # every factor of every product needs a gradient
    window = vf.describe(with_attention({"part": "local", "window": 9}), batch, length)
    pairs = sum(min(i + 1, 9) for i in range(length))
    assert window.flops == matrices + depth * 4 * batch * dim * pairs


def test_grouped_heads_cost_what_the_query_heads_cost() -> None:
    dim, kv, length, hidden = 48, 24, 33, 128
    described = vf.describe(MODELS["llama"](), 2, length)
    layer = 2 * dim * (2 * dim + 2 * kv) + 6 * dim * hidden
    matrices = 2 * length * (3 * layer + 2 * dim * 65)
    assert described.flops == matrices + 3 * 4 * 2 * dim * length * (length + 1) // 2


@pytest.mark.parametrize("name", ["gpt", "gpt_tied", "bert", "vit", "llama", "llama_limited", "seq2seq", "shared"])
@pytest.mark.parametrize(("batch", "length"), SIZES)
def test_dense_flops_equal_torchs_counter(name: str, batch: int, length: int) -> None:
    spec = MODELS[name]()
    model = vf.build(spec)
    args, kwargs = model.example_inputs(batch, length)
    assert vf.describe(spec, batch, length).flops_dense == counted_flops(model, *args, **kwargs)


def test_rows_sum_to_their_parents() -> None:
    rows = vf.describe(GPT, 2, 33).rows
    for row in rows:
        prefix = f"{row.path}.sublayers."
        inner = [r for r in rows if r.path.startswith(prefix) and "." not in r.path.removeprefix(prefix)]
        if inner:
            assert row.flops == sum(r.flops for r in inner)
            assert row.activation_bytes == sum(r.activation_bytes for r in inner)
            assert row.state_bytes == sum(r.state_bytes or 0 for r in inner)


def test_symbols() -> None:
    rows = {row.path: row for row in vf.describe(GPT, 2, 32).rows}
    assert rows[""].inputs == ("(B, L)",)
    assert rows[""].outputs == ("(B, L, 65)",)
    assert rows["stacks.0.layers.2.sublayers.0.body.attention"].inputs == ("(B, 4, L, 12)",) * 3
    image = {row.path: row for row in vf.describe(MODELS["vit"](), 2).rows}
    assert image["embedding"].outputs == ("(B, 10, 48)",)


def test_equal_layers_are_built_and_run_once() -> None:
    runs = 0

    @vf.register("counting")
    class Counting(FeedForward):
        """Doubles."""

        def forward(self, x: Tensor, streams: Streams) -> Tensor:
            nonlocal runs
            runs += 1
            return x * 2

    try:
        spec = vf.models.gpt(**{**TOKENS, "depth": 40}, max_seq_len=64)
        described = vf.describe(vf.override(spec, ["stacks.0.layers.*.sublayers.1.body=counting"]), 2, 32)
    finally:
        unregister("feedforward", "counting")
    assert runs == 3  # one for each of the three sizes that tell symbols from numbers
    assert sum(row.name == "counting" for row in described.rows) == 40


def test_cost_by_formula() -> None:
    class Routed(FeedForward):
        """Runs a part of the tokens, which ones the data tell."""

        def __init__(self, dim: int = vf.INHERIT) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(dim, dim))

        def forward(self, x: Tensor, streams: Streams) -> Tensor:
            x[x > 0].sum().item()
            return x @ self.weight

        def cost(self, x: Tensor, streams: Streams) -> Cost:
            return Cost(flops=1000, flops_dense=4000, flops_backward=2000, activation_bytes=512, output=x.clone())

    body = {"stacks.0.layers.1.sublayers.1.body": Routed.spec()}
    spec = vf.override(GPT, body)
    row = next(row for row in vf.describe(spec, 2, 32).rows if row.path == next(iter(body)))
    assert (row.flops, row.flops_dense, row.flops_backward, row.activation_bytes) == (1000, 4000, 2000, 512)
    plain = vf.describe(GPT, 2, 32)
    mlp = next(row for row in plain.rows if row.path == next(iter(body)))
    assert vf.describe(spec, 2, 32).flops == plain.flops - mlp.flops + 1000


def test_single_parts_and_other_sources(tmp_path: Any) -> None:
    part = vf.describe({"part": "mixer/multi_head", "dim": 48, "heads": 4}, 2, 9)
    assert part.params == 4 * 48 * 48
    assert part.rows[0].outputs == ("(B, L, 48)",)
    assert vf.describe({"part": "mlp"}, 2, 9, dim=48).params == 8 * 48 * 48 + 5 * 48
    with pytest.raises(vf.ConfigError, match="cannot be run alone"):
        vf.describe({"part": "softmax"}, 2, 9)
    path = vf.save(GPT, tmp_path / "gpt.yaml")
    assert vf.describe(path, 2, 9).rows == vf.describe(GPT, 2, 9).rows
    assert vf.describe(vf.build(GPT), 2, 9).rows == vf.describe(GPT, 2, 9).rows


def test_class_tokens_leave_fewer_places_for_tokens() -> None:
    features = {"part": "features", "class_tokens": 2, "position": "position/learned"}
    model = {"part": "transformer", "embedding": features, "dim": 8, "max_seq_len": 14}
    model["stacks"] = [{"part": "stack", "layers": [{"part": "sublayer", "body": "mlp"}]}]
    assert vf.describe(model).length == 12
    assert vf.diagram(model).svg()


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(vf.ShapeError, match="max_seq_len is 64"):
        vf.describe(GPT, 1, 65)
    with pytest.raises(vf.ConfigError, match="give length"):
        vf.describe(MODELS["llama"]())
    with pytest.raises(vf.ConfigError, match="batch must be a positive integer"):
        vf.describe(GPT, 0)
    assert vf.describe(GPT).length == 64
    assert vf.describe(MODELS["seq2seq"]()).length == 64
    assert vf.describe(MODELS["vit"]()).length is None


def test_nothing_of_the_surroundings_changes() -> None:
    before = torch.get_rng_state()
    vf.describe(GPT, 2, 32, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_memory_and_largest_batch() -> None:
    described = vf.describe(GPT, 2, 32)
    memory = described.memory_training("adamw")
    assert memory.total == 4 * 4 * described.params + described.activation_bytes
    assert described.memory_training("sgd").total == 2 * 4 * described.params + described.activation_bytes
    room = described.memory_training(batch=7).total / (1 << 30)
    assert described.largest_batch(room) == 7
    wider = vf.describe(GPT, 7, 32)
    assert wider.activation_bytes == described.memory_training(batch=7).activations
    assert wider.fits(room)
    assert not wider.fits(room * 0.999)
    assert described.largest_batch(0.000001) == 0
    with pytest.raises(vf.ConfigError, match="did you mean 'adam' or 'adamw'"):
        described.memory_training("adamv")


def test_another_device_is_described_without_it() -> None:
    spec = MODELS["gpt_dropout"]()
    here, there = vf.describe(spec, 2, 32), vf.describe(spec, 2, 32, device="cuda")
    row = "stacks.0.layers.0.sublayers.0.body.attention"
    kept = {d.device: next(r for r in d.rows if r.path == row).activation_bytes for d in (here, there)}
    # On CPU dropout takes the plain path, which keeps every score; elsewhere q, k, v, the result and a number a row.
    assert kept["cuda"] == 4 * (4 * 2 * 32 * 48 + 2 * 4 * 32)
    assert kept["cpu"] > kept["cuda"]
    asked = vf.override(GPT, [f"{BODY}.attention.backend=flex"])
    with pytest.raises(vf.BackendError, match="flex"):
        vf.describe(asked, 2, 32)
    assert vf.describe(asked, 2, 32, device="cuda").params == vf.describe(GPT).params


def test_text_and_json() -> None:
    described = vf.describe(vf.models.gpt(**TOKENS, max_seq_len=64), 2, 32)
    text = str(described)
    assert "layers.0..2 layer x3" in text
    assert f"{described.params:,}" in text
    assert max(map(len, text.splitlines())) <= 160
    data = json.loads(json.dumps(described.to_json()))
    assert data["params"] == described.params
    assert data["rows"][0]["outputs"] == ["(B, L, 65)"]
    assert data["memory_training"]["total"] == described.memory_training().total


GPT3 = """
import resource, time
import torch
torch.set_num_threads(1)
import variform as vf
spec = vf.models.gpt(vocab_size=50257, dim=12288, depth=96, heads=96, max_seq_len=2048)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()  # one thread; what other processes take does not count
described = vf.describe(spec, batch=1, length=2048)
text = str(described)
print(time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
print(described.params, described.flops_dense)
"""


def test_gpt3_in_three_seconds_and_500_megabytes() -> None:
    done = subprocess.run([sys.executable, "-c", GPT3], capture_output=True, text=True, check=True)
    seconds, megabytes, params, flops = map(float, done.stdout.split())
    assert seconds <= 3
    assert megabytes <= 500
    d, vocab, length, depth = 12288, 50257, 2048, 96
    assert params == 2 * vocab * d + length * d + depth * (12 * d**2 + 2 * d) + d
    assert flops == 24 * length * d**2 * depth + 4 * length**2 * d * depth + 2 * length * d * vocab
