"""Expert parallelism: the experts of a model spread over processes, everything else in each of them."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from variform.errors import ConfigError
from variform.ops.experts import Elsewhere
from variform.parts.feedforward.expert_choice import ExpertChoice
from variform.parts.feedforward.mixture_of_experts import MixtureOfExperts


def spread_experts(model: nn.Module, group: Any = None, average: bool = True) -> list[str]:
    """Keep this process's share of the experts; tokens travel to the others (Lepikhin et al. 2020, arXiv:2006.16668).

    Every process calls this on the same model, whose weights are equal in all of them, and then runs it on its own
    share of the batch, all at the same time. What is left of the experts keeps its names in the state dict. The
    losses of routers count the tokens of all processes. Wrapped in `DistributedDataParallel`, experts are left alone
    and all other gradients averaged.

    Args:
        model: with parts `mixture_of_experts` or `expert_choice`; changed in place.
        group: the processes; all of them by default. Their number divides the number of experts.
        average: divide the experts' gradients by the number of processes: the loss is the mean of the processes', as
            `DistributedDataParallel` has it. Otherwise it is their sum.

    Returns:
        The names of the experts' parameters that stayed here.

    Raises:
        ConfigError: there is no process group or no part with experts, or the processes do not divide the experts.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ConfigError("experts are spread over a process group: torch.distributed.init_process_group(...) first")
    group = dist.group.WORLD if group is None else group
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, (MixtureOfExperts, ExpertChoice))]
    if not found:
        raise ConfigError("no part of the model has experts")
    for name, part in found:
        count = len(part.experts)
        if part.group is not None:
            raise ConfigError("its experts are spread already", path=name)
        if count % world:
            raise ConfigError(f"{count} experts cannot be spread evenly over {world} processes", path=name)
    kept: list[str] = []
    for name, part in found:
        part.group = group
        own = len(part.experts) // world
        for number, expert in enumerate(part.experts):
            if number // own != rank:
                part.experts[number] = Elsewhere()
                continue
            for local, parameter in expert.named_parameters(f"{name}.experts.{number}".lstrip(".")):
                kept.append(local)
                if average:
                    hooked: Any = parameter  # torch declares no types for hooks
                    hooked.register_hook(_divided(world))
    wrapper: Any = DistributedDataParallel
    wrapper._set_params_and_buffers_to_ignore_for_model(model, kept)
    return kept


def _divided(world: int) -> Any:
    def hook(gradient: Tensor) -> Tensor:
        return gradient / world

    return hook
