"""One attention on its way from upstream's keywords to a mixer of the core."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from variform.core.spec import Shared, Spec, described
from variform.dialects.x_transformers.attention.families import FAMILIES
from variform.dialects.x_transformers.attention.table import ATTENTION
from variform.dialects.x_transformers.eps import TINY
from variform.dialects.x_transformers.table import is_default, rates_of
from variform.errors import ConfigError, Problem, nearest_divisors
from variform.models.mixing import mixing_spec, with_dropout
from variform.parts.attention.hybrid import HybridAttention
from variform.parts.attention.memory import LearnedMemory
from variform.parts.attention.prefix import PrefixAttention
from variform.parts.attention.rotated import RotatedAttention
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.grouped import GroupedRMSNorm
from variform.parts.norm.norms import RMSNorm
from variform.parts.position.polar import ROOT_2, PolarRotation
from variform.parts.stream_ops.padding import ZeroPadding

OF_ANY_MIXER = {
    *("part", "dropout", "sublayer_dropout", "zero_init_output", "output_proj_depth"),
    *("flash", "onnxable", "flash_pack_seq"),  # they change no function
    "dim_head",  # of the stack, whose other attentions and pools have it too
}
"""Keywords that go with a mixer in the place of attention."""


@dataclass
class AttentionDraft:
    """One attention on its way to a spec; `options` holds the keywords of the families, see `attention.families`.

    `place` tells it from the others of its stack.
    """

    dim: int
    heads: int
    causal: bool
    prefix: str
    prefixed: bool = False
    dim_head: int = 64
    kv_heads: int | None = None
    one_kv_head: bool = False
    dropout: float = 0.0
    sublayer_dropout: float = 0.0
    dim_context: int | None = None
    max_attend_past: int | None = None
    project_out: bool | None = None
    num_mem_kv: int = 0
    qk_norm: bool = False
    qk_norm_scale: float = 10.0
    qk_norm_dim_scale: bool = False
    qk_rmsnorm: bool = False
    k_rmsnorm: bool = False
    flash: bool = False
    part: Any = None
    place: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def key_heads(self) -> int:
        """How many key and value heads there are."""
        return 1 if self.one_kv_head else self.kv_heads or self.heads

    @property
    def length(self) -> float:
        """How long upstream's normed queries and keys are, those here being one: its norms are not of the mean."""
        if not self.qk_norm:
            return 1.0
        length = math.sqrt(self.options.get("qk_norm_groups", 1) / self.dim_head)
        return float(length * self.dim_head**0.25) if self.qk_norm_dim_scale else length

    @property
    def polar_gain(self) -> float:
        """What keys in polar coordinates are multiplied by, so that products with them are upstream's."""
        if not self.qk_norm:
            return ROOT_2
        groups = self.options.get("qk_norm_groups", 1)
        return float(math.sqrt(self.dim_head) / groups if self.qk_norm_dim_scale else self.dim_head / groups)

    @property
    def keeps_window(self) -> bool:
        """Whether the limit on the past is a window, of which decoding keeps the newest keys alone."""
        plain = self.causal and not self.prefixed and self.prefix == "attn_" and not self.options["selective"]
        return self.max_attend_past is not None and plain

    def check(self, cross: bool) -> list[Problem]:
        """The rules that concern several keywords."""
        at, found = self.prefix, self.problems + rates_of(self, "dropout", "sublayer_dropout")
        if self.one_kv_head and self.kv_heads is not None:
            message = "one key head is what one_kv_head asks for; give one of the two"
            found.append(Problem(f"{at}kv_heads", message, self.kv_heads))
        elif isinstance(self.kv_heads, int) and (self.kv_heads < 1 or self.heads % self.kv_heads):
            hint = nearest_divisors(self.heads, max(1, self.kv_heads))
            found.append(Problem(f"{at}kv_heads", f"must divide heads = {self.heads}", self.kv_heads, hint))
        if self.qk_rmsnorm + self.k_rmsnorm + self.qk_norm > 1:
            message = "only one norm of queries and keys can be on: qk_norm, qk_rmsnorm or k_rmsnorm"
            found.append(Problem(f"{at}qk_rmsnorm", message))
        if self.max_attend_past is not None and self.max_attend_past < 0:
            found.append(Problem(f"{at}max_attend_past", "must not be negative", self.max_attend_past))
        if self.qk_norm and not self.qk_norm_scale > 0:
            found.append(Problem(f"{at}qk_norm_scale", "must be positive", self.qk_norm_scale))
        if self.qk_norm_dim_scale and self.qk_norm_scale != ATTENTION["qk_norm_scale"].default:
            message = f"it has no effect with {at}qk_norm_dim_scale, whose gains are learned"
            found.append(Problem(f"{at}qk_norm_scale", message, self.qk_norm_scale))
        if self.num_mem_kv < 0:
            found.append(Problem(f"{at}num_mem_kv", "must not be negative", self.num_mem_kv))
        found += self._part_problems(cross)
        for family in FAMILIES:
            found += family.check(self, cross)
        if self.dim_context is not None and not cross:
            message = "self-attention has no context; it belongs to cross_attn_dim_context"
            found.append(Problem(f"{at}dim_context", message, self.dim_context))
        return found

    def _part_problems(self, cross: bool) -> list[Problem]:
        """What is wrong with an attention that is named as a part."""
        if self.part is None:
            return []
        at = f"{self.prefix}part"
        try:
            spec = mixing_spec(self.part)
        except ConfigError as error:
            return [problem.below(at) for problem in error.problems]
        if cross and spec.kind == "mixer":
            return [Problem(at, f"the mixer {spec.name!r} does not attend to another sequence", self.part)]
        if spec.kind == "mixer" and self.options.get("alone"):
            message = f"an Attention by itself has queries and keys, which the mixer {spec.name!r} has not"
            return [Problem(at, message, self.part, "build the mixer itself: variform.build(...)")]
        found = []
        if self.dropout and with_dropout(spec, self.dropout) == spec:
            message = f"{spec.name!r} has no rate of dropped weights, or is given its own"
            found.append(Problem(f"{self.prefix}dropout", message, self.dropout))
        if spec.kind == "mixer":
            return found + self._mixer_problems(spec)
        softmax = {"max_attend_past": self.max_attend_past, "num_mem_kv": self.num_mem_kv, "qk_norm": self.qk_norm}
        return found + [
            Problem(f"{self.prefix}{name}", f"softmax attention alone has it, not {spec.name!r}", value)
            for name, value in softmax.items()
            if value and spec.name != "softmax"
        ]

    def _mixer_problems(self, spec: Spec) -> list[Problem]:
        """What a mixer that stands in the place of attention would ignore: it has no heads with maps around them."""
        given = {name: self.options[name] if name in self.options else getattr(self, name) for name in ATTENTION}
        return [
            Problem(f"{self.prefix}{name}", f"the mixer {spec.name!r} has no such option here", value, "set it in part")
            for name, value in given.items()
            if name not in OF_ANY_MIXER and not is_default(value, ATTENTION[name].default)
        ]

    def body(self, rotation: Spec | Shared | None, bias: Spec | Shared | None) -> Spec:
        """Self-attention as a part; rows that the mask leaves out hold zeros, as upstream's."""
        if is_mixer(self.part):
            mixer = mixing_spec(self.part)
            return ZeroPadding.spec(body=self._wrapped(with_dropout(mixer, self.dropout) if self.dropout else mixer))
        common = self._common(polar_distances=_is_polar(rotation) and self.options["l2_distance"])
        mixer = MultiHead.spec(**common, rotation=rotation, position_bias=bias)
        return ZeroPadding.spec(body=self._wrapped(mixer))

    def cross_body(self, rotation: Spec | None) -> Spec:
        """Cross attention as a part; it rotates where the context's positions are told."""
        common = self._common()
        if rotation is not None:
            common["attention"] = RotatedAttention.spec(attention=common["attention"], rotation=rotation)
        mixer = CrossMultiHead.spec(**common, dim_context=self.dim_context or self.dim)
        return ZeroPadding.spec(body=self._wrapped(mixer))

    def _wrapped(self, mixer: Spec) -> Spec:
        """The mixer with what the families put in its place or around it."""
        for family in FAMILIES:
            mixer = family.mixer(self, mixer)
        return mixer

    def _common(self, polar_distances: bool = False) -> dict[str, Any]:
        k_norm: Spec | Shared | None
        q_norm, k_norm, scale = self._norms()
        if polar_distances:  # of features as they are: no gain of keys stands in for the factor on products
            scale = self.dim_head**-0.5 if scale is None else scale * self.polar_gain
        softmax: dict[str, Any] = {"dropout": self.dropout, "scale": scale}
        if self.part is not None:
            attention = with_dropout(mixing_spec(self.part), self.dropout)
        else:
            if self.qk_norm_dim_scale and self.num_mem_kv and k_norm is not None:
                way = "causal" if self.causal else "open"
                k_norm = Shared(f"{self.prefix}{way}.{self.place}.k_norm", k_norm)  # memories have the keys' own gains
            norm = k_norm if self.qk_norm else None
            memory = LearnedMemory.spec(count=self.num_mem_kv, std=1.0, norm=norm) if self.num_mem_kv else None
            attention = SoftmaxAttention.spec(**softmax, memory=memory)
            if self.keeps_window:
                window = 1 + (self.max_attend_past or 0)
                attention = LocalAttention.spec(window=window, **softmax, memory=memory)
        for family in FAMILIES:
            attention = family.attention(self, attention)
        if self.prefixed and self.prefix == "attn_":
            attention = _prefixed(attention)
        return {
            "dim_head": self.dim_head,
            "kv_heads": None if self.key_heads == self.heads else self.key_heads,
            "attention": attention,
            "q_norm": q_norm,
            "k_norm": k_norm,
        }

    def _norms(self) -> tuple[Spec | None, Spec | None, float | None]:
        """Norms of q and k, and the factor on their product.

        Upstream's l2 norms are RMS norms divided by sqrt(dim_head) each, so the factor is divided by dim_head.
        """
        heads, key_heads = (RMSNorm.spec(eps=TINY, per_head=count) for count in (self.heads, self.key_heads))
        if self.qk_norm:
            groups = self.options.get("qk_norm_groups", 1)
            # A gain of upstream's starts at dim_head^(1/4); here at one, and the difference is in the factor.
            factor = 1.0 if self.qk_norm_dim_scale else self.qk_norm_scale
            return *self._cosine_norms(groups), factor * groups / self.dim_head
        if self.qk_rmsnorm:
            return heads, key_heads, None
        return None, key_heads if self.k_rmsnorm else None, None

    def _cosine_norms(self, groups: int) -> tuple[Spec, Spec]:
        """Norms of q and k whose product is a cosine, up to the factor."""
        common: dict[str, Any] = {"eps": TINY} if groups == 1 else {"eps": TINY, "groups": groups}
        norm = RMSNorm if groups == 1 else GroupedRMSNorm
        if not self.qk_norm_dim_scale:
            return norm.spec(**common, gain=False), norm.spec(**common, gain=False)
        return norm.spec(**common, per_head=self.heads), norm.spec(**common, per_head=self.key_heads)


def _is_polar(rotation: Spec | Shared | None) -> bool:
    found = described(rotation)
    return isinstance(found, Spec) and found.part is PolarRotation


def is_mixer(part: Any) -> bool:
    """Whether a keyword `part` names a mixer, which stands in the place of attention; not what is wrong with it."""
    try:
        return part is not None and mixing_spec(part).kind == "mixer"
    except ConfigError:
        return False


def score_scale(dim_head: int) -> float:
    """Upstream's factor on a relative bias: sqrt(dim_head)."""
    return math.sqrt(dim_head)


def _prefixed(attention: Spec) -> Spec:
    """A prefix is seen both ways by all that attends; what stands beside attention reads in order, as it did."""
    inner = described(attention.args.get("attention"))
    if attention.part is HybridAttention and isinstance(inner, Spec):
        return attention.replace(attention=_prefixed(inner))
    return PrefixAttention.spec(attention=attention)
