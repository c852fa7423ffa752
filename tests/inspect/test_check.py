import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import variform as vf
from tests.inspect.cases import BODY, MODELS, TOKENS
from variform.parts.kinds import FeedForward, Streams

GPT = vf.models.gpt(**TOKENS, max_seq_len=64)


def messages(report: Any) -> str:
    return "\n".join(str(problem) for problem in report.problems)


@pytest.mark.parametrize("name", MODELS)
def test_sound_models_pass(name: str) -> None:
    report = vf.check(MODELS[name](), batch=2, length=17)
    assert report.ok, str(report)
    assert report.spec == vf.resolve(MODELS[name]())
    assert report.description is not None
    assert str(report) == f"ok: {report.description.params:,} parameters"


def test_all_problems_are_reported_at_once() -> None:
    report = vf.check(vf.override(GPT, ["stacks.0.layers.0.heads=5", "stacks.0.layers.1.heads=7"]))
    assert not report.ok
    assert report.spec is None
    assert [p.path for p in report.problems] == [f"stacks.0.layers.{i}.sublayers.0.body.heads" for i in (0, 1)]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (42, "expected a spec"),
        ("missing.yaml", "there is no file"),
        ({"part": "transfomer"}, "did you mean 'transformer'"),
        ({"preset": "gpt", "dim": "wide", "vocab_size": 9, "depth": 1, "heads": 1, "max_seq_len": 9}, "dim"),
        ({"preset": "gpt", "dmi": 8}, "did you mean 'dim'"),
        ({"part": "mlp"}, "takes this field from its surroundings"),
    ],
)
def test_bad_sources_are_reported_not_raised(source: Any, text: str) -> None:
    report = vf.check(source)
    assert not report.ok
    assert text in messages(report)


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("part: [")
    assert "not valid YAML" in messages(vf.check(tmp_path / "bad.yaml"))


def test_decoding() -> None:
    assert vf.check(GPT, decode=True).ok
    assert vf.check(MODELS["seq2seq"](), decode=True).ok  # the encoder and the cross attention do not step
    report = vf.check(MODELS["bert"](), decode=True)
    assert [p.path for p in report.problems] == [f"stacks.0.layers.{i}.sublayers.0.body.attention" for i in range(3)]
    assert "causal" in report.problems[0].hint
    assert str(report).count("is not causal") == 1
    assert "stacks.0.layers.0..2.sublayers.0.body.attention  x3: " in str(report)


def test_running_finds_what_does_not_fit() -> None:
    report = vf.check(GPT, batch=2, length=65)
    assert "max_seq_len is 64" in messages(report)
    assert report.spec is not None
    asked = vf.override(GPT, ["stacks.0.layers.1.sublayers.0.body.attention.backend=flex"])
    assert vf.check(asked).ok
    (problem,) = vf.check(asked, batch=2).problems
    assert problem.path == "stacks.0.layers.1.sublayers.0.body.attention"
    assert "flex" in problem.message


def test_a_part_that_fails_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Narrow(FeedForward):
        """Gives back the wrong size."""

        def forward(self, x: Tensor, streams: Streams) -> Tensor:
            return x[..., :7]

    spec = vf.override(GPT, {"stacks.0.layers.1.sublayers.1.body": Narrow.spec()})
    (problem,) = vf.check(spec, batch=2).problems
    assert problem.path == "stacks.0.layers.1.sublayers.1"  # where the branch is added
    assert problem.message.startswith("RuntimeError: ")
    assert not caplog.records


def test_budgets() -> None:
    described = vf.describe(GPT, 2, 33)
    exact = {"max_params": described.params, "max_flops": described.flops}
    total = described.memory_training().total
    assert vf.check(GPT, batch=2, length=33, **exact, max_memory=total).ok
    tight = vf.check(GPT, batch=2, length=33, max_params=described.params - 1, max_flops=9, max_memory=total - 1)
    assert [word in messages(tight) for word in ("max_params", "max_flops", "max_memory")] == [True] * 3
    assert "the largest batch that fits is 1" in messages(tight)
    assert not vf.check(GPT, max_memory="1 MiB").ok
    llama = MODELS["llama"]()  # no longest sequence, and none is needed to count parameters
    assert vf.check(llama, max_params=10**6).params == vf.describe(llama, 1, 9).params
    assert not vf.check(llama, max_params=1).ok
    assert "give length" in messages(vf.check(llama, max_flops=1))
    assert vf.check(GPT, max_memory="1.5GB").ok
    with pytest.raises(vf.ConfigError, match="24 GiB"):
        vf.check(GPT, max_memory="much")


def test_superset_configs() -> None:
    data = {"part": "softmax", "causal": True, "window": 9}
    source = vf.to_dict(vf.override(GPT, {f"{BODY}.attention.dropout": 0.1}))
    layer = source["stacks"][0]["layers"][0]["of"]
    layer["sublayers"][0]["body"]["attention"] = data
    report = vf.check(source, superset=True)
    assert report.ok, str(report)
    assert report.dropped == ("stacks.0.layers.0.of.sublayers.0.body.attention.window",)
    assert not vf.check(source).ok
    data["windwo"] = 3
    assert "has no field 'windwo'" in messages(vf.check(source, superset=True))


def test_json() -> None:
    bad = json.loads(json.dumps(vf.check(vf.override(GPT, ["heads=5"])).to_json()))
    assert bad["ok"] is False
    assert bad["problems"][0]["path"].endswith("heads")
    assert bad["problems"][0]["hint"]
    good = json.loads(json.dumps(vf.check(GPT, batch=1).to_json()))
    assert good["ok"] is True
    assert vf.from_dict(good["spec"]) == vf.resolve(GPT)
