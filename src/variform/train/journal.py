"""Files that a run appends to, and that a resumed run cuts back to where its checkpoint was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from variform.errors import ConfigError

COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm", "tokens")


class Journal:
    """One such file.

    Args:
        path: the file.
        header: its first line, if any.
    """

    def __init__(self, path: Path, header: str = "") -> None:
        self.path = path
        self.header = header
        self.file: IO[bytes] | None = None

    def open(self, size: int) -> None:
        """Drop what was written after a checkpoint of `size` bytes, and append from there.

        Raises:
            ConfigError: the file is shorter than the checkpoint says.
        """
        self.close()
        found = self.path.stat().st_size if self.path.exists() else 0
        if found < size:
            message = f"{str(self.path)!r} is damaged: the checkpoint was made when it had {size} bytes, it has {found}"
            raise ConfigError(message, hint="start a new run")
        self.file = self.path.open("ab")
        self.file.truncate(size)
        if size == 0 and self.header:
            self.write(self.header)

    def write(self, text: str) -> None:
        """Append."""
        assert self.file is not None
        self.file.write(text.encode("utf-8"))
        self.file.flush()

    def size(self) -> int:
        """How long the file is, all of it on disk."""
        if self.file is None:
            return self.path.stat().st_size if self.path.exists() else 0
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        """Stop writing."""
        if self.file is not None:
            self.file.close()
            self.file = None


def row(values: Mapping[str, float | int]) -> str:
    """One line of the loss log; floats in full precision, so that equal logs are equal bytes."""
    return ",".join(repr(values[name]) if name in values else "" for name in COLUMNS) + "\n"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a loss log, without the empty cells.

    Raises:
        ConfigError: missing or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines[0] != ",".join(COLUMNS):
            raise ValueError("another header")
        cells = [dict(zip(COLUMNS, line.split(","), strict=True)) for line in lines[1:]]
        return [{name: float(value) for name, value in entry.items() if value} for entry in cells]
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{str(path)!r} is missing or damaged: {error}") from None
