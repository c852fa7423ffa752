"""Programs as configs: any program, and any model as a program, is written and read back as the same."""

from typing import Any

import pytest
import torch

import variform as vf
from tests.dialects.configaformers.programs import demo, gpt
from tests.lower.models import SMALL, arrangements, call, every, tensors
from variform.core.text import parse_json, parse_yaml
from variform.dialects.configaformers.errors import ConfigaformersError
from variform.dialects.configaformers.files import program_of
from variform.dialects.configaformers.model_builder import ConfigaFormer, program_spec
from variform.dialects.configaformers.spelling import type_of
from variform.dialects.configaformers.text import config_text, save_config, to_python
from variform.dialects.configaformers.write import as_program, to_config
from variform.errors import ConfigError
from variform.parts.op.tokenwise import LinearOp
from variform.stack.lines import Block, Step
from variform.stack.program import ProgramModel

CASES = every()
X = {"x": ["B", "L", 8]}


def again(spec: Any) -> Any:
    return program_of(parse_yaml(config_text(to_config(spec))))


@pytest.mark.parametrize("depth", ["parts", "ops"])
@pytest.mark.parametrize("name", list(CASES))
def test_any_model_is_written_and_read_back(name: str, depth: str) -> None:
    spec = as_program(CASES[name], depth=depth).spec
    assert again(spec) == spec


def test_the_config_is_the_arguments_of_the_reader() -> None:
    config = to_config(CASES["gpt"], depth="ops")
    assert program_spec(**config) == as_program(CASES["gpt"], depth="ops").spec
    assert program_of(parse_json(config_text(config, ".json"))) == program_spec(**config)


@pytest.mark.parametrize("name", ["gpt", "seq2seq", "bert", "llama"])
def test_streams_are_written_too(name: str) -> None:
    streams = ("source_valid", "target_valid") if name == "seq2seq" else ("valid", "segments")
    low = as_program(CASES[name], depth="ops", streams=streams)
    assert again(low.spec) == low.spec
    model, program = vf.build(CASES[name]).double().eval(), vf.build(again(low.spec)).double().eval()
    program.load_state_dict(low.transfer(model.state_dict()))
    given = tensors(low)
    torch.testing.assert_close(program(given)["x"], call(model, given), rtol=1e-10, atol=1e-10)


SAMPLES: dict[str, list[dict[str, Any]]] = {
    "merges": [
        {"type": "linear", "output_name": "y", "input_norm": "rms_norm", "output_norm": "scale_norm"},
        {"type": "merge_streams", "input_name_2": "y", "merge_type": "mult", "output_name": "z"},
        {"type": "cat_streams", "input_list": ["x", "y", "z"], "cat_dim": 2},
        {"type": "activation", "activation_function": ["relu", "tanh"], "output_norm": "layer_norm"},
    ],
    "values": [
        {"type": "linear", "init_bias": 1, "output_dim": 16},
        {"type": "Linear", "output_name": "k"},
        {"type": "make_heads", "num_heads": 4},
        {"type": "make_heads", "num_heads": 4, "input_name": "k", "output_name": "k"},
        {"type": "gate", "gate_type": "heads"},
        {"type": "scale_dim", "dim_to_scale": 1, "input_name": "k", "output_name": "k"},
        {"type": "rope", "rotate_dim": 4, "max_length": 64},
        {"type": "mha_dots", "input_name_keys": "k"},
        {"type": "merge_heads"},
        {
            "type": "mha_sum",
            "attn_function": "relu",
            "norm_value_heads": "layer_norm",
            "output_name_attention_scores": "weights",
        },
    ],
    "tokens": [
        {"type": "shift", "instructions": [{"features": [0, 4], "relative_pos": -1}]},
        {"type": "down_sample", "stride": 2, "output_name": "half"},
        {"type": "cut_stream", "start": 0, "end": "L - 1", "cut_dim": 1, "output_name": "rest"},
        {"type": "dropout", "prob": 0.1},
    ],
    "parts": [
        {"type": "attention", "heads": 2, "causal": True, "share": "mix", "label": "mixing"},
        {"type": "norm", "norm_type": "rms_norm", "label": "a norm"},
        {"type": "attention", "heads": 2, "causal": True, "share": "mix"},
        {"type": "linear", "share": "map"},
        {"type": "linear", "share": "map"},
        {
            "type": "program",
            "config": [{"type": "linear", "output_name": "y"}, {"type": "merge_streams", "input_name_2": "y"}],
        },
        {"type": "rearrange", "pattern": "b l (h d) -> b h l d", "h": 2},
    ],
    "blocks within": [
        {
            "type": "program",
            "blocks": [{"config": [{"type": "glu"}], "repeat": 2}, {"config": [{"type": "norm"}], "repeat": 1}],
        }
    ],
}


@pytest.mark.parametrize("name", list(SAMPLES))
def test_programs_of_the_dialect_are_written_in_its_words(name: str) -> None:
    blocks = [{"config": SAMPLES[name], "repeat": 1}]
    spec = program_spec(blocks=blocks, input_shapes=X)
    assert again(spec) == spec


def test_the_quick_demo_is_written_as_it_was() -> None:
    given = demo()
    config = to_config(program_spec(**given))
    assert [block["repeat"] for block in config["blocks"]] == [1, 12, 1]
    shorter = [dict(module) for module in given["model_config"]["blocks"][1]["config"]]
    for module in shorter:  # what stands at its default is left out
        for key in ("norm_type", "merge_type"):
            module.pop(key, None)
    assert config["blocks"][1]["config"] == shorter
    assert program_spec(**config) == program_spec(**given)


