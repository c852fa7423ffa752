"""The vocabulary of characters: text to ids and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from variform.errors import ConfigError


class Characters:
    """Each different character of a text is a token; ids follow the order of code points.

    Args:
        characters: the characters, each once, in order.
    """

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._codes = _codes(characters)

    @classmethod
    def of(cls, text: str) -> Characters:
        """The vocabulary of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """The ids of a text, [L] int64.

        Raises:
            ConfigError: characters that are not in the vocabulary, all of them named.
        """
        unknown = sorted(set(text) - set(self.characters))
        if unknown:
            shown = " ".join(map(repr, unknown[:20]))
            known = f"it has {len(self)}: {self.characters!r}"
            raise ConfigError(f"characters outside the model's vocabulary: {shown}", hint=known)
        return torch.from_numpy(np.searchsorted(self._codes, _codes(text)).astype(np.int64))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids."""
        return "".join(self.characters[int(i)] for i in ids)

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        path.write_text(json.dumps({"kind": "characters", "characters": self.characters}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Characters:
        """Read what `save` wrote.

        Raises:
            ConfigError: missing or damaged.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            characters = data["characters"]
            good = data["kind"] == "characters" and isinstance(characters, str) and len(characters) > 0
        except (OSError, ValueError, KeyError, TypeError):
            good = False
        if not good or "".join(sorted(set(characters))) != characters:
            raise ConfigError(f"{str(path)!r} is missing or damaged: it holds the run's vocabulary")
        return cls(characters)


def _codes(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
