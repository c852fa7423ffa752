"""The model of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from variform.core.build import build
from variform.core.plain import from_dict
from variform.core.text import read_file
from variform.errors import ConfigError
from variform.train.folder import open_folder
from variform.train.vocabulary import Characters
from variform.weights import load_weights


def load_run(path: Path) -> tuple[Any, Characters]:
    """The trained model of a run folder, in evaluation mode, and its vocabulary.

    Raises:
        ConfigError: it is no run folder, the run is not finished, or a file in it is missing or damaged.
    """
    folder = open_folder(path)
    if not folder.weights.is_file():
        message = f"the run {str(path)!r} has no weights yet"
        raise ConfigError(message, hint=f"finish it: variform train --resume {path}")
    content = read_file(folder.config)
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise ConfigError(f"{str(folder.config)!r} is damaged: it describes no model")
    vocabulary = Characters.load(folder.vocabulary)
    model = build(from_dict(content["model"]))
    load_weights(model, folder.weights)
    if model.spec.get("vocab_size") != len(vocabulary):
        raise ConfigError(
            f"{str(folder.vocabulary)!r} does not belong to this model: it has {len(vocabulary)} characters"
        )
    return model.eval(), vocabulary
