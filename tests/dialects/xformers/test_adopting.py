"""A part that is registered with upstream's decorator: the suite, the benchmark and native models pick it up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import variform as vf

MODULE = """
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn

from variform.dialects.xformers.components import build_activation
from variform.dialects.xformers.components.attention import Attention, AttentionConfig, register_attention
from variform.dialects.xformers.components.feedforward import Feedforward, FeedforwardConfig, register_feedforward
from variform.dialects.xformers.components.positional_embedding import (
    PositionEmbedding,
    PositionEmbeddingConfig,
    register_positional_embedding,
)


@dataclass
class MyConfig(AttentionConfig):
    causal: bool
    temperature: float


@register_attention("my_part", MyConfig)
class MyAttention(Attention):
    def __init__(self, dropout: float, causal: bool = False, temperature: Optional[float] = 1.0, *args, **kwargs):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.causal, self.temperature = causal, temperature

    def forward(self, q, k, v, att_mask=None, *args, **kwargs):
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 / self.temperature
        if {causal}:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        if att_mask is not None:
            scores = scores.masked_fill(~att_mask, -torch.inf)
        return self.drop(scores.softmax(-1).nan_to_num(0.0)) @ v


@register_feedforward("my_feedforward", FeedforwardConfig)
class MyFeedforward(Feedforward):
    def __init__(self, dim_model: int, dropout: float, activation, width: int = 3, *args, **kwargs):
        super().__init__()
        up, down = nn.Linear(dim_model, width), nn.Linear(width, dim_model)
        self.net = nn.Sequential(up, build_activation(activation), nn.Dropout(dropout), down)

    def forward(self, inputs):
        return self.net(inputs)


@register_positional_embedding("my_position", PositionEmbeddingConfig)
class MyPosition(PositionEmbedding):
    def __init__(self, dim_model: int, seq_len: int, vocab_size: int = 40, *args, **kwargs):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim_model)
        self.places = nn.Parameter(torch.randn(seq_len, dim_model))

    def forward(self, x):
        return self.tokens(x) + self.places[: x.shape[1]]


@register_attention("my_odd_part", MyConfig)
class OddAttention(Attention):
    def __init__(self, dropout: float, oracle: complex, *args, **kwargs):
        super().__init__()
        self.oracle = oracle.real

    def forward(self, q, k, v):
        return v
"""


def run(folder: Path, *command: str, causal: str = "self.causal") -> subprocess.CompletedProcess[str]:
    """A command in a folder that holds the module of a user."""
    (folder / "my_module.py").write_text(MODULE.replace("{causal}", causal))
    source = str(Path(vf.__file__).parents[1])
    environment = {"PYTHONPATH": f"{folder}:{source}", "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def suite(folder: Path, *options: str, causal: str = "self.causal") -> subprocess.CompletedProcess[str]:
    command = ("pytest", "--pyargs", "variform.testing", "-p", "my_module", "-p", "no:cacheprovider", "-x")
    return run(folder, *command, *options, causal=causal)


def test_the_contract_suite_checks_it(tmp_path: Path) -> None:
    done = suite(tmp_path, "-v", "-k", "my_part")
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("builds", "config", "causal", "padding", "packed", "mask", "compile", "copies", "cost"):
        assert f"attention/my_part-{check}] PASSED" in done.stdout


def test_a_leaky_one_fails(tmp_path: Path) -> None:
    done = suite(tmp_path, "-q", "-k", "my_part", causal="False")
    assert done.returncode == 1
    assert "my_part-causal" in done.stdout
    assert "1 failed" in done.stdout


def test_a_feedforward_is_checked(tmp_path: Path) -> None:
    done = suite(tmp_path, "-v", "-k", "my_feedforward and not compile")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "feedforward/my_feedforward-causal] PASSED" in done.stdout


def test_a_position_embedding_is_checked(tmp_path: Path) -> None:
    done = suite(tmp_path, "-k", "my_position and not compile", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("causal", "padding", "packed", "meta", "config"):
        assert f"embedding/my_position-{check}] PASSED" in done.stdout


def test_one_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    done = suite(tmp_path, "-q", "-k", "my_odd_part")
    assert done.returncode == 1
    assert "an instance with the smallest settings could not be made" in done.stdout


def test_the_benchmark_has_a_row_for_it(tmp_path: Path) -> None:
    sizes = ("--lengths", "32", "64", "--dim", "16", "--heads", "2", "--rounds", "1", "--json")
    done = run(tmp_path, "variform.cli", "bench", "attention", "--only", "my_part", *sizes)
    assert done.returncode == 0, done.stderr
    assert "my_part is registered in my_module.py" in done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows] == ["attention/softmax", "attention/my_part"]
    assert all(one["seconds"] > 0 and one["peak_bytes"] > 0 for row in rows for one in row["measured"])


def test_a_module_is_named(tmp_path: Path) -> None:
    sizes = ("--lengths", "32", "--dim", "16", "--heads", "2", "--rounds", "1")
    done = run(tmp_path, "variform.cli", "bench", "attention", "-p", "my_module", "--only", "my_part", *sizes)
    assert done.returncode == 0, done.stderr
    assert "attention/my_part" in done.stdout
    done = run(tmp_path, "variform.cli", "bench", "attention", "-p", "my_modul", "--only", "my_part")
    assert done.returncode == 2
    assert "there is no module 'my_modul'" in done.stderr
    assert "my_module" in done.stderr


def test_it_stands_in_native_models(tmp_path: Path) -> None:
    code = """
import my_module, torch, variform as vf
spec = vf.models.gpt(vocab_size=11, dim=16, depth=1, heads=4, max_seq_len=16)
spec = vf.override(spec, ["stacks.0.layers.*.sublayers.0.body.attention=my_part"])
wide = vf.override(spec, ["stacks.0.layers.*.sublayers.0.body.attention.temperature=3.0"])
torch.manual_seed(0); one = vf.build(spec)
torch.manual_seed(0); two = vf.build(wide)
ids = torch.arange(8)[None]
assert one.stacks[0].layers[0].sublayers[0].body.attention.causal
assert not torch.equal(one(ids), two(ids)), "the field takes effect"
assert vf.from_yaml(vf.to_yaml(wide)) == wide
"""
    (tmp_path / "native.py").write_text(code)
    done = run(tmp_path, "native")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["attention", "feedforward"])
def test_the_librarys_own_classes_stay_out(kind: str) -> None:
    adopted = [part.adopted for part in vf.parts(kind).values() if hasattr(part, "adopted")]
    assert not [part for part in adopted if part.__module__.startswith("variform.")]
