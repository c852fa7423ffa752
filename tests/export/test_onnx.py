"""Models as graphs, against themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.configaformers.programs import demo
from variform.dialects.configaformers import get_alibi, program_spec
from variform.export.onnx import to_exported, to_graph, to_onnx

SIZES = {"vocab_size": 17, "dim": 16, "depth": 1, "heads": 2, "max_seq_len": 24}
PRESETS: dict[str, Any] = {
    "gpt": vf.models.gpt(**SIZES),
    "llama": vf.models.llama(**SIZES),
    "bert": vf.models.bert(**SIZES),
    "seq2seq": vf.models.seq2seq(**SIZES),
    "vit": vf.models.vit(image_size=8, patch_size=4, classes=3, dim=16, depth=1, heads=2),
    "program": program_spec(**demo(dim=24, depth=1, vocab=17, rotate_dim=2)),
}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    model = vf.build(PRESETS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs_of(name: str, batch: int, length: int) -> list[Tensor]:
    ids = torch.randint(17, (batch, length))
    if name == "vit":
        return [torch.randn(batch, 3, 8, 8)]
    if name == "seq2seq":
        return [torch.randint(17, (batch, length)), ids]
    return [ids, get_alibi(12, length).repeat(batch, 1, 1, 1)] if name == "program" else [ids]


def run(model: Any, name: str, inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        if name == "program":
            out: Tensor = model({"emb_ids": inputs[0], "attn_offset": inputs[1]})["x"]
        else:
            out = model(*inputs)
    return out


def check_exported(name: str) -> None:
    model = model_of(name)
    graph = to_exported(model, 3, 9)
    run_graph = graph.program.module()
    for batch, length in ((3, 9), (2, 13), (1, 5)):
        inputs = inputs_of(name, batch, length)
        torch.testing.assert_close(run_graph(*inputs)[0], run(model, name, inputs), rtol=1e-5, atol=1e-5)


def check_onnx(name: str, path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = model_of(name)
    session = onnxruntime.InferenceSession(str(to_onnx(model, path / "model.onnx", 3, 9)))
    names = [entry.name for entry in session.get_inputs()]
    for batch, length in ((3, 9), (2, 13), (1, 5)):
        inputs = inputs_of(name, batch, length)
        (out,) = session.run(None, {n: value.numpy() for n, value in zip(names, inputs, strict=True)})
        torch.testing.assert_close(torch.from_numpy(out), run(model, name, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "program"])
def test_an_exported_program_computes_the_same(name: str) -> None:
    check_exported(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"llama", "program"}))
def test_more_exported_programs_compute_the_same(name: str) -> None:
    check_exported(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_an_onnx_file_computes_the_same(name: str, tmp_path: Path) -> None:
    check_onnx(name, tmp_path)


@pytest.mark.slow
def test_side_inputs_are_tensors_of_the_graph() -> None:
    model = model_of("gpt")
    graph = to_exported(model, 3, 9, ("valid", "mask"))
    assert graph.inputs == ("inputs", "valid", "mask")
    ids, valid = torch.randint(17, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    valid[1, :3] = False
    mask = torch.rand(2, 1, 7, 7) < 0.7
    found = graph.program.module()(ids, valid, mask)[0]
    true = model(ids, valid=valid, mask=mask)
    torch.testing.assert_close(found[valid], true[valid], rtol=1e-5, atol=1e-5)


def test_modes_are_left_alone_and_files_load(tmp_path: Path) -> None:
    model = model_of("gpt").train()
    model.stacks[0].eval()
    before = [module.training for module in model.modules()]
    path = to_graph(model, tmp_path / "model.pt2", length=5, dynamic=False)
    assert [module.training for module in model.modules()] == before
    ids = torch.randint(17, (2, 5))
    torch.testing.assert_close(torch.export.load(path).module()(ids)[0], model.eval()(ids), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vf.ConfigError, match="ends in"):
        to_graph(PRESETS["gpt"], tmp_path / "model.txt")
    with pytest.raises(vf.ConfigError, match=r"ends in \.onnx"):
        to_onnx(PRESETS["gpt"], tmp_path / "model.pt2")
    with pytest.raises(vf.ConfigError, match="'valid'"):
        to_exported(PRESETS["gpt"], streams=("valide",))
    with pytest.raises(vf.ConfigError, match="at least 2 rows"):
        to_exported(PRESETS["gpt"], batch=1)
    with pytest.raises(vf.ConfigError, match="declares"):
        to_exported(PRESETS["program"], length=5, streams=("valid",))
    with pytest.raises(vf.ConfigError, match="whole model"):
        to_exported(vf.build(PRESETS["gpt"]).stacks[0])
