"""From upstream's keywords to a resolved stack: the checks of keywords, then the routes, then the core's own checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from variform.core.resolve import resolve
from variform.core.spec import Spec, apart
from variform.dialects.x_transformers import history
from variform.dialects.x_transformers.errors import KeywordError
from variform.dialects.x_transformers.layers import LayersDraft
from variform.dialects.x_transformers.order import letters_of
from variform.dialects.x_transformers.routes import KNOWN, LAYERS, PREFIXES
from variform.dialects.x_transformers.table import apply_all, is_default, problems_of, raise_any
from variform.errors import ConfigError, Problem


def read_layers(
    owner: str, keywords: Mapping[str, Any], prefixed: bool = False, scope: str = ""
) -> tuple[LayersDraft, Spec]:
    """The draft and the resolved stack that the keywords of `AttentionLayers` describe.

    Args:
        owner: the class, for messages.
        keywords: what it was given.
        prefixed: whether tokens at the beginning may see one another both ways.
        scope: what the names of its shared parts begin with, where a model holds other layers beside these.

    Raises:
        KeywordError: every problem at once.
    """
    own, inner = split(keywords)
    problems = problems_of(owner, LAYERS, own, KNOWN)
    for prefix, given in inner.items():
        # A tuple has a value for each layer; the first stands for it here, and each is checked with its layer.
        values = {name: value[0] if isinstance(value, tuple) and value else value for name, value in given.items()}
        problems += problems_of(owner, PREFIXES[prefix], values, KNOWN, prefix)
    raise_any(problems)
    draft = LayersDraft(inner=inner, prefixed=prefixed)
    apply_all(draft, LAYERS, own)
    draft.problems += _contradictions(draft)
    raise_any(draft.problems)
    spec = draft.spec()
    raise_any(draft.problems)
    return draft, resolved(apart(spec, scope), keywords)


def split(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Keywords of the stack itself, and those of its parts without their prefix."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {prefix: {} for prefix in PREFIXES}
    for name, value in keywords.items():
        prefix = next((p for p in PREFIXES if name.startswith(p) and name not in LAYERS), None)
        if prefix is None:
            own[name] = value
        else:
            inner[prefix][name.removeprefix(prefix)] = value
    return own, inner


def resolved(spec: Spec, keywords: Mapping[str, Any] | None = None) -> Spec:
    """`resolve`, with this dialect's error; what is wrong with a value is said of the keyword that gave it."""
    try:
        return resolve(spec)
    except ConfigError as error:
        problems = [_of_keyword(problem, keywords or {}) for problem in error.problems]
        raise KeywordError(list({str(problem): problem for problem in problems}.values())) from None


def _of_keyword(problem: Problem, keywords: Mapping[str, Any]) -> Problem:
    """The problem of the keyword of this value, if there is one alone: its own place is in the spec."""
    if not problem.has_value:
        return problem
    given = [name for name, value in keywords.items() if _gave(value, problem.value)]
    return replace(problem, path=given[0]) if len(given) == 1 else problem


def _gave(value: Any, found: Any) -> bool:
    """Whether a part has a value, or one of several, from a keyword."""
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple) and not isinstance(found, tuple):
        return any(_gave(one, found) for one in value)
    if isinstance(value, bool) or isinstance(found, bool) or not isinstance(value, int | float | str | tuple):
        return False
    return bool(value == found or (value != value and found != found))  # the latter: not a number


def _contradictions(draft: LayersDraft) -> list[Problem]:
    found = []
    if len(draft.norms) > 1:
        found.append(Problem("use_rmsnorm", "only one norm can be chosen of those that the use_...norm keywords name"))
    for name in ("dim_condition", "adaptive_condition_mlp"):
        if draft.condition is None and getattr(draft, name):
            message = f"{name} has no effect without use_adaptive_layernorm, _rmsnorm or _layerscale"
            found.append(Problem(name, message, getattr(draft, name)))
    for name in ("dim_condition", "adaptive_condition_mlp_expansion"):
        if (value := getattr(draft, name)) is not None and value < 1:
            found.append(Problem(name, "must be positive", value))
    found += draft.positions.check(draft.heads, draft.causal, draft.only_cross)
    if draft.sandwich_norm and not draft.pre_norm:
        found.append(Problem("sandwich_norm", "needs pre_norm=True"))
    if draft.sandwich_norm and draft.residuals.normed_when_read:
        found.append(Problem("sandwich_norm", "gated_multi_residual norms what a branch reads: leave it out"))
    found += draft.residuals.check()
    found += history.check(draft)
    if not 0.0 <= max(draft.layer_dropout if isinstance(draft.layer_dropout, tuple) else (draft.layer_dropout,)) < 1.0:
        found.append(Problem("layer_dropout", "a probability in [0, 1) is needed", draft.layer_dropout))
    return found + _without_effect(draft) + _shared_bias(draft)


def _without_effect(draft: LayersDraft) -> list[Problem]:
    """Keywords of parts that the stack does not have, or that another one settles."""
    letters = letters_of(draft)
    absent = {"cross_attn_": "c" not in letters, "attn_": not letters & {"a", "c"}, "ff_": "f" not in letters}
    needed = {
        "cross_attn_": "cross attention" if draft.cross_attend else "cross_attend=True",
        "attn_": "attention",
        "ff_": "feedforwards",
    }
    found = [
        Problem(prefix + name, f"{prefix + name} has no effect without {needed[prefix]}", value)
        for prefix, missing in absent.items()
        if missing
        for name, value in draft.inner[prefix].items()
        if not (name in PREFIXES[prefix] and is_default(value, PREFIXES[prefix][name].default))
    ]
    if draft.cross_attend and absent["cross_attn_"]:
        arranged = "custom_layers" if draft.custom_layers is not None else "sandwich_coef = depth"
        message = f"cross_attend has no effect: {arranged} has no 'c'"
        found.append(Problem("cross_attend", message, True))
    if draft.macaron and absent["ff_"]:
        found.append(Problem("macaron", "macaron has no effect without feedforwards", True))
    if draft.pre_and_post_norm and not draft.pre_norm:
        found.append(Problem("pre_and_post_norm", "pre_and_post_norm has no effect with pre_norm=False", True))
    if draft.residuals.starts_by_depth:
        found += [
            Problem(f"{prefix}output_proj_depth", "depth_scale_residual=True settles it", given["output_proj_depth"])
            for prefix, given in draft.inner.items()
            if given.get("output_proj_depth") is not None
        ]
    return found


def _shared_bias(draft: LayersDraft) -> list[Problem]:
    """One bias table serves all layers, so their heads must be in one order."""
    given = draft.inner["attn_"]
    learned = next((name for name in ("rel_pos_bias", "dynamic_pos_bias") if getattr(draft.positions, name)), None)
    if learned and any(isinstance(given.get(name), tuple) for name in ("kv_heads", "one_kv_head", "dim_head")):
        message = f"layers of different heads cannot share the bias: not supported yet with {learned}"
        return [Problem("attn_kv_heads", message, given.get("kv_heads"))]
    return []
