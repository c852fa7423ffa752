"""What the models with a latent vector have in common: their keywords, and those that go on to both stacks."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from variform.dialects.x_transformers.attention_layers import Decoder, Encoder
from variform.dialects.x_transformers.routes import KNOWN
from variform.dialects.x_transformers.table import Table, completed, problems_of, raise_any
from variform.errors import Problem, did_you_mean


def read(owner: str, table: Table, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All own keywords with their defaults, and those of both stacks.

    Raises:
        KeywordError: unknown keywords, and values that do not fit; all at once.
    """
    own = {name: value for name, value in keywords.items() if name in table}
    layers = {name: value for name, value in keywords.items() if name not in table}
    known = [*table, *KNOWN]
    problems = problems_of(owner, table, own, table)
    problems += [
        Problem(name, f"{owner} has no keyword {name!r}", hint=did_you_mean(name, known))
        for name in layers
        if name not in KNOWN
    ]
    for name in ("dim", "dim_latent", "dim_input", "enc_depth", "dec_depth", "depth", "max_seq_len", "num_tokens"):
        value = own.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            problems.append(Problem(name, "must be positive", value))
    drop = own.get("latents_dropout_prob", 0.0)
    if isinstance(drop, int | float) and not 0 <= drop <= 1:
        problems.append(Problem("latents_dropout_prob", "a probability in [0, 1] is needed", drop))
    raise_any(problems)
    return completed(table, own), layers


def refuse_unknown(owner: type, keywords: Mapping[str, Any]) -> None:
    """Refuse keywords that are neither those of stacks nor named by the constructor of `owner`.

    Raises:
        KeywordError: all of them, with what was meant.
    """
    known = [*(name for name in signature(owner).parameters if name != "keywords"), *KNOWN]
    raise_any(
        [
            Problem(name, f"{owner.__name__} has no keyword {name!r}", hint=did_you_mean(name, known))
            for name in keywords
            if name not in KNOWN
        ]
    )


def stacks(
    given: Mapping[str, Any], both: Mapping[str, Any], enc_depth: int, dec_depth: int
) -> tuple[Encoder, Decoder]:
    """The two stacks."""
    size = {"dim": given["dim"], "heads": given["heads"], "attn_dim_head": given["attn_dim_head"], **both}
    encoder = Encoder(**{**size, "depth": enc_depth, **given["enc_kwargs"]})
    return encoder, Decoder(**{**size, "depth": dec_depth, **given["dec_kwargs"]})
