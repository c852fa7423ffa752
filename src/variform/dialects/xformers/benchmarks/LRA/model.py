"""The model of a task, an encoder with a head, and its training with Lightning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from variform.dialects.xformers.benchmarks.LRA.config import Settings
from variform.dialects.xformers.benchmarks.LRA.rows import Batch
from variform.dialects.xformers.errors import config_error, wrongs
from variform.dialects.xformers.factory.model_factory import xFormer, xFormerConfig
from variform.errors import ConfigError


class Classifier(nn.Module):
    """An encoder, a norm, the mean of the real tokens or the class token, and an MLP.

    Shapes:
        ids: [inputs * B, S], lengths: [inputs * B] -> [B, num_classes]; of two inputs x and y the MLP reads
        [x, y, x * y, x - y]

    Args:
        settings: of the task.
        attention: the registered name.
        inputs: sequences of an example.
    """

    def __init__(self, settings: Settings, attention: str, inputs: int = 1) -> None:
        super().__init__()
        common = settings.common
        self.encoder = _encoder(settings, attention)
        self.norm = nn.LayerNorm(common.dim_model)
        hidden = common.dim_model * int(settings.xformer[0]["feedforward_config"].get("hidden_layer_multiplier", 4))
        width = common.dim_model * (1 if inputs == 1 else 4)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, common.num_classes))
        self.inputs, self.mode = inputs, settings.pooling_mode
        stack: Any = self.encoder.encoders
        parts = [block.mha.attention for block in stack]
        self.masks = all(part.supports_key_padding_mask or part.supports_attention_mask for part in parts)
        self.squared = any(block.requires_squared_context_length for block in stack)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Scores of the classes."""
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        padded = self.masks and not bool(real.all())
        y = self.norm(self.encoder(ids, encoder_key_padding_mask=real if padded else None))
        if self.mode == "cls":
            pooled = y[:, 0]
        else:
            pooled = (y * real[..., None]).sum(1) / lengths[:, None].to(y.dtype)
        if self.inputs == 2:
            one, other = pooled.chunk(2)
            pooled = torch.cat([one, other, one * other, one - other], -1)
        return self.head(pooled)  # type: ignore[no-any-return]


def blocks(settings: Settings, attention: str) -> list[dict[str, Any]]:
    """The descriptions of the blocks with what `common` and the attention's own settings say; nothing is changed.

    Raises:
        ConfigError: a block without a section.
    """
    common, filled = settings.common, []
    for i, block in enumerate(settings.xformer):
        path = f"stack_configs.{i}"
        heads = _part(block, "multi_head_config", path)
        described = heads.get("attention", {})
        own = {
            **{"dropout": common.dropout, "seq_len": common.seq_len, "dim_model": common.dim_model},
            **{"num_heads": common.num_heads, "dim_head": common.dim_model // common.num_heads},
            **(described if isinstance(described, Mapping) else {}),
            **settings.attention_settings.get(attention, {}),
            "name": attention,
        }
        sizes = {"seq_len": common.seq_len, "vocab_size": common.vocab_size, "dropout": common.dropout}
        filled.append(
            {
                **block,
                "dim_model": common.dim_model,
                "multi_head_config": {"num_heads": common.num_heads, **heads, "attention": own},
                "feedforward_config": {"dropout": common.dropout, **_part(block, "feedforward_config", path)},
                "position_encoding_config": {**sizes, **_part(block, "position_encoding_config", path)},
            }
        )
    return filled


def _encoder(settings: Settings, attention: str) -> xFormer:
    section = settings.task.partition("-")[0]
    try:
        return xFormer.from_config(xFormerConfig(blocks(settings, attention)))
    except ConfigError as error:
        where = f"keys of one attention stand in model.extra_settings.attention.{attention}"
        raise config_error(
            replace(
                wrong,
                path=wrong.path.replace("stack_configs", f"{section}.model.xformer"),
                hint=wrong.hint or (where if ".attention." in wrong.path else ""),
            )
            for wrong in wrongs(error)
        ) from None


def _part(block: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
    part = block.get(name)
    if not isinstance(part, Mapping):
        raise ConfigError("this section is needed", path=f"{path}.{name}")
    return part


def check_length(model: Classifier, settings: Settings) -> None:
    """Refuse a length of padded rows that the attention cannot take.

    Raises:
        ConfigError: it wants square lengths.
    """
    length, root = settings.common.seq_len, math.isqrt(settings.common.seq_len)
    if model.squared and root * root != length:
        message = "the attention takes square lengths alone, to which rows are padded"
        near = f"{root * root} or {(root + 1) ** 2}"
        raise ConfigError(message, path=f"{settings.task}.model.common.seq_len", value=length, hint=near)


class Task(LightningModule):
    """Trains and judges a classifier.

    Args:
        model: the classifier.
        settings: of the task.
    """

    def __init__(self, model: Classifier, settings: Settings) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.history: list[dict[str, float]] = []
        self.result: dict[str, float] = {}
        self._sums = torch.zeros(3)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of a batch."""
        return F.cross_entropy(self.model(batch.ids, batch.lengths), batch.labels)

    def on_validation_epoch_start(self) -> None:
        """Forget the last sums."""
        self._sums = torch.zeros(3, device=self.device)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Add up losses, right answers and examples; those that fill a batch up do not count."""
        scores = self.model(batch.ids, batch.lengths).float()
        loss = F.cross_entropy(scores, batch.labels, reduction="sum")
        right = (scores.argmax(-1) == batch.labels).sum()
        self._sums += torch.stack([loss, right.float(), (batch.labels >= 0).sum().float()])

    def on_validation_epoch_end(self) -> None:
        """The figures over all processes."""
        found = self._figures()
        self.log("val_accuracy", found["accuracy"])
        if not self.trainer.sanity_checking:
            self.history.append({"step": self.trainer.global_step, **found})

    def on_test_epoch_start(self) -> None:
        """Forget the last sums."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Batch, index: int) -> None:
        """As in validation."""
        self.validation_step(batch, index)

    def on_test_epoch_end(self) -> None:
        """Keep the figures over all processes."""
        self.result = self._figures()

    def _figures(self) -> dict[str, float]:
        loss, right, count = self.trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        return {"loss": loss / count, "accuracy": right / count}

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate rises to its highest and falls again, step by step."""
        training = self.settings.training
        rising = training.warmup if training.warmup > 1 else 0  # one step up is none: OneCycleLR divides by zero
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=training.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-6,
            weight_decay=training.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=training.learning_rate,
            total_steps=training.num_train_steps,
            pct_start=rising / training.num_train_steps,
            anneal_strategy=training.lr_decay,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
