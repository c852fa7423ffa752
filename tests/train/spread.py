"""One process of two that run a model whose experts are spread over them."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import variform as vf
from variform.parts.feedforward.expert_choice import ExpertChoice
from variform.parts.feedforward.mixture_of_experts import MixtureOfExperts
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

ROWS = 4


def model_and_batch() -> tuple[Any, Tensor]:
    """Four experts of two kinds of routing; the batch prefers some of them by far."""
    torch.manual_seed(0)
    experts = [MLP.spec(hidden=5), MLP.spec(hidden=3), MLP.spec(hidden=4), MLP.spec(hidden=6)]
    bodies = [
        MultiHead.spec(),
        MixtureOfExperts.spec(experts=experts, k=1),
        ExpertChoice.spec(experts=experts),
        MixtureOfExperts.spec(experts=experts, common=MLP.spec(hidden=3)),
    ]
    stack = LayerStack.spec(layers=[Sublayer.spec(body=body) for body in bodies], norm="layer_norm")
    model = vf.build(Transformer.spec(embedding=None, stacks=[stack], dim=6, heads=2)).double()
    return model, torch.randn(ROWS, 7, 6, dtype=torch.float64) + 1


def loss_of(model: Any, x: Tensor) -> Tensor:
    """The mean over rows of the task's loss, and all losses of routers."""
    out, losses = model(x, losses=True)
    return out.square().flatten(1).sum(1).mean() + sum(0.3 * loss.sum() for loss in losses.values())  # type: ignore[no-any-return]


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save([run(rank, ddp) for ddp in (False, True)], Path(folder) / f"found{rank}.pt")
    torch.save(run_dialect(rank), Path(folder) / f"dialect{rank}.pt")
    torch.save(run_sharded(), Path(folder) / f"sharded{rank}.pt")
    torch.distributed.barrier()  # a process that is gone while the other still closes its sockets aborts it
    torch.distributed.destroy_process_group()


def run(rank: int, ddp: bool) -> dict[str, Any]:
    from variform.train.experts import spread_experts

    model, x = model_and_batch()
    kept = spread_experts(model, average=ddp)
    own = DistributedDataParallel(model) if ddp else model
    share = x[rank * ROWS // 2 : (rank + 1) * ROWS // 2]
    loss = loss_of(own, share)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), "gradients": gradients, "out": model(share).detach(), "kept": kept}


def dialect_part(**more: Any) -> Any:
    """Four experts of the xFormers dialect behind a gate of two choices."""
    from variform.dialects.xformers.components.feedforward import build_feedforward

    config = {"name": "MixtureOfExperts", "dim_model": 6, "dropout": 0, "activation": "relu", "number_of_experts": 4}
    return build_feedforward({**config, "gate": "top_2", "hidden_layer_multiplier": 1, **more}).double()


def dialect_loss(part: Any, x: Tensor) -> Tensor:
    return part(x).square().flatten(1).sum(1).mean() + 0.3 * part.l_aux + 0.1 * part.l_z  # type: ignore[no-any-return]


def run_dialect(rank: int) -> dict[str, Any]:
    _, x = model_and_batch()
    torch.manual_seed(5)
    whole = dialect_part()
    part = dialect_part(number_of_local_experts=2)
    part.gate.load_state_dict(whole.gate.state_dict())
    for number, expert in enumerate(part.experts):
        expert.load_state_dict(whole.experts[2 * rank + number].state_dict())
    loss = dialect_loss(part, x[rank * ROWS // 2 : (rank + 1) * ROWS // 2])
    loss.backward()
    return {"loss": loss.detach(), "gradients": {name: p.grad for name, p in part.named_parameters()}}


def run_sharded() -> dict[str, Any]:
    """The whole batch in both processes, with weights that are sharded layer by layer."""
    from torch.distributed.device_mesh import init_device_mesh

    from variform.train.module import shard

    model, x = model_and_batch()
    shard(model, init_device_mesh("cpu", (2,)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        loss = loss_of(model, x)
    loss.backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "gradients": gradients}
