"""Training configs: sections, overrides, and all mistakes at once."""

from pathlib import Path
from typing import Any

import pytest

import variform as vf
from tests.train.runs import content
from variform.train.config import is_training, make_config, part_spec, read_config

SIZES = {"vocab_size": "from data", "dim": 32, "depth": 2, "heads": 4, "max_seq_len": 128}
GPT = {"preset": "gpt", **SIZES}


def problems(config: dict[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(vf.ConfigError) as caught:
        make_config(config, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_defaults_and_the_vocabulary_from_the_text() -> None:
    config = make_config({"model": GPT})
    assert config.needs_data
    assert config.train.betas == (0.9, 0.99)
    spec = config.spec(77)
    assert spec == vf.resolve(vf.models.gpt(**{**SIZES, "vocab_size": 77}))


def test_the_example_is_valid() -> None:
    config = read_config(Path(__file__).parents[2] / "examples" / "microgpt.yaml")
    assert config.name == "microgpt"
    assert config.spec(80)["max_seq_len"] is None


def test_overrides_reach_preset_arguments_spec_paths_and_sections() -> None:
    overrides = [
        "model.dim=64",
        "model.stacks[0].layers.1.sublayers.0.body.heads=8",
        "data.context=20",
        "train.lr=1e-4",
    ]
    config = make_config({"model": GPT}, [*overrides, "train.samples.top_k=3", "train.betas=[0.8, 0.95]"])
    spec = config.spec(50)
    assert spec["dim"] == 64
    heads = [layer["sublayers"][0]["body"]["heads"] for layer in spec["stacks"][0]["layers"]]
    assert heads == [4, 8]
    assert (config.data.context, config.train.lr, config.train.samples.top_k) == (20, 1e-4, 3)
    assert config.train.betas == (0.8, 0.95)


def test_what_the_caller_gave_is_not_changed() -> None:
    given = {"model": dict(GPT), "train": {"samples": {"tokens": 3}}}
    make_config(given, ["model.dim=64", "train.samples.tokens=5", "data.context=4"])
    assert given == {"model": GPT, "train": {"samples": {"tokens": 3}}}


def test_executor_is_put_on_every_stack() -> None:
    config = make_config({"model": GPT, "train": {"executor": "checkpoint"}})
    assert config.spec(50)["stacks"][0]["executor"] == "checkpoint"


def test_reversible_stacks_are_not_sharded() -> None:
    given = {"model": GPT, "train": {"executor": "reversible"}}
    assert make_config(given).spec(50)["stacks"][0]["executor"] == "reversible"
    found = problems({**given, "train": {"executor": "reversible", "strategy": "fsdp2"}})
    assert [text.split(";")[0] for text in found] == ["model.stacks.0.executor: reversible layers cannot be sharded"]


def test_the_resolved_config_reads_back_to_itself(tmp_path: Path) -> None:
    config = make_config(content(tmp_path))
    plain = config.plain(config.spec(25), "/some/text.txt")
    again = make_config(plain)
    assert again.plain(again.spec(25), "/some/text.txt") == plain
    assert not again.needs_data


def test_all_mistakes_are_reported_at_once() -> None:
    found = problems(
        {
            "model": {**GPT, "heads": 5},
            "data": {"contxt": 3},
            "train": {"stepz": 1, "lr": -1, "schedule": "cosin"},
            "x": 1,
        }
    )
    text = "\n".join(found)
    assert "x: there is no such section; known: data, model, train" in text
    assert "data.contxt: data has no field 'contxt'; did you mean 'context'" in text
    assert "train.stepz: train has no field 'stepz'; did you mean 'steps'?" in text
    assert "train.lr: input should be greater than 0 (got -1)" in text
    assert "train.schedule: input should be 'cosine' or 'constant' (got 'cosin'); did you mean 'cosine'?" in text
    assert "model.stacks.0.layers.1.sublayers.0.body.heads: must divide dim = 32" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.depht=3"], "model.depht: the preset 'gpt' has no field 'depht'; did you mean 'depth'"),
        (["model.depth=three"], "model.depth: .*should be a valid integer"),
        (["modle.depth=3"], "did you mean 'model'?"),
        (
            ["train.samples.prompts=x"],
            r"train.samples.prompts: train.samples has no field 'prompts'; did you mean 'prompt'",
        ),
        (["train.samples=3"], "train.samples: "),
        (["train.steps=10"], "train.warmup: longer than the training of 10 steps"),
        (["train.steps=1e3"], "train.steps: input should be a valid integer"),
        (["train.steps=yes"], "train.steps: input should be a valid integer"),
        (["train.betas=[0.9]"], "train.betas"),
        (
            ["train.schedule=constant", "train.final_lr=0.5"],
            "train.final_lr: a constant schedule has no other final rate",
        ),
        (["train.nodes=2"], "train.run: training on several machines"),
        (["train.name=a", "train.run=b"], "train.name: train.run names the whole folder"),
        (["train.name=a/b"], "train.name: a name, not a path"),
        (["data.context=129"], r"model.max_seq_len: shorter than the training windows \(got 128\)"),
        (["data.validation=0"], "data.validation: input should be greater than 0"),
        (["model.causal=false"], "model.causal: a model that predicts the next character must be causal"),
        (["model.head=null"], "model.head: a language model needs a head"),
        (["train=3"], "SECTION.FIELD=VALUE"),
        (["train.lr"], "SECTION.FIELD=VALUE"),
    ],
)
def test_one_mistake(overrides: list[str], message: str) -> None:
    with pytest.raises(vf.ConfigError, match=message):
        make_config({"model": GPT}, overrides)


@pytest.mark.parametrize("missing", ["unterminated: [", "- 1", "", "model: 3", "train: {steps: 3}", "model: {dim: 3}"])
def test_a_file_that_is_no_config(missing: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(missing)
    with pytest.raises(vf.ConfigError):
        read_config(path)


def test_models_that_are_no_language_models() -> None:
    for model in ({"preset": "vit", "image_size": 8, "patch_size": 4, "dim": 8, "depth": 1, "heads": 2, "classes": 3},):
        assert any("cannot be trained on text" in text or "causal" in text for text in problems({"model": model}))
    bert = {"preset": "bert", "vocab_size": "from data", "dim": 32, "depth": 1, "heads": 2, "max_seq_len": 128}
    assert any("model.causal" in text for text in problems({"model": bert}))
    assert problems({"model": "lm"})


def test_a_vocabulary_of_another_size() -> None:
    config = make_config({"model": {**GPT, "vocab_size": 65}})
    with pytest.raises(vf.ConfigError, match=r"model.vocab_size: the text has 80 different characters \(got 65\)"):
        config.spec(80)


def test_files_without_training_sections(tmp_path: Path) -> None:
    sized = {**GPT, "vocab_size": 65}
    assert not is_training({"model": sized})
    assert not is_training(sized)
    assert is_training({"model": GPT})
    assert is_training({"model": sized, "train": {}})
    expected = vf.models.gpt(**{**SIZES, "vocab_size": 65, "depth": 3, "dim": 64})
    assert part_spec(sized, ["depth=3", "dim=64"]) == expected
    assert part_spec({"model": sized}, ["model.depth=3", "dim=64"]) == expected
    assert part_spec(sized, ["stacks.0.norm=rms_norm"])["stacks"][0]["norm"].name == "rms_norm"
    with pytest.raises(vf.ConfigError, match="did you mean"):
        part_spec(sized, ["dpeth=3"])
