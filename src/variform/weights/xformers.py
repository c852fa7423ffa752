"""Weights of models in the xFormers dialect, to and from the native models that their `.spec` describes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from variform.errors import ConfigError, Problem, did_you_mean

_BLOCK = re.compile(r"(?:(encoders|decoders)\.(\d+)\.)?(.+)")
_PATCHES = re.compile(r"((?:encoders\.(\d+)\.)?)patch_emb\b")
_POSITIONS = re.compile(r"((?:encoders\.\d+\.)?)pose_encoding\b")
_PATCH_WEIGHT = re.compile(r"patch_emb\.1\.(?:native\.(.*\.))?(\w+)")
_STEP = re.compile(r"wrap_(att|cross|ff)\.(.+)")
_WRAPPERS = re.compile(r"(?:(?:layer|sublayer|branch)\.)*")
_BODY = {
    "in_proj_container.q_proj.": "q.",
    "in_proj_container.k_proj.": "k.",
    "in_proj_container.v_proj.": "v.",
    "proj.": "out.",
    "mlp.0.": "up.",
    "mlp.3.": "down.",
    "gated.": "",
    "conv_mlp.0.": "up.",
    "conv_mlp.1.": "near.",
    "conv_mlp.3.": "down.",
    "gate.wg.": "router.",
    "moe.gate.wg.": "router.",
    "attention.native.": "attention.",
    "native.": "",
}
_MIXER = "attention.native."
"""A mixer stands here where nothing projects what comes in; else it is the attention between the projections."""
_EXPERT = re.compile(r"moe\.experts\.(\d+)\.")
_EMBEDDING = {
    "pose_encoding.word_embeddings.weight": "weight",
    "pose_encoding.position_embeddings.weight": "position.weight",
    "pose_encoding.pos_emb": "position.weight",
    "pose_encoding.class_token": "class_token",
}


def key_map(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each weight of an `xFormer` (or of one of its blocks), where it stands in the native model.

    A norm that a decoder block applies to the memory as well stands in two places.

    Args:
        names: the keys of the model's state dict, or better the state dict as it comes from the model: it also knows
            modules without weights (pooled patches), which are layers of the native model.

    Raises:
        ConfigError: naming every key that has no place in a native model.
    """
    keys = tuple(names)
    patches = _find_patches((*keys, *getattr(names, "_metadata", ())))
    found, problems = {}, []
    for key in keys:
        places = _places(key, keys, patches)
        if not places:
            problems.append(Problem(key, "this weight has no place in a native model"))
        found[key] = places
    if problems:
        raise ConfigError(problems)
    return found


def to_native(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `vf.build(model.spec)` from that of an xFormers model."""
    return {place: _reshaped(key, state[key]) for key, places in key_map(state).items() for place in places}


def from_native(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an xFormers model from that of `vf.build(model.spec)`.

    Args:
        state: the native model's.
        like: the xFormers model's own, for names and shapes.

    Raises:
        ConfigError: naming the weights that are missing or left over.
    """
    places = key_map(like)
    wanted = {place for several in places.values() for place in several}
    problems = [Problem(name, "this weight is missing", hint=did_you_mean(name, state)) for name in wanted - set(state)]
    problems += [Problem(name, "this weight has no place in the xFormers model") for name in set(state) - wanted]
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.path))
    return {key: _across(key, state[several[0]]).reshape(like[key].shape) for key, several in places.items()}


class _Patches(NamedTuple):
    """Where patches are embedded: in layers in front of these blocks, or together with the positions."""

    blocks: tuple[int, ...]
    embedded: bool


def _find_patches(modules: Sequence[str]) -> _Patches:
    found = {match[1]: int(match[2] or 0) for match in map(_PATCHES.match, modules) if match is not None}
    placed = {match[1] for match in map(_POSITIONS.match, modules) if match is not None}
    return _Patches(tuple(number for block, number in found.items() if block not in placed), bool(placed & set(found)))


