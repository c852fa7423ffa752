import json

import pytest
import torch

import variform as vf
from tests.inspect.cases import BODY, MODELS, TOKENS, with_attention
from variform.inspect import explaining
from variform.ops.attention import Call, attention, candidates, metering
from variform.ops.masks import Dense

GPT = vf.models.gpt(**TOKENS, max_seq_len=4096)
WIDE = vf.models.gpt(**{**TOKENS, "dim": 64}, max_seq_len=4096)
WINDOW = vf.override(WIDE, {f"{BODY}.attention": {"part": "local", "window": 256}, f"{BODY}.position_bias": "alibi"})


def test_one_row_for_each_attention_in_the_order_of_the_parts() -> None:
    explained = vf.explain(MODELS["seq2seq"](), 2, 33)
    paths = [row.path for row in explained.rows]
    assert paths == [p for p, s in vf.resolve(MODELS["seq2seq"]()).walk() if s.kind == "attention"]
    assert [row.mask for row in explained.rows[3:5]] == ["Causal()", "none"]
    assert explained.rows[0].q == (2, 4, 33, 12)


def test_every_backend_answers_and_the_choice_is_what_runs() -> None:
    model = vf.build(MODELS["local"]())
    calls: list[Call] = []
    with metering(lambda call, backend: calls.append(call)):
        model(*model.example_inputs(2, 33)[0])
    rows = vf.explain(model, 2, 33).rows
    assert len(rows) == len(calls) == 3
    for row, call in zip(rows, calls, strict=True):
        assert row.candidates == tuple(candidates(call))
        assert row.chosen == row.candidates[0].name


def test_a_device_that_is_not_there() -> None:
    here, there = vf.explain(WINDOW, 2, 2048), vf.explain(WINDOW, 2, 2048, device="cuda")
    assert (here.device, there.device) == ("cpu", "cuda")
    assert there.rows[0].chosen == "flex"
    refused = {c.name: c.refusal for c in here.rows[0].candidates}
    assert refused["flex"] == "FlexAttention on CPU has no backward"


def test_training_and_inference_differ() -> None:
    spec = MODELS["gpt_dropout"]()
    training, inference = vf.explain(spec, 2, 33), vf.explain(spec, 2, 33, training=False)
    assert training.rows[0].mask == "Causal(), dropout 0.1"
    assert inference.rows[0].mask == "Causal()"
    flex = [next(c for c in e.rows[0].candidates if c.name == "flex") for e in (training, inference)]
    assert flex[0].refusal
    assert flex[1].refusal is None


def test_one_step_of_decoding() -> None:
    explained = vf.explain(MODELS["seq2seq"](), 2, 33, decode=True)
    rows = [row for row in explained.rows if row.path.startswith("decoder")]
    assert len(rows) == len(explained.rows) == 6  # the encoder has read its source before
    assert rows[0].q == (2, 4, 1, 12)
    assert rows[0].k == (2, 4, 33, 12)
    ring = vf.explain(MODELS["local"](), 1, 33, decode=True)
    assert ring.rows[0].k == (1, 4, 9, 12)
    with pytest.raises(vf.ConfigError, match="not causal"):
        vf.explain(MODELS["bert"](), 1, 9, decode=True)


def test_a_backend_asked_for_by_name() -> None:
    served = vf.explain(vf.override(GPT, [f"{BODY}.attention.backend=reference"]), 1, 33)
    assert (served.rows[0].asked, served.rows[0].chosen) == ("reference", "reference")
    refused = vf.explain(vf.override(GPT, [f"{BODY}.attention.backend=flex"]), 1, 33)
    assert (refused.rows[0].asked, refused.rows[0].chosen) == ("flex", None)
    assert "raises a BackendError" in str(refused)


def test_parts_without_a_choice() -> None:
    explained = vf.explain(with_attention("linear"), 1, 33)
    assert explained.rows == ()
    assert "no attention with a choice of backends" in str(explained)


def test_text_and_json() -> None:
    explained = vf.explain(GPT, 2, 33)
    assert "stacks.0.layers.0..2.sublayers.0.body.attention  x3" in str(explained)
    data = json.loads(json.dumps(explained.to_json()))
    assert data["rows"][2]["chosen"] == "sdpa"
    assert data["rows"][2]["candidates"][0]["why"] == "fused kernel"


def test_nothing_of_the_model_changes() -> None:
    model = vf.build(MODELS["gpt_dropout"]())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vf.explain(model, 2, 33, training=False)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    call = Call(*(torch.randn(1, 1, 3, 4) for _ in range(3)))
    assert torch.equal(attention(call), attention(call))


def test_one_call_with_the_densities_that_decide() -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 1024, 64)
    call = Call(q, q, q, mask=Dense(torch.rand(1024, 1024) < 0.05))
    found = vf.explain(call)
    assert found.rows[0].chosen == "sparse"
    assert (found.batch, found.length, found.device, found.training) == (2, 1024, "cpu", False)
    text = str(found)
    assert "-> sparse" in text
    assert "5% of the pairs are attended, which pays below" in text
    assert "passed over: 100% of the blocks of 128 are visited, which pays below 50%" in text
    many = str(vf.explain(Call(q, q, q, mask=Dense(torch.rand(1024, 1024) < 0.6))))
    assert "-> sdpa" in many
    assert "passed over: 60% of the pairs are attended, which pays below" in many


def test_the_calls_of_any_module_with_its_masks() -> None:
    module = vf.build(vf.models.gpt(vocab_size=9, dim=32, depth=1, heads=2, max_seq_len=600)).eval()
    ids = torch.zeros(1, 600, dtype=torch.long)
    with explaining() as choices:
        module(ids)
    module(ids)
    assert [choice.chosen for choice in choices] == ["sdpa"]
    assert "-> sdpa" in str(choices[0])
