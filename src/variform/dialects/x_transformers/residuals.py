"""Keywords of how branches join the residual stream, or several streams, routed to residuals of the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from variform.core.spec import Spec
from variform.dialects.x_transformers.table import Route, Table
from variform.errors import Problem, did_you_mean
from variform.parts.norm.soft_clamp import SoftClamp
from variform.parts.residual.gated_multi import GatedMultiResidual
from variform.parts.residual.gru import GRUResidual
from variform.parts.residual.hyper import HyperConnection
from variform.parts.residual.mean_split import MeanSplitResidual
from variform.parts.residual.orthogonal import OrthogonalResidual
from variform.parts.residual.scaled import LayerScaleResidual, ScaledResidual, ScaledStreamResidual
from variform.parts.stream_ops.adaptive_branch import AdaptiveBranch
from variform.parts.stream_ops.branch import ScaledBranch
from variform.stack.multi_stream import MultiStreamStack
from variform.stack.sublayer import Sublayer

if TYPE_CHECKING:
    from variform.dialects.x_transformers.layers import LayersDraft

KINDS = ("gate_residual", "orthog_residual", "mv_split_residual", "gated_multi_residual")
"""Keywords of which one at most replaces the sum."""

OPTIONS: dict[str, dict[str, str]] = {
    "mv_split_residual": {"learned": "learned", "init_alpha": "alpha", "init_beta": "beta"},
    "gated_multi_residual": {"read_gate_rank": "rank"},
}
"""Names in `residual_fn_kwargs`, and the fields that they are here."""

ITERATIONS = 5
"""Upstream's number of Sinkhorn's iterations."""


@dataclass
class ResidualDraft:
    """How the branches of a stack join; `alpha`, `beta` and `starts_by_depth` are no keywords, the other fields are."""

    alpha: float = 1.0
    beta: float = 1.0
    scale_residual: bool | float = False
    gate_residual: bool = False
    orthog_residual: bool = False
    mv_split_residual: bool = False
    gated_multi_residual: bool = False
    residual_fn_kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_residual_streams: int = 1
    hyper_conn_sinkhorn_iters: int = ITERATIONS
    qkv_receive_diff_residuals: bool = False
    viewed: bool = False
    legacy: bool = False
    use_layerscale: bool = False
    layerscale_init_value: float = 0.0
    use_adaptive_layerscale: bool = False
    zero_init_branch_output: bool = False
    starts_by_depth: bool = False
    softclamp_output: bool = False
    softclamp_output_value: float = 30.0

    @property
    def kind(self) -> str:
        """The keyword that replaces the sum; empty for the sum."""
        return next((name for name in KINDS if getattr(self, name)), "hyper" if self.num_residual_streams > 1 else "")

    @property
    def several(self) -> bool:
        """Whether a token has several residual streams."""
        return self.kind in ("hyper", "gated_multi_residual")

    @property
    def normed_when_read(self) -> bool:
        """Whether what a branch reads is normed by the residual."""
        return self.gated_multi_residual

    def check(self) -> list[Problem]:
        """The rules that concern several keywords."""
        chosen = [name for name in KINDS if getattr(self, name)]
        found = []
        if self.use_layerscale and self.use_adaptive_layerscale:
            message = "a branch has one scale: use_layerscale or use_adaptive_layerscale"
            found.append(Problem("use_adaptive_layerscale", message))
        if len(chosen) > 1:
            found.append(Problem(chosen[1], f"only one residual can be chosen: {' or '.join(chosen)}"))
        if self.num_residual_streams < 1:
            found.append(Problem("num_residual_streams", "at least one is needed", self.num_residual_streams))
        elif self.num_residual_streams > 1 and chosen and not self.gated_multi_residual:
            message = f"several streams are joined by hyper connections or gated_multi_residual, not by {chosen[0]}"
            found.append(Problem("num_residual_streams", message, self.num_residual_streams))
        if self.kind == "gated_multi_residual" and "read_gate_rank" not in self.residual_fn_kwargs:
            hint = "residual_fn_kwargs=dict(read_gate_rank=16)"
            found.append(Problem("residual_fn_kwargs", "gated_multi_residual needs read_gate_rank", hint=hint))
        return found + self._without_effect() + self._unknown_options()

    def _without_effect(self) -> list[Problem]:
        """What the chosen residual would ignore, as upstream's does."""
        by = self.kind if self.kind in KINDS else "hyper connections"
        takes_scale = self.kind in ("", "gate_residual", "orthog_residual")
        ignored = {
            "scale_residual": (bool(self.scale_residual) and not takes_scale, by),
            "scale_residual_constant": (self.alpha != 1.0 and bool(self.kind), by),
            "qkv_receive_diff_residuals": (
                self.qkv_receive_diff_residuals and not (self.several or self.viewed),
                "one residual stream",
            ),
            "legacy": (self.legacy and self.kind != "hyper", by if self.kind else "one residual stream"),
            "hyper_conn_sinkhorn_iters": (
                self.hyper_conn_sinkhorn_iters != ITERATIONS and (self.kind != "hyper" or self.legacy),
                "legacy" if self.legacy else by if self.kind else "one residual stream",
            ),
            "depth_scale_residual": (self.starts_by_depth and self.zero_init_branch_output, "zero_init_branch_output"),
        }
        return [Problem(name, f"has no effect with {why}") for name, (wrong, why) in ignored.items() if wrong]

    def scaled_problems(self, by: str) -> list[Problem]:
        """What is wrong where branches are not scaled, `by` something that says so."""
        learned = isinstance(self.scale_residual, bool)
        given = {"depth_scale_residual": self.starts_by_depth or (learned and self.beta != 1.0)}
        given["scale_residual"] = not learned
        return [Problem(name, f"has no effect with {by}") for name, wrong in given.items() if wrong]

    def _unknown_options(self) -> list[Problem]:
        known = OPTIONS.get(self.kind, {})
        return [
            Problem(f"residual_fn_kwargs.{name}", f"{self.kind or 'the sum'} has no such option", value, hint)
            for name, value in self.residual_fn_kwargs.items()
            if name not in known
            for hint in (did_you_mean(name, known) if known else "leave it out",)
        ]

    def start(self, given: Mapping[str, Any], block: int) -> dict[str, Any]:
        """The keywords of one body, with how it begins for all bodies; zero goes before depth, as upstream.

        Args:
            given: keywords of the body, without their prefix.
            block: which block it stands in, from 1.
        """
        zero = self.zero_init_branch_output or given.get("zero_init_output", False)
        if zero:
            return {**given, "zero_init_output": True}
        return {**given, "output_proj_depth": block} if self.starts_by_depth else {**given}

    def step(
        self,
        body: Spec,
        letter: str,
        index: int,
        *,
        factor: float,
        dropout: float,
        condition: int | None,
        **norms: Any,
    ) -> Spec:
        """One residual step.

        Args:
            body: what does the work.
            letter: 'a', 'c' or 'f'.
            index: which sublayer of the stack it is.
            factor: a constant on its branch alone (macaron).
            dropout: of its branch.
            condition: features of the condition that adaptive parts see.
            **norms: further fields of the sublayer.
        """
        beta = self.beta * factor
        if not self.kind and not self.use_adaptive_layerscale and norms.get("branch_norm") is None:
            if not self.use_layerscale:
                return Sublayer.spec(body=body, residual=self._sum(beta), dropout=dropout, **norms)
            if self.alpha == self.beta == factor == 1.0 and not self.scale_residual:
                residual = LayerScaleResidual.spec(init=self.layerscale_init_value)
                return Sublayer.spec(body=body, residual=residual, dropout=dropout, **norms)
        # What something else than the sum takes is scaled before, and dropped before it is normed.
        if factor != 1.0 or dropout:
            body = ScaledBranch.spec(body=body, factor=factor, dropout=dropout)
        if self.use_layerscale:
            body = ScaledBranch.spec(body=body, gain=self.layerscale_init_value)
        if self.use_adaptive_layerscale:
            body = AdaptiveBranch.spec(body=body, dim_condition=condition)
        if self.beta != 1.0:
            body = ScaledBranch.spec(body=body, factor=self.beta)
        return Sublayer.spec(body=body, residual=self._residual(letter, index), **norms)

    def _sum(self, beta: float) -> Spec | None:
        if self.scale_residual:
            return ScaledStreamResidual.spec(alpha=self.alpha, beta=beta)
        return None if self.alpha == beta == 1.0 else ScaledResidual.spec(alpha=self.alpha, beta=beta)

    def _residual(self, letter: str, index: int) -> Spec | None:
        scaled = bool(self.scale_residual)
        known = OPTIONS.get(self.kind, {})
        options = {known[name]: value for name, value in self.residual_fn_kwargs.items()}
        views = 3 if letter == "a" and self.qkv_receive_diff_residuals and not self.viewed else 1
        if self.kind == "gate_residual":
            return GRUResidual.spec(scaled=scaled)
        if self.kind == "orthog_residual":
            return OrthogonalResidual.spec(scaled=scaled)
        if self.kind == "mv_split_residual":
            return MeanSplitResidual.spec(**options)
        if self.kind == "gated_multi_residual":
            return GatedMultiResidual.spec(input_views=views, home=index % self.num_residual_streams, **options)
        if self.kind == "hyper":
            return HyperConnection.spec(
                input_views=views,
                home=index % self.num_residual_streams,
                rounds=self.hyper_conn_sinkhorn_iters,
                legacy=self.legacy,
            )
        return self._sum(1.0)

    def stack(self, stack: Spec, norm: Spec | None, dim: int) -> Spec:
        """The stack with what ends it: the clamp, the sum of several streams, the final norm."""
        clamp = SoftClamp.spec(value=float(self.softclamp_output_value)) if self.softclamp_output else None
        if not self.several:
            return stack.replace(norm=norm if clamp is None else clamp.replace(norm=norm))
        return MultiStreamStack.spec(
            stack=stack.replace(norm=clamp),
            residual_streams=self.num_residual_streams,
            norm=norm,
            dim=dim,
            causal=stack["causal"],
            distinct=self.num_residual_streams > 1,
        )


