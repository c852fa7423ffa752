"""The self-attention of a preset's layers, which may be any registered attention or mixer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from variform.core.codec import as_spec
from variform.core.fields import field_map
from variform.core.registry import lookup
from variform.core.spec import Spec, described
from variform.errors import ConfigError
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.history import BeginHistory

Attending = str | Mapping[str, Any] | Spec | None
"""The name of an attention or a mixer, or its description; None for softmax attention."""


def attending(attention: Attending, dropout: float | None = None, **multi_head: Any) -> Spec:
    """What mixes the tokens of a layer: multi-head attention around the attention asked for, or the mixer itself.

    Args:
        attention: what was asked for.
        dropout: of attention weights, for attentions that have such a rate and do not give it.
        **multi_head: fields of the multi-head attention; a mixer has its own.

    Raises:
        ConfigError: there is no such part, or it is neither an attention nor a mixer.
    """
    try:
        spec = mixing_spec("softmax" if attention is None else attention)
    except ConfigError as error:
        raise ConfigError([problem.below("attention") for problem in error.problems]) from None
    if dropout is not None:
        spec = with_dropout(spec, dropout)
    return spec if spec.kind == "mixer" else MultiHead.spec(**multi_head, attention=spec)


def begun(layers: Sequence[Spec]) -> list[Spec]:
    """Layers, and before them the beginnings of what their attentions hand on from one to the next."""
    handed = {stream: None for one in {id(layer): layer for layer in layers}.values() for stream in handed_on(one)}
    return [*(BeginHistory.spec(stream=stream) for stream in handed), *layers]


def handed_on(spec: Spec) -> list[str]:
    """The streams that parts of a layer carry on: each is read and published anew."""
    known = [(one.part.publishes(one.args), one.part.reads_streams(one.args)) for _, one in spec.walk()]
    return [stream for published, read in known for stream in published if stream in read]


def mixing_spec(part: str | Mapping[str, Any] | Spec) -> Spec:
    """An attention or a mixer by its name or description.

    Raises:
        ConfigError: there is none, or it is something else.
    """
    spec = Spec(lookup(part, ("attention", "mixer")), {}) if isinstance(part, str) else as_spec(part)
    if spec.kind not in ("attention", "mixer"):
        raise ConfigError(f"{spec.kind} {spec.name!r} is neither an attention nor a mixer")
    return spec


def with_dropout(spec: Spec, rate: float) -> Spec:
    """The same part with a rate of dropped attention weights, where it has one and does not give it.

    An attention around another one hands the rate on to that.
    """
    inner = described(spec.args.get("attention"))
    if isinstance(inner, Spec) and inner.kind == "attention":
        spec = spec.replace(attention=with_dropout(inner, rate))
    rated = "dropout" in field_map(spec.part) and "dropout" not in spec.args
    return spec.replace(dropout=rate) if rated else spec
