"""How a standalone file reads weights: written into it as it stands here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

RENAMED = True
"""A fact of one model: a weights file has other names, or one name for weights that stand in several places."""


def load_weights(model: nn.Module, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Copy weights into the model: a state dict, or the path of a .safetensors or .pt file; every name must match."""
    if not isinstance(weights, Mapping):
        is_safe = str(weights).endswith(".safetensors")
        weights = read_safetensors(weights) if is_safe else torch.load(weights, weights_only=True)
    if not RENAMED:
        model.load_state_dict(weights)
        return
    names = dict(names_there(model))
    unknown = set(weights) - set(names.values())
    if unknown:
        raise KeyError(f"the model has no weights of these names: {sorted(unknown)}")
    first: dict[int, str] = {}  # a file holds a shared tensor once, under the first of its names
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), names[name])
        names[name] = names[name] if names[name] in weights else first[id(tensor)]
    model.load_state_dict({name: weights[names[name]] for name in model.state_dict()})


def names_there(model: nn.Module, here: str = "", there: str = "") -> Iterator[tuple[str, str]]:
    """The names of all weights in the model and in a file; a class whose modules stand elsewhere there has KEYS."""
    for name in (*model._parameters, *model._buffers):
        yield here + name, there + name
    keys = getattr(model, "KEYS", None) or {name: name for name, _ in model.named_children()}
    for name, place in keys.items():
        yield from names_there(model.get_submodule(name), f"{here}{name}.", f"{there}{place}.")


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file: the length of a header, the header, and all numbers."""
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    types |= {"I64": torch.int64, "I32": torch.int32, "BOOL": torch.bool}
    return {
        name: torch.frombuffer(data[start + begin : start + end], dtype=types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        for begin, end in [entry["data_offsets"]]
    }
