"""The shortest description of a resolved part resolves to it again."""

import pytest

import variform as vf
from variform.core.minimal import minimal
from variform.core.resolve import resolve
from variform.lower import lower

GPT = {"vocab_size": 11, "dim": 16, "depth": 2, "heads": 4, "max_seq_len": 8}


@pytest.mark.parametrize(
    "spec",
    [
        vf.models.gpt(**GPT, tie=True),
        vf.models.llama(**GPT, kv_heads=2),
        vf.models.seq2seq(**GPT),
        vf.models.vit(image_size=8, patch_size=4, dim=16, depth=2, heads=4, drop_path=0.2),
        lower(vf.models.llama(**GPT), depth="ops").spec,
    ],
    ids=["gpt", "llama", "seq2seq", "vit", "program"],
)
def test_it_resolves_to_the_same(spec):
    resolved = resolve(spec)
    assert resolve(minimal(resolved)) == resolved


def test_what_the_surroundings_provide_is_left_out():
    resolved = resolve(vf.models.gpt(**GPT))
    layer = minimal(resolved)["stacks"][0]["layers"][0]
    body = layer["sublayers"][0]["body"]
    assert "dim" not in body.args
    assert "writes" not in body.args
    assert "causal" not in body.args.get("attention", layer).args
    assert vf.to_yaml(minimal(resolved)).count("dim:") == 1


def test_what_differs_from_the_surroundings_is_kept():
    spec = vf.from_dict({"part": "stack", "layers": [{"part": "layer", "heads": 2, "sublayers": []}], "heads": 4})
    assert minimal(resolve(spec, dim=8))["layers"][0].args["heads"] == 2
    part = resolve({"part": "multi_head", "heads": 2}, dim=8)
    assert minimal(part, dim=8).args == {"heads": 2}
    assert minimal(part).args == {"heads": 2, "dim": 8}


def test_lists_and_numbers_are_compared_as_they_are_checked():
    part = resolve({"part": "mlp", "mult": 4, "dim": 8})
    assert minimal(part, dim=8).args == {}
