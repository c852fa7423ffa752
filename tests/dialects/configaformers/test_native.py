"""The same decoder, natively and as a list of modules: equal outputs after copying the weights."""

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.configaformers.programs import gpt
from variform.dialects.configaformers.attention_offset_module import get_alibi
from variform.dialects.configaformers.model_builder import ConfigaFormer

DIM, HEADS, DEPTH, VOCAB, LENGTH = 32, 4, 3, 11, 9


def native_spec(alibi: bool) -> vf.Spec:
    attention = {"part": "multi_head", "bias": True, "out_bias": True, "position_bias": "alibi" if alibi else None}
    layer = {
        "part": "layer",
        "sublayers": [{"part": "sublayer", "body": attention}, {"part": "sublayer", "body": "mlp"}],
    }
    return vf.from_dict(
        {
            "part": "transformer",
            "dim": DIM,
            "heads": HEADS,
            "vocab_size": VOCAB,
            "causal": True,
            "embedding": "tokens",
            "stacks": [{"part": "stack", "layers": [layer] * DEPTH, "norm": "layer_norm"}],
            "head": {"part": "lm", "bias": True},
        }
    )


def weights_by_place(program: ConfigaFormer) -> dict[str, Tensor]:
    """The native names of the program's weights."""
    given = {name: value for name, value in program.state_dict().items() if "cos" not in name and "sin" not in name}
    names = {"lines.0.lines.0.op.weight": "embedding.weight"}
    lines = [
        "",
        "0.norm",
        "0.body.q",
        "0.body.k",
        "0.body.v",
        "",
        "",
        "",
        "",
        "",
        "0.body.out",
        "",
        "",
        "1.norm",
        "1.body.up",
        "",
        "1.body.down",
    ]
    for layer in range(DEPTH):
        for line, place in enumerate(lines):
            for kind in ("weight", "bias"):
                own = f"lines.{layer + 1}.lines.{line}.op."
                for source in (f"{own}{kind}", f"{own}project.{kind}"):
                    names[source] = f"stacks.0.layers.{layer}.sublayers.{place}.{kind}"
    for kind in ("weight", "bias"):
        names[f"lines.{DEPTH + 1}.lines.0.op.{kind}"] = f"stacks.0.norm.{kind}"
        names[f"lines.{DEPTH + 1}.lines.1.op.project.{kind}"] = f"head.project.{kind}"
    return {names[name]: value for name, value in given.items()}


@pytest.mark.parametrize("alibi", [True, False])
def test_outputs_and_gradients_are_equal(alibi: bool) -> None:
    program = ConfigaFormer(**gpt(DIM, HEADS, DEPTH, VOCAB), verbose=False).double()
    native = vf.build(native_spec(alibi)).double()
    native.load_state_dict(weights_by_place(program), strict=True)
    ids = torch.randint(0, VOCAB, (2, LENGTH))
    offset = get_alibi(HEADS, LENGTH, slopes=None if alibi else [0.0] * HEADS).double()
    out = program({"emb_ids": ids, "attn_offset": offset})["x"]
    wanted = native(ids)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    a = torch.autograd.grad(out.square().sum(), next(program.parameters()))[0]
    b = torch.autograd.grad(wanted.square().sum(), native.embedding.weight)[0]
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
