"""`vf.capture`: attention maps of the layers asked for; all layers keep running on their own backends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from variform.core.part import Part
from variform.errors import ConfigError, did_you_mean
from variform.inspect.places import Place, place_tree
from variform.ops.attention.call import Call
from variform.ops.attention.meter import metering
from variform.ops.attention.reference import reference_weights
from variform.parts.kinds import Attention

Maps = dict[str, list[Tensor]]
"""By path of the part: the weights [B, H, Lq, Lk] of each of its attention calls, in order."""


@contextmanager
def capture(model: nn.Module, *paths: str) -> Iterator[Maps]:
    """Collect the attention weights of some parts while the model runs.

        with vf.capture(model, "stacks.0.layers.3") as maps:
            model(ids)
        maps["stacks.0.layers.3.sublayers.0.body.attention"][0]  # [B, H, Lq, Lk]

    The weights are computed beside the call, in plain operations, so outputs do not change and other layers are not
    touched. They are those before dropout, and carry gradients where autograd is on. A part that is shared by several
    places is listed under the first of them.

    Args:
        model: built from a spec, or a wrapper around such a model.
        *paths: parts, by their paths in the spec, with everything below them; `*` stands for one step. None means all.

    Raises:
        ConfigError: a path that does not exist, or attentions that have no weights; on leaving, a part that ran and
            made no attention call.
    """
    chosen = _chosen(place_tree(model), paths or ("",))
    maps: Maps = {}
    running: list[str] = []

    def record(call: Call, backend: str) -> None:
        if running:
            maps.setdefault(running[-1], []).append(reference_weights(call))

    ran: set[str] = set()
    with ExitStack() as stack:
        for path, part in chosen.items():
            stack.callback(part.register_forward_pre_hook(_entering(path, running, ran)).remove)
            stack.callback(part.register_forward_hook(_leaving(running), always_call=True).remove)
        with metering(record):
            yield maps
    silent = [pattern for pattern in paths if _ran(pattern, ran) and not any(_below(path, pattern) for path in maps)]
    if silent:
        raise ConfigError(f"{', '.join(silent)} ran without an attention that has weights")


def _chosen(tree: Place, patterns: tuple[str, ...]) -> dict[str, Part]:
    found: dict[int, tuple[str, Part]] = {}
    known = [place.path for place in tree.walk()]
    for pattern in patterns:
        places = [place for place in tree.walk() if _below(place.path, pattern)]
        if not places:
            raise ConfigError(f"there is no part {pattern!r} in this model", hint=did_you_mean(pattern, known[1:]))
        attentions = [place.part for place in places if isinstance(place.part, Attention)]
        if attentions and not any(part.takes_scores for part in attentions):
            names = sorted({part.name for part in attentions})
            message = f"the attention {' and '.join(map(repr, names))} at {pattern or 'all places'} has no weights"
            raise ConfigError(message, hint="choose layers with an attention that has scores, such as 'softmax'")
        for place in places:
            found.setdefault(id(place.part), (place.path, place.part))
    return dict(found.values())


def _below(path: str, pattern: str) -> bool:
    """Whether a path is what the pattern names, or lies below it."""
    steps, wanted = path.split("."), pattern.split(".") if pattern else []
    return len(steps) >= len(wanted) and all(w in ("*", s) for s, w in zip(steps, wanted, strict=False))


def _ran(pattern: str, ran: set[str]) -> bool:
    return any(_below(path, pattern) for path in ran)


def _entering(path: str, running: list[str], ran: set[str]) -> Any:
    def hook(part: Part, args: Any) -> None:
        running.append(path)
        ran.add(path)

    return hook


def _leaving(running: list[str]) -> Any:
    def hook(part: Part, args: Any, out: Any) -> None:
        running.pop()

    return hook
