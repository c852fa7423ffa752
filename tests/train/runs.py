"""A text, a tiny config and runs of it, for the tests of training and of the command line."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from variform.train.config import read_config
from variform.train.data import ValBatches
from variform.train.material import prepare
from variform.train.trained import load_run

WORDS = ["the", "king", "and", "queen", "of", "all", "that", "is", "not", "here", "may", "come;", "what", "say", "you?"]


def write_text(path: Path, characters: int = 6000) -> Path:
    draw = random.Random(3)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(characters // 25)]
    path.write_text("\n".join(lines)[:characters], encoding="utf-8")
    return path


def content(folder: Path, **train: Any) -> dict[str, Any]:
    """A config with dropout, so that the state of the random numbers matters."""
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    return {
        "model": {
            "preset": "gpt", "vocab_size": "from data", "dim": 16, "depth": 2, "heads": 2, "max_seq_len": 24,
            "dropout": 0.2,
        },
        "data": {"text": str(text), "context": 17, "batch_size": 6, "val_windows": 11},
        "train": {
            "steps": 50, "warmup": 5, "lr": 0.01, "log_every": 3, "val_every": 10, "checkpoint_every": 5, "threads": 1,
            "accelerator": "cpu", "out": str(folder / "runs"), "name": "tiny",
            "samples": {"prompt": "the", "tokens": 40},
            **train,
        },
    }  # fmt: skip


def write_config(folder: Path, **train: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content(folder, **train)), encoding="utf-8")
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "variform.cli", *map(str, arguments)]


def call(*arguments: str | Path, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )


def log(run: Path) -> bytes:
    return (run / "metrics.csv").read_bytes()


def loss_of_run(run: Path) -> float:
    """The validation loss of the saved weights, counted anew in one process."""
    model, _ = load_run(run)
    config = read_config(run / "config.yaml")
    batches = ValBatches(prepare(config).split.validation, config.data)
    losses = []
    with torch.no_grad():
        for index in range(len(batches)):
            x, y, real = batches[index]
            losses.append(torch.nn.functional.cross_entropy(model(x).transpose(1, 2), y, reduction="none")[real])
    joint = torch.cat(losses)
    assert joint.shape == (11, 17)
    return float(joint.double().mean())
