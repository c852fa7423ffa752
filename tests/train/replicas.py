"""One process of two that compute the gradients of a replicated reversible model."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

import variform as vf


def model_and_batch(dialect: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """An encoder and a decoder of three reversible layers each: the library's own, or one of the xFormers dialect."""
    torch.manual_seed(0)
    source, target = torch.randint(0, 13, (4, 9)), torch.randint(0, 13, (4, 7))
    if dialect:
        from tests.dialects.xformers.cases import decoder, encoder, vocab
        from variform.dialects.xformers.factory import xFormer

        more = {"reversible": True, "num_layers": 3, "position_encoding_config": vocab(vocab_size=13)}
        return xFormer([encoder(**more), decoder(**more)]).double().train(), source, target
    spec = vf.models.seq2seq(vocab_size=13, dim=16, depth=3, heads=2, max_seq_len=11)
    reversible = {f"{side}.stacks.0.executor": "reversible" for side in ("encoder", "decoder")}
    model = vf.build(vf.override(spec, reversible), dtype=torch.float64).train()
    return model, source, target


def loss_of(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """Of two forward passes: the first is not over when the second begins."""
    first, second = model(source, target), model(source.flip(1), target)
    loss: Tensor = (first.square() + second.square()).mean()
    return loss


def main(rank: int, folder: str, dialect: bool) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, source, target = model_and_batch(dialect)
    replica = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.01)
    loss_of(replica, source[rank::2], target[rank::2]).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.named_parameters()}, Path(folder) / "gradients.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # threads of the backend that end with the interpreter abort it now and then
