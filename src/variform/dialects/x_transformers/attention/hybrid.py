"""Keywords of attention beside another module (`hybrid_...`), and the part that a module of the user's becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from variform.core.spec import Spec
from variform.dialects.x_transformers.attention.torch_module import TorchModule
from variform.dialects.x_transformers.attention.torch_recurrence import KINDS, TorchRecurrence
from variform.dialects.x_transformers.eps import TINY
from variform.dialects.x_transformers.table import Route, Table, keep
from variform.errors import ConfigError, Problem
from variform.models.mixing import mixing_spec
from variform.parts.attention.hybrid import HybridAttention
from variform.parts.mixer.folded import FoldedMixer
from variform.parts.mixer.gru import GatedRecurrentUnit
from variform.parts.norm.norms import RMSNorm
from variform.parts.projection.maps import LinearProjection
from variform.weights.x_transformers import tiled_heads

if TYPE_CHECKING:
    from variform.dialects.x_transformers.attention.draft import AttentionDraft

ROUTES: Table = {
    # A module of torch as upstream, or of this library alone: any registered mixer, by name or description.
    "hybrid_module": Route(None, keep("hybrid_module"), types=(nn.Module, str, dict, Spec)),
    "hybrid_mask_kwarg": Route(None, keep("hybrid_mask_kwarg"), needs="hybrid_module", types=(str,)),
    "hybrid_fold_axial_dim": Route(None, keep("hybrid_fold_axial_dim"), needs="hybrid_module", types=(int,)),
    "hybrid_learned_mix": Route(False, keep("hybrid_learned_mix"), needs="hybrid_module"),
}
"""Keyword (without `attn_`) -> what it does to an `AttentionDraft`."""


def check(draft: AttentionDraft, cross: bool) -> list[Problem]:
    """The rules that concern several keywords."""
    at, given, module = draft.prefix, draft.options, draft.options.get("hybrid_module")
    if module is None:
        return []
    found: list[Problem] = []
    fold = given["hybrid_fold_axial_dim"]
    if fold is not None and fold < 1:
        found.append(Problem(f"{at}hybrid_fold_axial_dim", "at least 1", fold))
    if isinstance(module, nn.Module):
        found += _module_problems(draft, module)
    else:
        try:
            spec = mixing_spec(module)
        except ConfigError as error:
            return found + [problem.below(f"{at}hybrid_module") for problem in error.problems]
        if spec.kind != "mixer":
            found.append(Problem(f"{at}hybrid_module", f"a mixer is needed, and {spec.name!r} is an {spec.kind}"))
    if given["hybrid_mask_kwarg"] is not None and (not isinstance(module, nn.Module) or type(module) in KINDS):
        message = "mixers of this library and torch's recurrences know padding by themselves"
        found.append(Problem(f"{at}hybrid_mask_kwarg", message, given["hybrid_mask_kwarg"]))
    return found


def _module_problems(draft: AttentionDraft, module: nn.Module) -> list[Problem]:
    at = f"{draft.prefix}hybrid_module"
    if isinstance(module, nn.RNNBase) and (found := _recurrence_problems(draft, module, at)):
        return found
    if draft.causal and not is_causal(module):
        message = "what it gives of a token may depend on later ones, and these layers are causal"
        return [Problem(at, message, hint="a causal module says so: module.causal = True")]
    return []


def _recurrence_problems(draft: AttentionDraft, module: nn.RNNBase, at: str) -> list[Problem]:
    if not module.batch_first:
        return [Problem(at, "it would run over the batch", module, "give it batch_first=True")]
    if module.input_size != draft.dim:
        message = f"it reads {module.input_size} features, and these layers have {draft.dim}"
        return [Problem(at, message, hint=f"input_size={draft.dim}")]
    inner = draft.heads * (draft.options.get("value_dim_head") or draft.dim_head)
    name, ways = "proj_size" if module.proj_size else "hidden_size", 1 + module.bidirectional
    if (size := getattr(module, name) * ways) != inner:
        message = f"it gives {size} features, and the heads of the attention beside it have {inner}"
        return [Problem(at, message, hint=f"{name}={inner // ways}")]
    return []


def is_causal(module: nn.Module) -> bool:
    """Whether a module looks at earlier tokens alone: torch's recurrences in one direction, and what says so itself."""
    if isinstance(module, nn.RNNBase):
        return not module.bidirectional
    return bool(getattr(module, "causal", False))


def is_plain_gru(module: Any) -> bool:
    """Whether a module is the recurrence that the core has: one layer, one direction."""
    return type(module) is nn.GRU and module.num_layers == 1 and not module.bidirectional


def attention(draft: AttentionDraft, spec: Spec) -> Spec:
    """The attention beside the module."""
    given, module = draft.options, draft.options.get("hybrid_module")
    if module is None:
        return spec
    mixer = _mixer(draft, module)
    fold = given["hybrid_fold_axial_dim"] or 1
    norm = RMSNorm.spec(eps=TINY, per_head=draft.heads)
    grouped = draft.key_heads not in (1, draft.heads)
    return HybridAttention.spec(
        attention=spec,
        mixer=FoldedMixer.spec(every=fold, mixer=mixer) if fold > 1 else mixer,
        norm=norm,
        mixer_norm=norm,
        mix=LinearProjection.spec() if given["hybrid_learned_mix"] else None,
        head_order=tiled_heads(draft.heads, draft.key_heads) if grouped else None,
    )


def _mixer(draft: AttentionDraft, module: Any) -> Spec:
    if not isinstance(module, nn.Module):
        return mixing_spec(module)
    if is_plain_gru(module):  # which any model may have, by its registered name
        return GatedRecurrentUnit.spec(dim_out=module.hidden_size, bias=module.bias, like=module)
    if type(module) in KINDS:
        return TorchRecurrence.spec(module=module)
    return TorchModule.spec(
        module=module, causal_module=is_causal(module), mask_name=draft.options["hybrid_mask_kwarg"]
    )