def _places(key: str, keys: tuple[str, ...], patches: _Patches) -> tuple[str, ...]:
    match = _BLOCK.fullmatch(key)
    assert match is not None
    side, index, rest = match.groups()
    block, number = key.removesuffix(rest), int(index or 0)
    pair = {name.split(".")[0] for name in keys} == {"encoders", "decoders"}
    model = f"{side.removesuffix('s')}." if pair else ""
    place = number if side == "decoders" else number + sum(other <= number for other in patches.blocks)
    patch = _PATCH_WEIGHT.fullmatch(rest)
    if patch is not None:
        layer = f"stacks.0.layers.{place - 1}" if number in patches.blocks else "embedding.patches"
        return (f"{model}{layer}.{patch[1] or 'conv.'}{patch[2]}",)
    step = _STEP.fullmatch(rest)
    if rest.startswith("final_norm."):
        return (f"{model}stacks.0.{rest.removeprefix('final_')}",)
    if step is None:
        own = _embedding(rest, f"{block}embedding_projector.weight" in keys)
        inner = "embedding." if patches.embedded and side != "decoders" else ""
        return () if own is None else (f"{model}embedding.{inner}{own}",)
    has_cross = any(name.startswith(f"{block}wrap_cross.") for name in keys)
    sublayer = {"att": 0, "cross": 1, "ff": 2 if has_cross else 1}[step[1]]
    return _step(step[1], step[2], f"{model}stacks.0.", f"layers.{place}.sublayers.{sublayer}.", f"{block}wrap_", keys)


def _step(name: str, rest: str, stack: str, layer: str, block: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Below residual and norm wrappers: layer.norm and layer.sublayer (pre), norm and sublayer.layer (post).

    The last pre-norm step stands in a further norm: norm and sublayer.(pre), which is the stack's own. Reversible steps
    have a branch where others have a layer, and a norm after it is of the branch.
    """
    match = _WRAPPERS.match(rest)
    assert match is not None
    wrappers, inner = match[0], rest[match.end() :]
    if inner.startswith("norm."):
        if re.search(r"\b(layer|branch)\.$", wrappers):
            twice = (f"{stack}{layer}body.context_{inner}",) if name == "cross" else ()
            return (f"{stack}{layer}{inner}", *twice)
        final = any(key.startswith(f"{block}{name}.sublayer.layer.norm.") for key in keys)
        after = "branch" if any(key.startswith(f"{block}{name}.sublayer.branch.") for key in keys) else "out"
        return (f"{stack}{inner}" if final else f"{stack}{layer}{after}_{inner}",)
    projected = any(key.startswith(f"{block}{name}.") and ".in_proj_container." in key for key in keys)
    if inner.startswith(_MIXER) and not projected:
        return (f"{stack}{layer}body.{inner.removeprefix(_MIXER)}",)
    body, expert = f"{stack}{layer}body.", _EXPERT.match(inner)
    if expert is not None:
        body, inner = f"{body}experts.{expert[1]}.", inner[expert.end() :]
    for prefix, native in _BODY.items():
        if inner.startswith(prefix):
            return (f"{body}{native}{inner.removeprefix(prefix)}",)
    return ()


def _embedding(rest: str, factorised: bool) -> str | None:
    inner = "embedding." if factorised else ""
    if rest.startswith("embedding_projector."):
        return rest.replace("embedding_projector.", "project.")
    return f"{inner}{_EMBEDDING[rest]}" if rest in _EMBEDDING else None


def _reshaped(key: str, tensor: Tensor) -> Tensor:
    """Upstream keeps a leading axis of 1 on learned positions and none on a class token."""
    if key.endswith("pose_encoding.pos_emb"):
        return tensor.squeeze(0)
    tensor = _across(key, tensor)
    return tensor.unsqueeze(0) if key.endswith("pose_encoding.class_token") else tensor


def _across(key: str, tensor: Tensor) -> Tensor:
    """The kernels of the convolutional feedforward lie across: their first axis runs along the rows of the grid."""
    return tensor.transpose(-1, -2).contiguous() if key.endswith("conv_mlp.1.weight") else tensor
