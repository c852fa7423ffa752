"""Weights of a model under the names that its standalone file gives them."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from variform.core.build import build
from variform.core.codec import as_spec
from variform.errors import ConfigError
from variform.export.source import to_source
from variform.weights.io import load_weights


def convert_weights(spec: Any, source: str | Path, target: str | Path) -> Path:
    """Write the weights that variform saved as the state dict of the model's standalone file.

    The file's own `load_weights` takes the weights as variform saved them; this is for those who want
    `model.load_state_dict(load_file(target))`.

    Args:
        spec: the model, as `build` takes it.
        source: a file that variform saved.
        target: where; ends in .safetensors.

    Raises:
        ConfigError: the weights are not the model's, or a file cannot be read or written.
    """
    where = Path(target)
    if where.suffix != ".safetensors":
        raise ConfigError("a weights file ends in .safetensors", path="target", value=str(target))
    model = build(as_spec(spec))
    load_weights(model, source)
    module = types.ModuleType("standalone")
    exec(compile(to_source(model), "<standalone>", "exec"), module.__dict__)  # our own text, not a reader's
    standalone = module.make_model()
    module.load_weights(standalone, model.state_dict())
    try:
        save_file({name: tensor.detach().clone() for name, tensor in standalone.state_dict().items()}, where)
    except OSError as error:
        raise ConfigError(f"cannot write {str(where)!r}: {error.strerror}") from None
    return where
