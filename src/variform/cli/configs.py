"""What a config file describes: a part, a preset, a training config, or a program of the configaformers dialect.

Every verb that takes a config reads it here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from variform.core.formats import reader_of
from variform.core.spec import Spec
from variform.core.text import read_file


def load(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """The spec that a file describes.

    Args:
        path: a YAML or JSON file.
        overrides: changes, `path=value`.

    Raises:
        ConfigError: all problems at once.
    """
    return load_with_length(path, overrides)[0]


def load_with_length(path: str | Path, overrides: Iterable[str] = ()) -> tuple[Spec, int | None]:
    """The spec that a file describes, and the length it is trained at, if the file says so."""
    from variform.train.config import is_training, make_config, part_spec

    content = read_file(path)
    reader = reader_of(content)
    if reader is not None:
        return reader(content, overrides), None
    if not is_training(content):
        return part_spec(content, overrides), None
    from variform.train.material import prepare

    config = make_config(content, overrides)
    return prepare(config).spec, config.data.context