@pytest.mark.parametrize(
    "given",
    [
        gpt(16, 2, 2, 11),
        {
            "blocks": [
                {
                    "config": [{"type": "linear", "output_dim": "8*(i + 1)"}, {"type": "norm", "when": "i > 0"}],
                    "repeat": 3,
                }
            ],
            "input_shapes": X,
        },
        {"blocks": [{"config": [{"type": "linear"}], "repeat": 4, "when": "i % 2 == 0"}], "input_shapes": X},
        {
            "blocks": [{"config": [{"type": "linear", "output_name": n} for n in "abc"], "repeat": 1}],
            "input_shapes": X,
            "output_streams": ["c", "a"],
        },
        {"blocks": [{"config": [{"type": "linear", "output_name": n} for n in "abc"], "repeat": 1}], "input_shapes": X},
    ],
)
def test_repeats_and_conditions_are_written_out(given: dict[str, Any]) -> None:
    spec = program_spec(**given)
    assert again(spec) == spec


def test_numbers_are_written_by_name() -> None:
    config = to_config(vf.models.gpt(**SMALL, depth=2), {"d": 24, "v": 13}, depth="ops")
    text = config_text(config)
    assert "out: 4*d" in text
    assert "classes: v" in text
    assert config["sizes"] == {"d": 24, "v": 13}
    assert program_of(config) == as_program(vf.models.gpt(**SMALL, depth=2), depth="ops").spec
    for name in ("L", "BSZ", "i", "4d"):
        with pytest.raises(ConfigError, match="cannot name a size"):
            to_config(vf.models.gpt(**SMALL, depth=2), {name: 24})


def test_what_is_shared_is_described_once() -> None:
    config = to_config(CASES["gpt tied"])
    head = config["blocks"][-1]["config"][-1]
    assert head == {"type": "tied_lm", "embedding": {"shared": "tokens"}}
    assert config["blocks"][0]["config"][0]["share"] == "tokens"


def native(lines: Any, **more: Any) -> vf.Spec:
    return vf.resolve(ProgramModel.spec(lines=lines, inputs={"x": ("rows", "L", 8)}, **more))


def test_other_programs_are_brought_to_blocks_of_steps() -> None:
    """Steps outside of blocks, blocks in blocks, shared blocks: the program is the same, its places are others."""
    step = Step.spec(op=LinearOp.spec())
    inner = Block.spec(lines=[step, Block.spec(lines=[Step.spec(op={"part": "activation"})])])
    shared = vf.Shared("twice", Block.spec(lines=[step, Step.spec(op={"part": "mlp", "mult": 2})]))
    spec = native([step, inner, shared, step, shared], executor="checkpoint", strict=True)
    config = to_config(spec)
    assert config["executor"] == "checkpoint"
    assert config["strict"] is True
    first, second = vf.build(spec), vf.build(program_of(config))
    ours, theirs = dict(second.named_parameters()), dict(first.named_parameters())
    assert [p.shape for p in ours.values()] == [p.shape for p in theirs.values()]
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        a.data.copy_(b.data)
    x = torch.randn(2, 3, 8)
    assert torch.equal(first({"x": x})["x"], second({"x": x})["x"])
    assert program_of(to_config(program_of(config))) == program_of(config)


def test_a_type_is_told_without_surroundings() -> None:
    assert type_of(vf.resolve({"part": "norm/layer_norm"}, dim=8)) == "norm"
    assert type_of(vf.resolve({"part": "norm/layer_norm", "eps": 0.1}, dim=8)) == "layer_norm"
    assert type_of(vf.resolve({"part": "op/linear", "bias": False}, dim=8)) == "op/linear"
    assert type_of(vf.resolve({"part": "mixer/multi_head", "heads": 2}, dim=8)) == "multi_head"
    assert type_of(vf.resolve({"part": "rotation/rotary"}, dim_head=8)) == "rotation/rotary"


def test_python_text_builds_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    spec = arrangements()["shared layer"]
    names: dict[str, Any] = {}
    exec(to_python(to_config(spec, {"d": 24})), names)  # our own text
    assert isinstance(names["model"], ConfigaFormer)
    assert names["model"].spec == as_program(spec).spec
    assert "Block #2, 3x" in capsys.readouterr().out
    recomputed = to_config(native([Step.spec(op=LinearOp.spec())], executor="checkpoint"))
    with pytest.raises(ConfigaformersError, match="has no such argument"):
        to_python(recomputed)


@pytest.mark.parametrize("ending", [".yaml", ".json", ".py", ".txt"])
def test_files(tmp_path: Any, ending: str) -> None:
    config = to_config(CASES["gpt"])
    target = tmp_path / f"program{ending}"
    if ending == ".txt":
        with pytest.raises(ConfigaformersError, match="cannot tell the format"):
            save_config(config, target)
        return
    assert save_config(config, target) == target
    assert target.read_text() == config_text(config, ending)
    with pytest.raises(ConfigaformersError, match="cannot write"):
        save_config(config, tmp_path / "none" / f"program{ending}")


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="leave the options out"):
        to_config(program_spec(**demo()), depth="ops")
    with pytest.raises(ConfigError, match="there is no program for the head"):
        to_config(vf.resolve({"part": "lm", "vocab_size": 3}, dim=4))
