"""One process of two that compute the gradients of a sharded model."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

import variform as vf


def model_and_batch() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    spec = vf.models.gpt(vocab_size=13, dim=16, depth=2, heads=2, max_seq_len=11, tie=True, bias=True)
    model = vf.build(spec, dtype=torch.float64)
    ids = torch.randint(0, 13, (6, 12))
    return model, ids[:, :-1], ids[:, 1:]


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def main(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    from variform.train.module import shard

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, x, y = model_and_batch()
    shard(model, init_device_mesh("cpu", (2,)))
    loss = loss_of(model, x[rank::2], y[rank::2])
    loss.backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    torch.distributed.all_reduce(loss.detach_())
    if rank == 0:
        layers = sum(isinstance(module, FSDPModule) for module in model.modules())
        found = {"loss": float(loss) / 2, "gradients": gradients, "gathered_layers": layers}
        torch.save(found, Path(folder) / "gradients.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # threads of the backend that end with the interpreter abort it now and then
