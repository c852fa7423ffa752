"""Keywords of upstream's feedforward (`ff_...`), routed to the MLP and GLU of the core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from variform.core.spec import Spec
from variform.dialects.x_transformers.table import Route, Table, put, rates_of
from variform.errors import Problem
from variform.parts.activation import Activation
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.gate.branches import Branches
from variform.parts.nonlinearity.clamps import SoftClamp, SoftClamped
from variform.parts.nonlinearity.composed import Chain, UserModule
from variform.parts.nonlinearity.solu import SoLU
from variform.parts.norm.norms import LayerNorm
from variform.parts.stream_ops.branch import BranchStart


class Unset(float):
    """A bound that was not given: upstream's default."""


GATE_CLAMP, UP_CLAMP = Unset(4.0), Unset(25.0)
"""Upstream's bounds of the two branches of a soft-clamped GLU."""


@dataclass
class FeedForwardDraft:
    """One feedforward on its way to a spec."""

    dim: int
    prefix: str = "ff_"
    mult: float = 4
    dim_out: int | None = None
    glu: bool = False
    glu_mult_bias: bool = False
    glu_softclamp: bool = False
    glu_gate_softclamp_value: float = GATE_CLAMP
    glu_up_softclamp_value: float = UP_CLAMP
    swish: bool = False
    relu_squared: bool = False
    solu: bool = False
    custom_activation: Any = None
    softclamp_value: float | None = None
    no_bias: bool = False
    dropout: float = 0.0
    sublayer_dropout: float = 0.0
    post_act_ln: bool = False
    zero_init_output: bool = False
    output_proj_depth: int | None = None
    problems: list[Problem] = field(default_factory=list)

    def check(self) -> list[Problem]:
        """The rules that concern several keywords."""
        found, at = self.problems + rates_of(self, "dropout", "sublayer_dropout"), self.prefix
        chosen = [name for name in ("swish", "relu_squared", "solu") if getattr(self, name)]
        chosen += ["custom_activation"] if self.custom_activation is not None else []
        if len(chosen) > 1:
            message = f"one activation is needed: {' or '.join(at + name for name in chosen)}, not both"
            found.append(Problem(at + chosen[0], message))
        if self.glu_softclamp and self._named() not in ("gelu", "silu"):
            message = "the gate is bounded inside of GELU or SiLU, no other activation"
            found.append(Problem(f"{at}glu_softclamp", message, True, f"leave it out, or take {at}swish or GELU"))
        if self.glu_softclamp and self.softclamp_value is not None:
            message = f"with {at}glu_softclamp the bounds are {at}glu_gate_softclamp_value and glu_up_softclamp_value"
            found.append(Problem(f"{at}softclamp_value", message, self.softclamp_value))
        for name in ("softclamp_value", "glu_gate_softclamp_value", "glu_up_softclamp_value"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                found.append(Problem(at + name, "a bound is greater than 0", value))
        if self._bounds_gate and not self.glu and self.glu_gate_softclamp_value != GATE_CLAMP:
            found.append(Problem(f"{at}glu_gate_softclamp_value", f"it has no effect without {at}glu"))
        if self.zero_init_output and self.output_proj_depth is not None:
            message = f"the output map starts at zero or scaled with depth: {at}zero_init_output or output_proj_depth"
            found.append(Problem(f"{at}output_proj_depth", message, self.output_proj_depth))
        if self.output_proj_depth is not None and self.output_proj_depth < 1:
            found.append(Problem(f"{at}output_proj_depth", "at least 1: a place in the depth", self.output_proj_depth))
        return found

    def body(self) -> Spec:
        """The feedforward as a part. Upstream keeps the offsets of a gated input map when `ff_no_bias` is on."""
        common: dict[str, Any] = {
            "mult": float(self.mult),
            "activation": self._named() or "none",
            "dropout": self.dropout,
            "norm": LayerNorm.spec(bias=False) if self.post_act_ln else None,
            "dim_out": None if self.dim_out == self.dim else self.dim_out,
        }
        if self.glu:
            spec = GLU.spec(**{**common, **self._gated()}, bias=True, out_bias=not self.no_bias)
        else:
            spec = MLP.spec(**common, bias=not self.no_bias, pre_act=_chained([*self._clamp(), *self._shape()]))
        if self.output_proj_depth is not None:
            return BranchStart.spec(body=spec, scale=(2 * self.output_proj_depth) ** -0.5)
        return BranchStart.spec(body=spec, scale=0.0) if self.zero_init_output else spec

    def _gated(self) -> dict[str, Any]:
        """What the branches of a GLU pass, and the activation of the gate that is left."""
        if self.glu_softclamp:
            bound = float(self.glu_gate_softclamp_value)
            gate: list[Spec] = [SoftClamped.spec(value=bound, activation=self._named())]
            up: list[Spec] = [SoftClamp.spec(value=float(self.glu_up_softclamp_value))]
        else:
            gate, up = self._shape(), self._clamp()
            if self._bounds_gate:
                gate = [SoftClamp.spec(value=float(self.glu_gate_softclamp_value)), *gate]
        changed: dict[str, Any] = {"activation": "none"} if self.glu_softclamp else {}
        if gate or up or self.glu_mult_bias:
            changed["before"] = Branches.spec(gate=_chained(gate), up=_chained(up), gain=self.glu_mult_bias)
        return changed

    @property
    def _bounds_gate(self) -> bool:
        """2.26 has no `ff_glu_softclamp`: a bound that is given for the gate is what turns it on there."""
        return not isinstance(self.glu_gate_softclamp_value, Unset)

    def _named(self) -> Activation | None:
        """The activation, where it has a name."""
        if self.custom_activation is not None:
            return known_activation(self.custom_activation)
        if self.solu:
            return None
        return "relu_squared" if self.relu_squared else "silu" if self.swish else "gelu"

    def _clamp(self) -> list[Spec]:
        return [] if self.softclamp_value is None else [SoftClamp.spec(value=float(self.softclamp_value))]

    def _shape(self) -> list[Spec]:
        """The activation, where it has no name."""
        if self.solu:
            return [SoLU.spec()]
        custom = self.custom_activation
        if custom is None or self._named() is not None:
            return []
        return [custom if isinstance(custom, Spec) else UserModule.spec(module=custom)]


def _chained(steps: list[Spec]) -> Spec | None:
    return Chain.spec(functions=steps) if len(steps) > 1 else steps[0] if steps else None


_KNOWN: dict[type[nn.Module], Activation] = {
    nn.SiLU: "silu",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Identity: "none",
}


def known_activation(module: Any) -> Activation | None:
    """The name of an activation that torch has as a module; None for what has none."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return _KNOWN.get(type(module))


def _activation(draft: Any, value: Any) -> None:
    if value is None or isinstance(value, nn.Module) or (isinstance(value, Spec) and value.kind == "nonlinearity"):
        draft.custom_activation = value
    else:
        message = "a module, or a spec of the kind nonlinearity, is needed"
        draft.problems.append(Problem(f"{draft.prefix}custom_activation", message, value))


FEEDFORWARD: Table = {
    "mult": Route(4, put("mult"), types=(int, float)),
    "dim_out": Route(None, put("dim_out"), types=(int,)),
    "glu": Route(False, put("glu")),
    "glu_mult_bias": Route(False, put("glu_mult_bias"), needs="glu"),
    "glu_softclamp": Route(False, put("glu_softclamp"), needs="glu"),
    "glu_gate_softclamp_value": Route(GATE_CLAMP, put("glu_gate_softclamp_value"), types=(int, float)),
    "glu_up_softclamp_value": Route(UP_CLAMP, put("glu_up_softclamp_value"), needs="glu_softclamp", types=(int, float)),
    "swish": Route(False, put("swish")),
    "relu_squared": Route(False, put("relu_squared")),
    "solu": Route(False, put("solu")),
    "custom_activation": Route(None, _activation, types=(object,)),
    "softclamp_value": Route(None, put("softclamp_value"), types=(int, float)),
    "no_bias": Route(False, put("no_bias")),
    "dropout": Route(0.0, put("dropout"), types=(int, float)),
    "sublayer_dropout": Route(0.0, put("sublayer_dropout"), types=(int, float)),
    "post_act_ln": Route(False, put("post_act_ln")),
    "zero_init_output": Route(False, put("zero_init_output")),
    "output_proj_depth": Route(None, put("output_proj_depth"), types=(int,)),
}
"""Keyword (without `ff_`) -> what it does to a `FeedForwardDraft`."""