def put(name: str) -> Callable[[LayersDraft, Any], None]:
    """A route to one field of the draft of residuals."""

    def apply(draft: LayersDraft, value: Any) -> None:
        setattr(draft.residuals, name, value)

    return apply


def _scale(draft: LayersDraft, value: Any) -> None:
    """A number is a factor on every branch too, unless `depth_scale_residual` is one."""
    draft.residuals.scale_residual = value
    if value is not True and value is not False and draft.residuals.beta == 1.0:
        draft.residuals.beta = float(value)


def _branch_factor(draft: LayersDraft, value: Any) -> None:
    """A number scales the branches; True lets them begin the smaller, the deeper they stand."""
    draft.residuals.starts_by_depth = value is True
    if value is not True and value is not False:
        draft.residuals.beta = float(value)


ROUTES: Table = {
    "scale_residual_constant": Route(1.0, put("alpha"), types=(int, float)),
    "depth_scale_residual": Route(False, _branch_factor, types=(bool, int, float)),
    "scale_residual": Route(False, _scale, types=(bool, int, float)),
    "gate_residual": Route(False, put("gate_residual")),
    "orthog_residual": Route(False, put("orthog_residual")),
    "mv_split_residual": Route(False, put("mv_split_residual")),
    "gated_multi_residual": Route(False, put("gated_multi_residual")),
    "residual_fn_kwargs": Route({}, put("residual_fn_kwargs"), types=(dict,)),
    "num_residual_streams": Route(1, put("num_residual_streams"), types=(int,)),
    "hyper_conn_sinkhorn_iters": Route(ITERATIONS, put("hyper_conn_sinkhorn_iters"), types=(int,)),
    "qkv_receive_diff_residuals": Route(False, put("qkv_receive_diff_residuals")),
    "legacy": Route(False, put("legacy")),  # of this library alone: hyper connections of upstream's checkpoints
    "use_layerscale": Route(False, put("use_layerscale")),
    "layerscale_init_value": Route(0.0, put("layerscale_init_value"), needs="use_layerscale", types=(int, float)),
    "use_adaptive_layerscale": Route(False, put("use_adaptive_layerscale")),
    "zero_init_branch_output": Route(False, put("zero_init_branch_output")),
    "softclamp_output": Route(False, put("softclamp_output")),
    "softclamp_output_value": Route(30.0, put("softclamp_output_value"), needs="softclamp_output", types=(int, float)),
}
"""Keyword -> what it does to the `residuals` of a `LayersDraft`."""
