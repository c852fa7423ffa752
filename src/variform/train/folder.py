"""Run folders: what lies where, making a new one, opening one that exists."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from variform.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class RunFolder:
    """A run folder.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def vocabulary(self) -> Path:
        """The characters and their ids."""
        return self.path / "vocabulary.json"

    @property
    def data(self) -> Path:
        """What the text was: its source, length and checksum, and the bigram loss."""
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        """The loss log."""
        return self.path / "metrics.csv"

    @property
    def samples(self) -> Path:
        """Texts written while training."""
        return self.path / "samples.txt"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def picture(self) -> Path:
        """The loss curves."""
        return self.path / "loss.png"

    @property
    def weights(self) -> Path:
        """The trained model."""
        return self.path / "model.safetensors"

    @property
    def summary(self) -> Path:
        """The figures of a finished run."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """Full trainer states."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The trainer state after `step` steps."""
        return self.checkpoints / f"step-{step:08d}.ckpt"

    def saved_steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        found = (re.fullmatch(r"step-(\d+)\.ckpt", file.name) for file in self.checkpoints.glob("step-*.ckpt"))
        return sorted(int(match[1]) for match in found if match)

    def read_json(self, path: Path) -> dict[str, Any]:
        """One of the folder's JSON files.

        Raises:
            ConfigError: missing or damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict):
            raise ConfigError(f"{str(path)!r} is missing or damaged")
        return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, at once or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def new_folder(out: str, name: str, exact: str | None) -> RunFolder:
    """Make a run folder: `exact`, or the next free number of `name` below `out`.

    Raises:
        ConfigError: it cannot be written, or `exact` holds something already.
    """
    try:
        if exact is not None:
            path = Path(exact)
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                hint = "name another folder, or go on with it: variform train --resume FOLDER"
                raise ConfigError("the run folder is not empty", path="train.run", value=exact, hint=hint)
        else:
            path = _numbered(Path(out), name)
        folder = RunFolder(path)
        folder.checkpoints.mkdir()
    except OSError as error:
        place = "train.out" if exact is None else "train.run"
        message = f"cannot make a run folder there: {error.strerror}"
        raise ConfigError(message, path=place, value=exact or out, hint="name a folder that can be written") from None
    return folder


def open_folder(path: str | Path) -> RunFolder:
    """Open the folder of an earlier run.

    Raises:
        ConfigError: there is none, or it is no run folder.
    """
    folder = RunFolder(Path(path))
    if not folder.path.is_dir():
        near = [str(p) for p in folder.path.parent.glob("*") if p.is_dir()] if folder.path.parent.is_dir() else []
        raise ConfigError(f"there is no run folder {str(path)!r}", hint=did_you_mean(str(path), near))
    if not folder.config.is_file():
        inside = sorted(p.parent.name for p in folder.path.glob("*/config.yaml"))
        hint = did_you_mean("", inside).replace("known", "runs in it") if inside else "variform train makes run folders"
        raise ConfigError(f"{str(path)!r} is not a run folder: it has no config.yaml", hint=hint)
    return folder


def _numbered(out: Path, name: str) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    taken = (re.fullmatch(rf"{re.escape(name)}-(\d+)", p.name) for p in out.iterdir())
    number = max((int(match[1]) for match in taken if match), default=0)
    while True:
        number += 1
        path = out / f"{name}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # another run took the number in the meantime
            continue
        return path
