"""Keywords of upstream's `AttentionLayers`, routed to a stack of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from variform.core.spec import Spec
from variform.dialects.x_transformers.attention.draft import AttentionDraft, is_mixer
from variform.dialects.x_transformers.attention.table import ATTENTION
from variform.dialects.x_transformers.feedforward import FEEDFORWARD, FeedForwardDraft
from variform.dialects.x_transformers.history import with_history
from variform.dialects.x_transformers.order import arranged, layer_types
from variform.dialects.x_transformers.positions import PositionDraft
from variform.dialects.x_transformers.residuals import ResidualDraft
from variform.dialects.x_transformers.routes import KNOWN
from variform.dialects.x_transformers.table import Table, apply_all, problems_of
from variform.errors import Problem
from variform.parts.norm.adaptive import AdaptiveNorm
from variform.parts.norm.norms import LayerNorm
from variform.parts.norm.pointwise import DynamicTanh
from variform.stack.condition import ConditionedStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer


@dataclass
class LayersDraft:
    """A stack on its way to a spec; the fields that are not upstream's keywords are set by its routes."""

    dim: int = 0
    depth: int | None = None
    heads: int = 8
    causal: bool = False
    prefixed: bool = False
    cross_attend: bool = False
    only_cross: bool = False
    only_attn: bool = False
    norms: list[Spec] = field(default_factory=list)
    norm_add_unit_offset: bool = True
    dynamic_tanh_init_alpha: float = 1.0
    dim_condition: int | None = None
    adaptive_condition_mlp: bool = False
    adaptive_condition_mlp_expansion: int = 4
    positions: PositionDraft = field(default_factory=PositionDraft)
    weight_tie_layers: bool = False
    custom_layers: tuple[str, ...] | None = None
    layers_execute_order: tuple[int, ...] | None = None
    sandwich_coef: int | None = None
    par_ratio: int | None = None
    macaron: bool = False
    pre_norm: bool = True
    pre_norm_has_final_norm: bool = True
    pre_and_post_norm: bool = False
    sandwich_norm: bool = False
    residuals: ResidualDraft = field(default_factory=ResidualDraft)
    layer_dropout: float | tuple[float, ...] = 0.0
    disable_abs_pos_emb: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inner: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def without_positions(self) -> bool:
        """Whether a model around the stack has no absolute positions."""
        replaced = self.positions.replaces_absolute
        return replaced if self.disable_abs_pos_emb is None else self.disable_abs_pos_emb

    @property
    def dim_head(self) -> int:
        """Features of a head of self-attention; of the first layer, where they differ."""
        size = self.inner["attn_"].get("dim_head", ATTENTION["dim_head"].default)
        return int(size[0] if isinstance(size, tuple) else size)

    @property
    def norm(self) -> Spec:
        """The norm that is used everywhere."""
        if not self.norms:
            return LayerNorm.spec(bias=False)
        if self.norms[0].part is DynamicTanh:
            return self.norms[0].replace(alpha=float(self.dynamic_tanh_init_alpha))
        adaptive = self.norms[0].part is AdaptiveNorm
        return self.norms[0].replace(dim_condition=self.condition_seen) if adaptive else self.norms[0]

    @property
    def condition(self) -> int | None:
        """Features of the condition that a call needs; None where it takes none."""
        adaptive = self.residuals.use_adaptive_layerscale or any(norm.part is AdaptiveNorm for norm in self.norms)
        return (self.dim_condition or self.dim) if adaptive else None

    @property
    def condition_seen(self) -> int | None:
        """Features of the condition that adaptive parts see."""
        size = self.condition
        mapped = self.adaptive_condition_mlp_expansion if self.adaptive_condition_mlp else 1
        return None if size is None else size * mapped

    @property
    def runs(self) -> int:
        """What upstream calls the depth: blocks, or sublayers where they have an order of their own."""
        if self.weight_tie_layers:
            return 1
        return self.depth if self.depth is not None else len(self.layers_execute_order or self.custom_layers or ())

    @property
    def ordered(self) -> bool:
        """Whether the sublayers stand in an order of their own, not in equal blocks."""
        return self.custom_layers is not None or self.sandwich_coef is not None or self.par_ratio is not None

    def spec(self) -> Spec:
        """The stack. Call it with no problems left."""
        types, order = layer_types(self)
        steps = self._steps(types)
        steps = [] if self.problems else with_history(self, types, steps)
        if self.problems:
            return LayerStack.spec(layers=[])
        layers = arranged(self, types, order, steps)
        keeps_norm = self.pre_norm and self.pre_norm_has_final_norm and not self.pre_and_post_norm
        stack = LayerStack.spec(layers=layers, dim=self.dim, heads=self.heads, causal=self.causal)
        stack = self.residuals.stack(
            stack, self.norm if keeps_norm or self.residuals.normed_when_read else None, self.dim
        )
        if not self.adaptive_condition_mlp:
            return stack
        expansion = self.adaptive_condition_mlp_expansion
        return ConditionedStack.spec(stack=stack, expansion=expansion, dim_condition=self.condition, causal=self.causal)

    def _steps(self, types: tuple[str, ...]) -> list[Spec]:
        """One residual step for each layer type, with the keywords that are its own."""
        counts = {letter: types.count(letter) for letter in "acf"}
        own = self.inner
        inherited = {k: v for k, v in own["attn_"].items() if not _is_list(v, counts["a"])}
        kinds = {
            "a": _per_layer(own["attn_"], counts["a"]),
            "c": _per_layer({**inherited, **own["cross_attn_"]}, counts["c"]),
            "f": _per_layer(own["ff_"], counts["f"]),
        }
        if kinds["a"] and all(is_mixer(given.get("part")) for given in kinds["a"]):
            self.problems += self.positions.unread(by_context=bool(kinds["c"]))
        drops = self.layer_dropout if isinstance(self.layer_dropout, tuple) else (self.layer_dropout,) * len(types)
        if len(drops) != len(types):
            message = f"one rate for each of the {len(types)} sublayers is needed, not {len(drops)}"
            self.problems.append(Problem("layer_dropout", message, self.layer_dropout))
            return []
        # Upstream counts sublayers where they have an order of their own, blocks elsewhere.
        size = 1 if self.ordered else len(types) // (1 if self.weight_tie_layers else self.depth or 1)
        return [
            self._step(letter, self.residuals.start(kinds[letter].pop(0), index // size + 1), drop, index)
            for index, (letter, drop) in enumerate(zip(types, drops, strict=True))
        ]

    def _step(self, letter: str, given: Mapping[str, Any], drop: float, index: int) -> Spec:
        if letter == "f":
            feedforward = FeedForwardDraft(self.dim)
            wrong = len(self.problems)
            self._read(feedforward, "ff_", FEEDFORWARD, given)
            self.problems += feedforward.check()
            if feedforward.dim_out not in (None, self.dim):
                message = f"in a stack a feedforward gives the {self.dim} features that it joins"
                self.problems.append(Problem("ff_dim_out", message, feedforward.dim_out, "a FeedForward alone has it"))
            if len(self.problems) > wrong:
                return Sublayer.spec()
            return self._sublayer(feedforward.body(), letter, index, drop, feedforward.sublayer_dropout)
        prefix = "attn_" if letter == "a" else "cross_attn_"
        draft = AttentionDraft(self.dim, self.heads, self.causal, prefix, self.prefixed)
        draft.place = str(index)
        wrong = len(self.problems)
        self._read(draft, prefix, ATTENTION, given)
        if len(self.problems) == wrong:
            self.problems += draft.check(cross=letter == "c")
        if len(self.problems) == wrong and letter == "a":
            self.problems += self.positions.check_heads(draft)
        if len(self.problems) > wrong:
            return Sublayer.spec()
        if letter == "c":
            body = draft.cross_body(self.positions.of_context(draft, self.dim_head))
            return self._sublayer(body, letter, index, drop, draft.sublayer_dropout)
        body = draft.body(self.positions.rotation(draft), self.positions.bias(draft))
        return self._sublayer(body, letter, index, drop, draft.sublayer_dropout)

    def _read(self, draft: Any, prefix: str, table: Table, given: Mapping[str, Any]) -> None:
        found = problems_of("this class", table, given, KNOWN, prefix)
        self.problems += found
        if not found:
            apply_all(draft, table, given)

    def _sublayer(self, body: Spec, letter: str, index: int, drop: float, dropout: float) -> Spec:
        pre = self.pre_norm and not self.residuals.normed_when_read
        return self.residuals.step(
            body,
            letter,
            index,
            factor=0.5 if self.macaron and letter == "f" else 1.0,
            dropout=dropout,
            condition=self.condition_seen,
            norm=self.norm if pre else None,
            branch_norm=self.norm if self.sandwich_norm else None,
            out_norm=self.norm if not pre or self.pre_and_post_norm else None,
            layer_drop=drop,
        )


def _is_list(value: Any, count: int) -> bool:
    return isinstance(value, tuple) and len(value) == count


def _per_layer(given: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """A tuple as long as there are layers of a kind gives each its own value."""
    return [{k: v[i] if _is_list(v, count) else v for k, v in given.items()} for i in range(count)]
