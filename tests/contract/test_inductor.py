"""The presets under torch's default compiler: the same values and gradients, without a graph break."""

from typing import Any

import pytest
import torch

import variform as vf
from variform.testing.numbers import gradients, same

SIZES = {"dim": 16, "depth": 2, "heads": 4}
TEXT = {"vocab_size": 11, "max_seq_len": 32, **SIZES}
PRESETS = {
    "gpt": vf.models.gpt(**TEXT, tie=True),
    "llama": vf.models.llama(**TEXT, kv_heads=2),
    "bert": vf.models.bert(**TEXT),
    "seq2seq": vf.models.seq2seq(**TEXT),
    "vit": vf.models.vit(image_size=8, patch_size=2, **SIZES, classes=3),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", PRESETS)
def test_presets_compile_with_inductor(name: str) -> None:
    model = vf.build(PRESETS[name])
    args: tuple[Any, ...] = model.example_inputs(2, 17)[0]
    args = tuple(torch.randint(0, 11, a.shape) if not a.is_floating_point() else torch.randn_like(a) for a in args)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    wanted, got = model(*args), compiled(*args)
    same(got, wanted, "the compiled forward", 1e-5)
    found = gradients(got.square().sum(), model)
    for parameter, gradient in gradients(wanted.square().sum(), model).items():
        same(found[parameter], gradient, f"the gradient of {parameter}", 1e-4)
