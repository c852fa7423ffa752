"""Entries: how one tensor of another library's checkpoint becomes parameters of ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from variform.errors import ConfigError, Problem, did_you_mean

Load = Callable[[Tensor], Sequence[Tensor]]
Store = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Entry:
    """One tensor of a foreign checkpoint.

    Args:
        key: its name there.
        params: the parameters here that it holds; none for a constant.
        load: from the foreign tensor to the parameters; it raises `ConfigError` for a constant that differs.
        store: from the parameters to the foreign tensor.
    """

    key: str
    params: tuple[Tensor, ...]
    load: Load
    store: Store


def plain(key: str, param: Tensor) -> Entry:
    """The same tensor under another name."""
    return Entry(key, (param,), lambda t: (t,), lambda ps: ps[0])


def affine(key: str, param: Tensor, factor: float = 1.0, offset: float = 0.0) -> Entry:
    """param = factor * (tensor + offset)."""
    return Entry(key, (param,), lambda t: (factor * (t + offset),), lambda ps: ps[0] / factor - offset)


def shaped(key: str, param: Tensor, foreign: Sequence[int]) -> Entry:
    """The same values in another shape."""
    return Entry(key, (param,), lambda t: (t.reshape(param.shape),), lambda ps: ps[0].reshape(*foreign))


def reordered(
    key: str, param: Tensor, order: Sequence[int], dim: int, size: int = 1, factor: float = 1.0, offset: float = 0.0
) -> Entry:
    """Blocks of `size` along `dim` in another order: our block i is factor * (the foreign block order[i] + offset)."""
    forward = torch.tensor(order)
    rows = (forward.unsqueeze(1) * size + torch.arange(size)).flatten()
    back = rows.argsort()
    return Entry(
        key,
        (param,),
        lambda t: (factor * (t.index_select(dim, rows.to(t.device)) + offset),),
        lambda ps: ps[0].index_select(dim, back.to(ps[0].device)) / factor - offset,
    )


def joined(key: str, params: Sequence[Tensor]) -> Entry:
    """Several parameters, one after another along the first dimension."""
    sizes = [param.shape[0] for param in params]
    return Entry(key, tuple(params), lambda t: t.split(sizes), lambda ps: torch.cat(list(ps)))  # type: ignore[no-untyped-call]


def constant(key: str, value: Tensor, what: str) -> Entry:
    """A tensor that the description settles: checked when loading, written when storing."""

    def load(found: Tensor) -> Sequence[Tensor]:
        if found.shape != value.shape or not torch.allclose(found.double().cpu(), value.double(), rtol=1e-5, atol=1e-9):
            raise ConfigError(f"the checkpoint was made with other {what}", path=key)
        return ()

    return Entry(key, (), load, lambda ps: value.clone())


def load_entries(entries: Sequence[Entry], tensors: Mapping[str, Tensor], ignored: Sequence[str] = ()) -> None:
    """Fill parameters from a checkpoint; nothing is changed unless everything fits.

    Args:
        entries: all of a model.
        tensors: the checkpoint.
        ignored: keys that may be there without a use.

    Raises:
        ConfigError: keys that are missing or unknown, shapes that differ, two keys of one parameter that disagree.
    """
    known = {entry.key: entry for entry in entries}
    problems = [Problem(key, "missing in the checkpoint") for key in known if key not in tensors]
    unknown = [key for key in tensors if key not in known and key not in ignored]
    problems += [Problem(key, "nothing in the model takes this", hint=did_you_mean(key, known)) for key in unknown]
    filled: dict[int, tuple[Tensor, Tensor]] = {}
    for key, entry in known.items():
        if key in tensors:
            problems += _convert(entry, tensors[key], filled)
    if problems:
        raise ConfigError(problems)
    with torch.no_grad():
        for param, value in filled.values():
            param.copy_(value)


def store_entries(entries: Sequence[Entry]) -> dict[str, Tensor]:
    """The checkpoint that holds a model's parameters, on their devices, without gradients."""
    with torch.no_grad():
        return {entry.key: entry.store(entry.params).detach().clone() for entry in entries}


def _convert(entry: Entry, tensor: Tensor, filled: dict[int, tuple[Tensor, Tensor]]) -> list[Problem]:
    wanted = entry.store([param.detach() for param in entry.params]).shape
    if tensor.shape != wanted:
        return [Problem(entry.key, f"has shape {list(tensor.shape)}, the model needs {list(wanted)}")]
    try:
        values = entry.load(tensor)
    except ConfigError as error:
        return list(error.problems)
    for param, value in zip(entry.params, values, strict=True):
        before = filled.setdefault(id(param), (param, value))[1]
        if before is not value and not torch.equal(before, value):
            return [Problem(entry.key, "differs from another tensor of the same, shared parameter")]
    return []
