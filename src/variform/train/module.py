"""The Lightning module: next-character loss, AdamW, schedule, sharding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from variform.core.build import materialise
from variform.core.part import Part
from variform.errors import ConfigError, did_you_mean
from variform.parts.kinds import Stack
from variform.train.data import DROPOUT, mixed_seed
from variform.train.sections import TrainSection


class LanguageModule(lightning.LightningModule):
    """Trains a causal model to predict the next token.

    Args:
        model: from ids [B, L] to logits [B, L, V]; on "meta" for FSDP2, which makes the weights shard by shard.
        train: how to optimise.
    """

    def __init__(self, model: nn.Module, train: TrainSection) -> None:
        super().__init__()
        self.model = model
        self.section = train
        self.has_losses = has_losses(model)
        if train.losses and not self.has_losses:
            message = "no part of the model has a loss of its own"
            raise ConfigError(message, path="train.losses", value=train.losses, hint="leave it out")
        self.gradient_norm: Tensor | None = None
        self.last_rate = 0.0
        self.val_loss = math.nan
        self.val_sum = torch.zeros((), dtype=torch.float64)
        self.val_count = torch.zeros((), dtype=torch.float64)

    # ---- set-up ----

    def configure_model(self) -> None:
        """Shard the model over the processes, layer by layer, when the strategy is FSDP2."""
        if self.section.strategy == "fsdp2" and not any(isinstance(p, DTensor) for p in self.model.parameters()):
            assert self.device_mesh is not None
            shard(self.model, self.device_mesh["data_parallel"])
            # Every process draws its own shards: equal seeds would repeat one shard's values in all of them.
            torch.manual_seed(mixed_seed(self.section.seed, DROPOUT, 0, self.global_rank))
            materialise(self.model, self.trainer.strategy.root_device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, fused; vectors (norms, offsets) are not decayed; warm-up, then a cosine."""
        section = self.section
        groups = decay_groups(self.model.parameters(), section.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, section))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- steps ----

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step: dropout, too, is a function of the seed, the step and the process alone."""
        torch.manual_seed(mixed_seed(self.section.seed, DROPOUT, self.global_step + 1, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Mean cross-entropy of this process's windows; `loss` has the weighted losses of parts added to it."""
        x, y = batch
        logits, further = self.model(x, losses=True) if self.has_losses else (self.model(x), {})
        loss = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        return {"loss": total(loss, further, self.section.losses), "cross_entropy": loss.detach()}

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self.val_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.val_count = torch.zeros((), dtype=torch.float64, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Add up the cross-entropy of the real rows."""
        x, y, real = batch
        losses = F.cross_entropy(self.model(x).transpose(1, 2).float(), y, reduction="none")
        self.val_sum += losses[real].sum(dtype=torch.float64)
        self.val_count += real.sum() * y.shape[1]

    def on_validation_epoch_end(self) -> None:
        """The mean over all characters of all processes."""
        total = self.trainer.strategy.reduce(torch.stack((self.val_sum, self.val_count)), reduce_op="sum")
        self.val_loss = float(total[0] / total[1])

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the norm over all parameters, shards of other processes included; remember it and the step's rate."""
        limit = self.section.grad_clip
        self.last_rate = float(optimizer.param_groups[0]["lr"])
        self.gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), math.inf if limit is None else limit)


LOSS_WEIGHTS = {"load_balance": 0.01, "router_z": 0.001}
"""As in Switch (arXiv:2101.03961) and ST-MoE (arXiv:2202.08906)."""


def has_losses(model: nn.Module) -> bool:
    """Whether a part of the model publishes losses where it is asked to."""
    return any(isinstance(part, Part) and "losses" in part.reads for part in model.modules())


def total(loss: Tensor, further: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """A loss and the weighted losses of parts, each use of a part counted.

    Args:
        loss: the loss of the task.
        further: what `model(..., losses=True)` gives beside the output.
        weights: by name; `LOSS_WEIGHTS` for those left out, or 1.

    Raises:
        ConfigError: a weight for a loss that there is not.
    """
    for name in weights:
        if name not in further:
            raise ConfigError(f"no part has a loss {name!r}", path="train.losses", hint=did_you_mean(name, further))
    for name, own in further.items():
        loss = loss + weights.get(name, LOSS_WEIGHTS.get(name, 1.0)) * own.sum()
    return loss


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay, vectors and scalars do not."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def rate(step: int, section: TrainSection) -> float:
    """The learning rate after `step` steps as a fraction of the highest: linear up, then a cosine down or constant."""
    if step < section.warmup:
        return (step + 1) / (section.warmup + 1)
    if section.schedule == "constant":
        return 1.0
    done = (step - section.warmup) / max(1, section.steps - section.warmup)
    return section.final_lr + (1 - section.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def shard(model: nn.Module, mesh: Any) -> None:
    """FSDP2: each layer of each stack is gathered on its own, the rest (embedding, head) with the root."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Casting a layer's inputs would cast its float32 state and bias too; parts cast what they need themselves.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    for module in list(model.modules()):
        if isinstance(module, Stack):
            for layer in getattr(module, "layers", ()):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
