"""Weights in files: round trips, shared modules, strictness, damage."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import variform as vf
from variform.weights import load_model, load_weights, save_weights
from variform.weights.io import shared_names


def small(tie: bool = False, dim: int = 24) -> vf.Spec:
    return vf.models.gpt(vocab_size=13, dim=dim, depth=2, heads=3, max_seq_len=17, tie=tie)


@pytest.mark.parametrize("tie", [False, True])
def test_round_trip_is_exact_and_rebuilds_the_model(tie: bool, tmp_path: Path) -> None:
    model = vf.build(small(tie)).eval()
    path = save_weights(model, tmp_path / "m.safetensors")
    again = load_model(path)
    ids = torch.randint(0, 13, (2, 11))
    assert torch.equal(model(ids), again(ids))
    assert again.spec == model.spec
    assert not again.training


def test_a_shared_tensor_is_stored_once_under_its_first_name(tmp_path: Path) -> None:
    model = vf.build(small(tie=True))
    path = save_weights(model, tmp_path / "m.safetensors")
    stored = load_file(path)
    aliases = shared_names(model)
    assert aliases["head.embedding.weight"] == "embedding.weight"
    assert set(stored) == {name for name, _ in model.named_parameters()}
    again = vf.build(small(tie=True))
    load_weights(again, path)
    assert again.head.embedding.weight is again.embedding.weight


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    """In other processes too: nothing in the file depends on the order of a hash table."""
    code = (
        "import sys, torch, variform as vf; from variform.weights import save_weights; torch.manual_seed(0);"
        "spec = vf.models.gpt(vocab_size=13, dim=24, depth=2, heads=3, max_seq_len=17, tie=True);"
        "save_weights(vf.build(spec), sys.argv[1])"
    )
    for name in ("one.safetensors", "two.safetensors"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, timeout=100)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@pytest.mark.parametrize(("saved", "loaded"), [(True, False), (False, True)])
def test_sharing_must_agree(saved: bool, loaded: bool, tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self, tie: bool) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.two = self.one if tie else nn.Linear(3, 3)

    path = save_weights(Pair(saved), tmp_path / "m.safetensors")
    with pytest.raises(vf.ConfigError, match=r"two\.weight: the (file|model) shares it with one\.weight"):
        load_weights(Pair(loaded), path)


def test_every_mismatch_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    model = vf.build(small())
    path = save_weights(model, tmp_path / "m.safetensors")
    tensors = load_file(path)
    moved = tensors.pop("head.project.weight")
    tensors["head.projects.weight"] = moved
    tensors["embedding.weight"] = torch.zeros(14, 24)
    tensors["embedding.position.weight"] = tensors["embedding.position.weight"].half()
    save_file(tensors, path)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(vf.ConfigError) as caught:
        load_weights(model, path)
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "head.project.weight: missing in the file; did you mean 'head.projects.weight'?" in text
    assert "head.projects.weight: left over" in text
    assert "embedding.weight: the file has shape [14, 24], the model [13, 24]" in text
    assert "embedding.position.weight: the file has torch.float16, the model torch.float32" in text
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "aliases", "metadata", "list"])
def test_a_damaged_file_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    model = vf.build(small())
    path = save_weights(model, tmp_path / "m.safetensors")
    facts = {"aliases": '{"aliases": {"a": "nowhere"}}', "metadata": "{", "list": "[]"}
    if damage in facts:
        save_file(load_file(path), path, metadata={"variform": facts[damage]})
    else:
        content = path.read_bytes()
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello" * 40}[damage])
    with pytest.raises(vf.ConfigError, match="damaged"):
        load_weights(model, path)


def test_a_missing_file_and_a_missing_spec_name_the_remedy(tmp_path: Path) -> None:
    save_weights(nn.Linear(2, 2), tmp_path / "model.safetensors")
    with pytest.raises(vf.ConfigError, match=r"no weights file .*did you mean 'model.safetensors'"):
        load_model(tmp_path / "mode.safetensors")
    with pytest.raises(vf.ConfigError, match="carries no spec"):
        load_model(tmp_path / "model.safetensors")


def test_a_folder_that_cannot_be_written_keeps_what_was_saved(tmp_path: Path) -> None:
    with pytest.raises(vf.ConfigError, match="cannot write"):
        save_weights(nn.Linear(2, 2), tmp_path / "nowhere" / "m.safetensors")
    path = save_weights(nn.Linear(2, 2), tmp_path / "m.safetensors")
    before = path.read_bytes()
    save_weights(nn.Linear(2, 2), path)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_other_tensors_in_place_of_the_models_own(tmp_path: Path) -> None:
    model = vf.build(small(tie=True))
    state = {name: torch.full_like(t, 2.0) for name, t in model.state_dict().items()}
    load_weights(model, save_weights(model, tmp_path / "m.safetensors", state=state))
    assert all(bool((p == 2.0).all()) for p in model.parameters())
