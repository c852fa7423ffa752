"""Programs of module dicts as layers of other models."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import variform as vf
from variform.dialects.configaformers import ConfigaformersError, program_layer
from variform.stack.program import Program
from variform.stack.sublayer import Sublayer

FFN = [
    {"type": "linear", "output_dim": "2*k"},
    {"type": "activation"},
    {"type": "linear", "output_dim": "k", "init_bias": 0},
]
GPT = {"vocab_size": 11, "dim": 16, "depth": 2, "heads": 2, "max_seq_len": 8}


def test_it_is_the_program_as_a_layer() -> None:
    spec = program_layer(FFN, sizes={"k": 16})
    assert spec.part is Program
    layer = vf.build(spec, dim=16).double()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    up, down = layer.lines[0].op, layer.lines[2].op
    expected = down(F.gelu(up(x)))
    assert torch.equal(layer(x, {}), expected)
    assert vf.from_yaml(vf.to_yaml(spec)) == spec
    assert (
        vf.build(program_layer([{"config": FFN, "repeat": 2}], sizes={"k": 16}), dim=16)(x.float(), {}).shape == x.shape
    )


def test_it_is_the_body_of_a_residual_step_and_a_layer_of_a_stack() -> None:
    body = program_layer(FFN, sizes={"k": 16})
    gpt = vf.models.gpt(**GPT)
    for path, part in (("stacks.0.layers.1", Sublayer.spec(body=body)), ("stacks.0.layers.0", body)):
        model = vf.build(vf.override(gpt, {path: part}))
        assert model(torch.randint(0, 11, (2, 5))).shape == (2, 5, 11)
    assert vf.check(vf.override(gpt, {"stacks.0.layers.0": program_layer(FFN, sizes={"k": 8})})).problems


def test_files_write_it_as_a_preset() -> None:
    plain = {"preset": "program_layer", "config": FFN, "sizes": {"k": 16}}
    text = vf.to_yaml(vf.models.gpt(**GPT))
    assert vf.from_dict(plain) == program_layer(FFN, sizes={"k": 16})
    data = vf.to_dict(vf.from_yaml(text))
    data["stacks"][0]["layers"] = [plain, data["stacks"][0]["layers"][0]]
    assert vf.build(vf.from_dict(data))(torch.randint(0, 11, (2, 5))).shape == (2, 5, 11)
    data["stacks"][0]["layers"][0] = {**plain, "config": [{"type": "linaer"}]}
    with pytest.raises(vf.ConfigError, match=r"stacks\.0\.layers\.0\.config\.0\.type: line 1: .*'linear'"):
        vf.from_dict(data)


def test_streams_are_declared() -> None:
    config = [{"type": "merge_streams", "input_name_2": "context"}]
    spec = program_layer(config, dim=4, streams={"context": ["B", "L", "k"]}, sizes={"k": 4})
    x, context = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(vf.build(spec)(x, {"context": context}), x + context)


@pytest.mark.parametrize(
    ("arguments", "path", "words"),
    [
        ({"config": []}, "config", "at least one module"),
        ({"config": [3]}, "config.0", "a module is a dict"),
        ({"config": [{"type": "linear", "output_dim": "kk"}]}, "config.0.output_dim", "line 1: 'kk' is not known"),
        ({"config": [{"type": "linear"}], "sizes": {"i": 2}}, "sizes.i", "is taken"),
        ({"config": [{"type": "linear"}], "streams": {"c": []}}, "streams.c", "list of sizes"),
        ({"config": [{"type": "linear", "output_dim": 8}], "dim": 16}, "output", "(B, L, 8)"),
        ({"config": [{"type": "linear", "input_name": "y"}], "dim": 16}, "config.0", "line 1 (linear): reads 'y'"),
        (
            {"config": [{"config": [{"type": "linear", "input_name": "y"}], "repeat": 2}], "dim": 16},
            "config.0.config.0",
            "Block #1, line 1 (linear): reads 'y'",
        ),
        ({"config": [{"type": "mixer/multi_head", "heads": 3}], "dim": 16}, "config.0.heads", "line 1"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ConfigaformersError) as caught:
        program_layer(**arguments)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert words in str(caught.value)


def test_what_the_model_around_it_provides_is_no_mistake() -> None:
    spec = program_layer([{"type": "mixer/multi_head"}], dim=16)
    assert vf.build(spec, heads=4).lines[0].op.heads == 4
