"""Keywords of positions between queries and keys, routed to rotations and biases of the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from variform.core.spec import Shared, Spec
from variform.dialects.x_transformers.attention.draft import AttentionDraft, score_scale
from variform.dialects.x_transformers.table import Route, Table
from variform.errors import Problem, did_you_mean
from variform.ops.scores import alibi_slopes
from variform.parts.position.bias import AlibiBias, T5Bias
from variform.parts.position.dynamic import DynamicBias
from variform.parts.position.polar import ROOT_2, PolarRotation
from variform.parts.position.rotary import RotaryRotation
from variform.parts.position.some_heads import SomeHeads
from variform.weights.x_transformers import tiled_heads

if TYPE_CHECKING:
    from variform.dialects.x_transformers.layers import LayersDraft

BIASES = ("rel_pos_bias", "dynamic_pos_bias", "alibi_pos_bias")
"""Keywords of which one at most biases the scores."""


@dataclass
class PositionDraft:
    """How queries and keys of a stack know where they stand; `rotary` holds fields of the rotation."""

    alibi_pos_bias: bool = False
    alibi_num_heads: int | None = None
    rel_pos_bias: bool = False
    rel_pos_num_buckets: int = 32
    rel_pos_max_distance: int = 128
    rel_pos_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_pos_bias: bool = False
    dynamic_pos_bias_log_distance: bool = False
    dynamic_pos_bias_mlp_depth: int = 2
    dynamic_pos_bias_norm: bool = False
    rotary: dict[str, Any] = field(default_factory=dict)
    rotary_pos_emb: bool = False
    rotary_xpos: bool = False
    rotary_xpos_scale_base: float = 512
    rotate_num_heads: int | None = None
    polar_pos_emb: bool = False
    polar_bias_uniform_init: bool = False

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are rotated."""
        return self.rotary_pos_emb or self.rotary_xpos

    @property
    def replaces_absolute(self) -> bool:
        """Whether a model around the stack has no absolute positions, unless it is said otherwise."""
        return self.rel_pos_bias or self.rotates or self.polar_pos_emb

    def check(self, heads: int, causal: bool, only_cross: bool = False) -> list[Problem]:
        """The rules that concern several keywords."""
        found = []
        chosen = [name for name in BIASES if getattr(self, name)]
        if len(chosen) > 1:
            found.append(Problem(chosen[0], f"only one bias can be chosen: {' or '.join(chosen)}"))
        if self.alibi_num_heads is not None and not 0 < self.alibi_num_heads <= heads:
            found.append(Problem("alibi_num_heads", f"must lie in 1..heads = {heads}", self.alibi_num_heads))
        if only_cross:
            message = "no layer attends to its own sequence, and this is of its distances"
            placed = (*BIASES, "polar_pos_emb")
            found += [Problem(name, message, True, "leave it out") for name in placed if getattr(self, name)]
        if self.rotates and self.polar_pos_emb:
            found.append(Problem("polar_pos_emb", "only one rotation can be chosen: rotary_pos_emb or polar_pos_emb"))
        if self.rotary_xpos and not causal:
            message = "the product with a key fades with its distance in the past, and would grow towards the future"
            found.append(Problem("rotary_xpos", message, True, "take it in a Decoder, or rotary_pos_emb"))
        if self.rotate_num_heads is not None and not 0 < self.rotate_num_heads <= heads:
            found.append(Problem("rotate_num_heads", f"must lie in 1..heads = {heads}", self.rotate_num_heads))
        if self.dynamic_pos_bias_mlp_depth < 1:
            message = "one layer at least is needed"
            found.append(Problem("dynamic_pos_bias_mlp_depth", message, self.dynamic_pos_bias_mlp_depth))
        given = {"rotary_emb_dim": "rotary_dim", "rotary_interpolation_factor": "interpolation"}
        given["rotary_base_rescale_factor"] = "ntk"
        for name, own in given.items():
            if self.rotary.get(own, 1.0) not in (None, 1.0) and not self.rotates:
                found.append(Problem(name, f"{name} has no effect without rotary_pos_emb", self.rotary[own]))
        if self.rotate_num_heads is not None and not self.rotates:
            message = "rotate_num_heads has no effect without rotary_pos_emb"
            found.append(Problem("rotate_num_heads", message, self.rotate_num_heads))
        return found + self._options(heads)

    def unread(self, by_context: bool) -> list[Problem]:
        """What is wrong where mixers stand in the place of all self-attentions.

        Args:
            by_context: whether there is cross attention, which rotates.
        """
        names = (*BIASES, "polar_pos_emb", *(() if by_context else ("rotary_pos_emb", "rotary_xpos")))
        message = "no layer compares queries with keys: mixers stand in the place of attention"
        return [Problem(name, message, True, "leave it out") for name in names if getattr(self, name)]

    def _options(self, heads: int) -> list[Problem]:
        """What is wrong with `rel_pos_kwargs`."""
        known = ("slopes", "learned") if self.alibi_pos_bias else ()
        found = [
            Problem(
                f"rel_pos_kwargs.{name}",
                "the bias has no such option" if known else "there is no bias with options of its own",
                value,
                did_you_mean(name, known) if known else "rel_pos_num_buckets and dynamic_pos_bias_... are keywords",
            )
            for name, value in self.rel_pos_kwargs.items()
            if name not in known
        ]
        slopes, count = self.rel_pos_kwargs.get("slopes"), self.alibi_num_heads or heads
        if not found and slopes is not None and len(slopes) != count:
            message = f"one slope for each of the {count} biased heads is needed, not {len(slopes)}"
            found.append(Problem("rel_pos_kwargs.slopes", message, slopes))
        return found

    def check_heads(self, draft: AttentionDraft) -> list[Problem]:
        """Query heads are rotated with the key head that they read."""
        count, own = self.rotate_num_heads, draft.options.get("latent_rope_subheads")
        if count is not None and own is not None:
            message = "the heads that are rotated are those of attn_latent_rope_subheads"
            return [Problem("rotate_num_heads", message, count, "leave it out")]
        if self.rotary_xpos and draft.options.get("l2_distance"):
            message = "products with keys fade with their distance, and these scores are distances"
            return [Problem("rotary_xpos", message, True, "leave attn_l2_distance out, or take rotary_pos_emb")]
        half = draft.dim_head // 2
        if self.rotary_xpos and self.rotary.get("rotary_dim") is None and half % 2:
            message = f"half of a head's {draft.dim_head} features are rotated, in pairs, and {half} are odd"
            return [Problem(f"{draft.prefix}dim_head", message, draft.dim_head, f"give rotary_emb_dim={half + 1}")]
        if count is None or not count % (group := draft.heads // draft.key_heads):
            return []
        message = f"{group} query heads read one key head, and are rotated together with it"
        return [Problem("rotate_num_heads", message, count, f"a multiple of {group}")]

    def rotation(self, draft: AttentionDraft) -> Spec | Shared | None:
        """How one self-attention rotates its queries and keys."""
        if self.polar_pos_emb:
            return Shared("polar_pos_emb", self._polar(draft))
        if not self.rotates:
            return None
        rotary = self.turning(draft.dim_head // 2)
        count = self.rotate_num_heads
        if count is None or (count == draft.heads):
            return rotary
        group = draft.heads // draft.key_heads
        q_heads = tuple(range(draft.heads - count, draft.heads))
        k_heads = tuple(range(draft.key_heads - count // group, draft.key_heads))
        return SomeHeads.spec(rotation=rotary, q_heads=q_heads, k_heads=k_heads)

    def of_context(self, draft: AttentionDraft, dim_head: int) -> Spec | None:
        """How a cross attention rotates, where the context's positions are told; by the angles of self-attention."""
        if not self.rotates:
            return None
        rotary, own = self.turning(dim_head // 2), draft.options.get("latent_rope_subheads")
        if own in (None, draft.key_heads):
            return rotary
        # Latent keys stay as they are; those of the context itself are rotated, with the queries that read them.
        turned = own * (draft.heads // draft.key_heads)
        q_heads = tuple(range(draft.heads - turned, draft.heads))
        return SomeHeads.spec(rotation=rotary, q_heads=q_heads, k_heads=tuple(range(draft.key_heads))[-own:])

    def turning(self, half: int) -> Spec:
        """The rotary part; `half` is how many features it turns by default."""
        options = {"rotary_dim": half, **{k: v for k, v in self.rotary.items() if v is not None}}
        if options["rotary_dim"] % 2 and not self.rotary_xpos:
            options |= _of_odd(options["rotary_dim"], options.pop("ntk", 1.0))
        fading = float(self.rotary_xpos_scale_base) if self.rotary_xpos else None
        return RotaryRotation.spec(layout="interleaved", max_seq_len=None, xpos=fading, **options)

    def _polar(self, draft: AttentionDraft) -> Spec:
        """Upstream's l2 norms leave queries and keys smaller than the norms here, and its softplus sees that."""
        scaling: dict[str, Any] = {"scale": draft.length} if draft.qk_norm else {}
        gain = 1.0 if draft.options["l2_distance"] else draft.polar_gain
        if gain != ROOT_2:
            scaling["gain"] = gain
        if draft.key_heads == 1 < draft.heads:  # upstream gives every query head a phase, where it can
            scaling["phases"] = "queries"
        return PolarRotation.spec(uniform_start=self.polar_bias_uniform_init, **scaling)

    def bias(self, draft: AttentionDraft) -> Spec | Shared | None:
        """How one self-attention biases its scores."""
        if self.rel_pos_bias:
            table = T5Bias.spec(
                buckets=self.rel_pos_num_buckets,
                max_distance=self.rel_pos_max_distance,
                std=1.0,
                scale=score_scale(draft.dim_head),
                **({"causal": False} if draft.prefixed else {}),  # a prefix is seen both ways
            )
            return Shared("rel_pos", table)
        if self.dynamic_pos_bias:
            network = DynamicBias.spec(
                hidden=max(1, draft.dim // 4),
                layers=self.dynamic_pos_bias_mlp_depth,
                log=self.dynamic_pos_bias_log_distance,
                norm=self.dynamic_pos_bias_norm,
            )
            return Shared("rel_pos", network)
        return self._alibi(draft) if self.alibi_pos_bias else None

    def _alibi(self, draft: AttentionDraft) -> Spec:
        biased, given = self.alibi_num_heads or draft.heads, self.rel_pos_kwargs.get("slopes")
        learned = bool(self.rel_pos_kwargs.get("learned", False))
        if given is None and biased == draft.heads == draft.key_heads:
            return AlibiBias.spec(learned=learned)
        known = alibi_slopes(biased).tolist() if given is None else [float(slope) for slope in given]
        slopes = [*known, *[0.0] * (draft.heads - biased)]
        # Upstream's query head i reads key head i mod kv_heads, the core's i // group: the slopes move along.
        order = tiled_heads(draft.heads, draft.key_heads)
        return AlibiBias.spec(slopes=[slopes[head] for head in order], learned=learned)


def _of_odd(dim: int, ntk: float) -> dict[str, Any]:
    """An odd number of features is one more, which turn by the angles 10000^(-2i / dim) of so many."""
    rescaled = 10000.0 * ntk ** (dim / (dim - 2))
    return {"rotary_dim": dim + 1, "base": rescaled ** ((dim + 1) / dim)}


def put(name: str) -> Callable[[LayersDraft, Any], None]:
    """A route to one field of the draft of positions."""

    def apply(draft: LayersDraft, value: Any) -> None:
        setattr(draft.positions, name, value)

    return apply


def _rotary(name: str) -> Callable[[LayersDraft, Any], None]:
    def apply(draft: LayersDraft, value: Any) -> None:
        whole = value is None or name == "rotary_dim"
        draft.positions.rotary[name] = value if whole else float(value)

    return apply


NUMBER = (int, float)
ROUTES: Table = {
    "alibi_pos_bias": Route(False, put("alibi_pos_bias")),
    "alibi_num_heads": Route(None, put("alibi_num_heads"), needs="alibi_pos_bias", types=(int,)),
    "rel_pos_bias": Route(False, put("rel_pos_bias")),
    "rel_pos_num_buckets": Route(32, put("rel_pos_num_buckets"), needs="rel_pos_bias", types=(int,)),
    "rel_pos_max_distance": Route(128, put("rel_pos_max_distance"), needs="rel_pos_bias", types=(int,)),
    "rel_pos_kwargs": Route({}, put("rel_pos_kwargs"), types=(dict,)),
    "dynamic_pos_bias": Route(False, put("dynamic_pos_bias")),
    "dynamic_pos_bias_log_distance": Route(False, put("dynamic_pos_bias_log_distance"), needs="dynamic_pos_bias"),
    "dynamic_pos_bias_mlp_depth": Route(2, put("dynamic_pos_bias_mlp_depth"), needs="dynamic_pos_bias", types=(int,)),
    "dynamic_pos_bias_norm": Route(False, put("dynamic_pos_bias_norm"), needs="dynamic_pos_bias"),
    "rotary_pos_emb": Route(False, put("rotary_pos_emb")),
    "rotary_emb_dim": Route(None, _rotary("rotary_dim"), types=(int,)),
    "rotary_interpolation_factor": Route(1.0, _rotary("interpolation"), types=NUMBER),
    "rotary_base_rescale_factor": Route(1.0, _rotary("ntk"), types=NUMBER),
    "rotary_xpos": Route(False, put("rotary_xpos")),
    "rotary_xpos_scale_base": Route(512, put("rotary_xpos_scale_base"), needs="rotary_xpos", types=NUMBER),
    "rotate_num_heads": Route(None, put("rotate_num_heads"), types=(int,)),
    "polar_pos_emb": Route(False, put("polar_pos_emb")),
    "polar_bias_uniform_init": Route(False, put("polar_bias_uniform_init"), needs="polar_pos_emb"),
}
"""Keyword -> what it does to the `positions` of a `LayersDraft`."""
