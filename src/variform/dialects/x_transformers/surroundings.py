"""What all models around `attn_layers` have in common: absolute positions, memory tokens, and rules for both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from variform.core.spec import Spec
from variform.errors import Problem
from variform.parts.position.absolute import LearnedPosition, ScaledSinusoidalPosition

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention_layers import AttentionLayers

Rule = tuple[bool, str, str]
"""Whether it is broken, the keyword, and what is wrong."""


class Surroundings(Protocol):
    """The keywords that these models share."""

    max_seq_len: Any
    use_abs_pos_emb: bool
    scaled_sinu_pos_emb: bool
    num_memory_tokens: int | None
    max_mem_len: int


def is_placed(draft: Surroundings, layers: AttentionLayers) -> bool:
    """Whether the model has absolute positions."""
    return bool(draft.max_seq_len) and draft.use_abs_pos_emb and not layers.disable_abs_pos_emb


def position_of(draft: Surroundings, layers: AttentionLayers, width: int, unit: bool = False) -> Spec | None:
    """The absolute positions of embeddings of `width` features; None for none.

    Args:
        draft: the keywords.
        layers: what the model stands around.
        width: of the embeddings.
        unit: whether they are unit vectors.
    """
    if not is_placed(draft, layers):
        return None
    if draft.scaled_sinu_pos_emb:
        return ScaledSinusoidalPosition.spec()
    size: dict[str, Any] = {"std": 1e-5, "unit": True} if unit else {"std": 1.0, "scale": width**-0.5}
    return LearnedPosition.spec(max_seq_len=draft.max_seq_len, **size)


def rules_around(draft: Surroundings, layers: AttentionLayers, width: int) -> Iterator[Rule]:
    """The rules of these keywords, for embeddings of `width` features."""
    yield (draft.max_seq_len or 0) < 0, "max_seq_len", "must be positive, or 0 for no absolute positions"
    yield (draft.num_memory_tokens or 0) < 0, "num_memory_tokens", "must not be negative"
    yield draft.max_mem_len < 0, "max_mem_len", "must not be negative"
    sines = draft.scaled_sinu_pos_emb
    message = "has no effect: the model has no absolute positions"
    yield sines and not is_placed(draft, layers), "scaled_sinu_pos_emb", message
    message = "sines and cosines come in pairs: an even width of embeddings is needed"
    yield sines and bool(width % 2), "scaled_sinu_pos_emb", message


def broken(draft: Any, rules: Iterable[Rule]) -> list[Problem]:
    """Problems of the rules that are broken."""
    return [Problem(name, message, getattr(draft, name)) for is_broken, name, message in rules if is_broken]
