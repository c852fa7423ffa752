"""A mixture of experts behind upstream's interface, with or without a process group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.xformers.building import checked, superset_keys, verify
from variform.dialects.xformers.components.activations import Activation
from variform.dialects.xformers.components.feedforward.base import Feedforward, FeedforwardConfig
from variform.dialects.xformers.components.feedforward.gates import (
    ExpertChoiceGate,
    RoundRobinGate,
    Routed,
    Top1Gate,
    Top2Gate,
    TopGate,
)
from variform.dialects.xformers.components.feedforward.mlp import MLP
from variform.dialects.xformers.components.feedforward.registry import FEEDFORWARD_REGISTRY, register_feedforward
from variform.dialects.xformers.errors import CallError, Wrong, config_error
from variform.ops.experts import run_sorted, visit
from variform.parts.feedforward.expert_choice import ExpertChoice as NativeExpertChoice
from variform.parts.feedforward.mixture_of_experts import MixtureOfExperts as NativeMixtureOfExperts

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


class GateConfig(StrEnum):
    """How tokens find their experts."""

    RoundRobin = "round_robin"
    Top2 = "top_2"
    Top1 = "top_1"
    ExpertChoice = "expert_choice"


_GATES: dict[GateConfig, Callable[[int, int], nn.Module]] = {
    GateConfig.RoundRobin: RoundRobinGate,
    GateConfig.Top2: Top2Gate,
    GateConfig.Top1: Top1Gate,
    GateConfig.ExpertChoice: ExpertChoiceGate,
}


@dataclass
class MoEConfig(FeedforwardConfig):
    """The configuration of `MixtureOfExperts`."""

    number_of_experts: int
    gate: GateConfig
    number_of_local_experts: int | None = None
    expert_constructor: Any | None = None
    hidden_layer_multiplier: int | None = None
    group: Any | None = None


@register_feedforward("MixtureOfExperts", MoEConfig)
class MixtureOfExperts(Feedforward):
    """Each token visits a few of many feedforwards (GShard, arXiv:2006.16668; Switch, arXiv:2101.03961).

    No token is dropped. A gate that is a module takes tokens [T, dim_model] and returns the weights of all experts,
    [T, experts], zero for those that are not visited, or what GShard's gates return: a loss, combining weights
    [T, experts, capacity] and a mask of the same shape that says which token goes where.

    Shapes:
        inputs: [B, S, dim_model] -> [B, S, dim_model]

    Args:
        dim_model: features in and out.
        dropout: of the experts that are made here.
        activation: likewise.
        number_of_experts: over all processes.
        gate: "top_1", "top_2", "expert_choice", "round_robin" (token s visits expert s modulo their number), a module.
        number_of_local_experts: those of this process; all of them by default, or where a group is given its share.
        expert_constructor: makes an expert; an `MLP` by default.
        hidden_layer_multiplier: inner features of the experts that are made here; 4 times `dim_model` by default.
        group: the processes that the experts are spread over; all where there are fewer local experts than experts.
        **superset: keys of other feedforwards, listed in `dropped`.

    Attributes:
        l_aux: the load-balancing loss of the last call, to be added to that of the task; None before, and zero for
            gates without one. Not part of the state dict, nor of copies.
        l_z: the router z-loss of the last call, likewise (ST-MoE, arXiv:2202.08906).
    """

    stands_for: ClassVar[str] = "mixture_of_experts"
    takes_padding = True
    l_aux: Tensor | None = None
    l_z: Tensor | None = None

    def __init__(
        self,
        dim_model: Size,
        dropout: Rate,
        activation: Activation | None,
        number_of_experts: Size,
        gate: GateConfig | nn.Module,
        number_of_local_experts: Size | None = None,
        expert_constructor: Callable[[], nn.Module] | None = None,
        hidden_layer_multiplier: Size | None = None,
        group: Any | None = None,
        **superset: Any,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "superset", "__class__")}
        if not isinstance(gate, nn.Module):
            given["gate"], wrong = checked("gate", GateConfig, gate)
            if wrong is not None:
                raise config_error([wrong])
        verify(MixtureOfExperts, **given)
        self.dropped = superset_keys(FEEDFORWARD_REGISTRY, superset, "MixtureOfExperts")
        self.group, ranks = _processes(number_of_experts, number_of_local_experts, group)
        count = number_of_experts // ranks[1]
        self.first = ranks[0] * count

        def construct() -> nn.Module:
            if expert_constructor is not None:
                return expert_constructor()
            return MLP(dim_model, dropout, activation, hidden_layer_multiplier or 4)

        self.gate = gate if isinstance(gate, nn.Module) else _GATES[GateConfig(gate)](dim_model, number_of_experts)
        self.moe = nn.Module()
        self.moe.gate = self.gate  # both names, as upstream's state dict has them
        self.moe.experts = nn.ModuleList(construct() for _ in range(count))
        self.number_of_experts = number_of_experts
        self.causal = not isinstance(self.gate, ExpertChoiceGate)

    @property
    def experts(self) -> nn.ModuleList:
        """The experts of this process."""
        found = self.moe.experts
        assert isinstance(found, nn.ModuleList)
        return found

    def forward(self, inputs: Tensor, padding: Tensor | None = None) -> Tensor:
        """Send each token to its experts.

        Args:
            inputs: the tokens.
            padding: [B, S] bool, False at padding, which visits nobody.
        """
        if padding is not None:
            inputs = torch.where(padding.unsqueeze(-1), inputs, 0)
        if isinstance(self.gate, (TopGate, RoundRobinGate, ExpertChoiceGate)):
            routed = self.gate.route(inputs, padding, self.group)
        else:
            routed = _asked(self.gate, inputs, padding, self.number_of_experts)
        self.l_aux, self.l_z = routed.balance, routed.z
        flat = inputs.flatten(0, 1)
        if routed.index is not None:
            y = visit(flat, routed.index, routed.weight, self.number_of_experts, self._run, self.group)
            return y.view_as(inputs)
        assert routed.rows is not None
        each = routed.rows.numel() // self.number_of_experts
        out = run_sorted(flat[routed.rows], [each] * self.number_of_experts, self._run, self.group)
        weighted = out * routed.weight.to(out.dtype).unsqueeze(-1)
        return out.new_zeros(flat.shape).index_add(0, routed.rows, weighted).view_as(inputs)

    def _run(self, number: int, x: Tensor) -> Tensor:
        y: Tensor = self.experts[number - self.first](x)
        return y

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("l_aux", "l_z")}

    @property
    def spec(self) -> Spec:
        """The native mixture of experts.

        Raises:
            ConfigError: the gate is none of the library's, an expert has no native equivalent, or some are elsewhere.
        """
        if self.group is not None:
            raise config_error([Wrong("group", "experts of other processes are not described here")])
        experts = [_native_expert(expert) for expert in self.experts]
        dim = {"dim": self.gate.wg.in_features} if isinstance(self.gate, (TopGate, ExpertChoiceGate)) else {}
        if isinstance(self.gate, TopGate):
            return NativeMixtureOfExperts.spec(experts=experts, k=self.gate.k, **dim)
        if isinstance(self.gate, ExpertChoiceGate):
            return NativeExpertChoice.spec(experts=experts, capacity=self.gate.capacity, **dim)
        message = f"a {type(self.gate).__name__} has no native equivalent"
        raise config_error([Wrong("gate", message, hint="top_1, top_2 and expert_choice have one")])


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """The sums of `l_aux` and `l_z` over the mixtures of experts of a model, as its last call left them."""
    found = [part for part in model.modules() if isinstance(part, MixtureOfExperts)]
    told = {"l_aux": [part.l_aux for part in found], "l_z": [part.l_z for part in found]}
    sums = {name: [loss for loss in losses if loss is not None] for name, losses in told.items()}
    return {name: torch.stack(losses).sum() for name, losses in sums.items() if losses}


def _processes(total: int, local: int | None, group: Any) -> tuple[Any, tuple[int, int]]:
    """The group to use, None for a single process, and (own rank, number of processes)."""
    import torch.distributed as dist

    if group is None and (local is None or local == total):
        return None, (0, 1)
    if not dist.is_available() or not dist.is_initialized():
        name, value = ("group", group) if group is not None else ("number_of_local_experts", local)
        message = "experts of other processes need a process group, and torch.distributed is not initialised"
        raise config_error([Wrong(name, message, value, like=AssertionError)])
    group = dist.group.WORLD if group is None else group
    world = dist.get_world_size(group)
    if total != world * (local or total // world):
        message = f"{world} processes with {local or total // world} experts each do not make {total}"
        raise config_error([Wrong("number_of_local_experts", message, local, like=AssertionError)])
    return (None if world == 1 else group), (dist.get_rank(group), world)


def _asked(gate: nn.Module, inputs: Tensor, padding: Tensor | None, experts: int) -> Routed:
    """What a gate of the caller's says."""
    tokens = inputs.flatten(0, 1)
    answer = gate(tokens)
    zero = inputs.new_zeros(())
    if isinstance(answer, Tensor):
        weight = _shaped(answer, (len(tokens), experts))
        index = torch.arange(experts, device=inputs.device).expand_as(weight)
        index = torch.where(weight != 0, index, experts)
        if padding is not None:
            index = torch.where(padding.flatten().unsqueeze(-1), index, experts)
        return Routed(weight, index=index, balance=zero, z=zero)
    if not isinstance(answer, tuple) or len(answer) != 3:
        raise CallError("a gate returns weights [T, experts], or a loss, combining weights and a dispatch mask")
    loss, combine, mask = answer
    combine = _shaped(combine, (len(tokens), experts, None))
    mask = _shaped(mask, tuple(combine.shape)).bool()
    if padding is not None:
        mask = mask & padding.flatten().view(-1, 1, 1)
    # An expert's place holds one token at most; an empty one holds any token, with weight 0.
    by_place = mask.permute(1, 2, 0).flatten(0, 1)
    if bool((by_place.sum(1) > 1).any()):
        raise CallError("a gate put several tokens into one place of an expert")
    rows = by_place.int().argmax(1)
    weight = (combine * mask).permute(1, 2, 0).flatten(0, 1).gather(1, rows.unsqueeze(1)).squeeze(1)
    balance = loss if isinstance(loss, Tensor) else zero + loss
    return Routed(weight, rows=rows, balance=balance, z=zero)


def _shaped(answer: Any, shape: tuple[int | None, ...]) -> Tensor:
    fits = isinstance(answer, Tensor) and answer.dim() == len(shape)
    if not fits or any(want not in (None, size) for want, size in zip(shape, answer.shape, strict=True)):
        got = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        wanted = ", ".join("capacity" if size is None else str(size) for size in shape)
        raise CallError(f"a gate of these tokens and experts returns [{wanted}], not {got}")
    assert isinstance(answer, Tensor)
    return answer


def _native_expert(expert: nn.Module) -> Spec:
    spec = getattr(expert, "spec", None)
    if not isinstance(spec, Spec):
        raise config_error([Wrong("", f"an expert of type {type(expert).__name__} has no native equivalent")])
    return spec.replace(out_dropout=expert.output_dropout) if isinstance(expert, MLP) else spec
