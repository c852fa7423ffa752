"""A vision transformer, built from an xFormers configuration, trained with Lightning, in one file.

    python3 microViT.py                          scikit-learn's digits, about a minute on a CPU
    python3 microViT.py --images cifar10         CIFAR-10, downloaded once; made for a GPU
    python3 microViT.py --images FOLDER          CIFAR-10's binary files, or its archive

It ends with the accuracy on images that were not trained on.
"""

import argparse
import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from variform.dialects.xformers.factory.model_factory import xFormer, xFormerConfig
from variform.train.images import Images, load_images, moved


@dataclass(frozen=True)
class Preset:
    """Sizes that fit the images."""

    layers: int
    dim: int
    heads: int
    patch: int
    batch: int
    epochs: int
    lr: float
    shift: int  # training images are moved by up to so many pixels
    flip: bool  # and mirrored


PRESETS = {
    "digits": Preset(layers=3, dim=64, heads=4, patch=2, batch=64, epochs=40, lr=2e-3, shift=1, flip=False),
    "cifar10": Preset(layers=6, dim=384, heads=6, patch=2, batch=512, epochs=30, lr=5e-4, shift=4, flip=True),
}


class ViT(lightning.LightningModule):
    """The model, its loss, and its optimizer: AdamW after a linear warm-up, down a cosine."""

    def __init__(self, preset: Preset, images: Images, steps: int) -> None:
        super().__init__()
        self.preset, self.steps = preset, steps
        channels, side = images.train.shape[1], images.train.shape[2]
        tokens = (side // preset.patch) ** 2
        config: list[dict[str, Any]] = [
            {
                "block_type": "encoder",
                "num_layers": preset.layers,
                "dim_model": preset.dim,
                "residual_norm_style": "pre",
                "patch_embedding_config": {
                    "in_channels": channels,
                    "out_channels": preset.dim,
                    "kernel_size": preset.patch,
                    "stride": preset.patch,
                },
                "position_encoding_config": {
                    "name": "learnable",
                    "seq_len": tokens,
                    "dim_model": preset.dim,
                    "add_class_token": True,
                },
                "multi_head_config": {
                    "num_heads": preset.heads,
                    "residual_dropout": 0.0,
                    "use_rotary_embeddings": True,
                    "attention": {"name": "scaled_dot_product", "dropout": 0.0, "causal": False},
                },
                "feedforward_config": {
                    "name": "MLP",
                    "dropout": 0.0,
                    "activation": "gelu",
                    "hidden_layer_multiplier": 4,
                },
            }
        ]
        self.model = xFormer.from_config(xFormerConfig(config, weight_init="moco"))
        self.norm = nn.LayerNorm(preset.dim)
        self.head = nn.Linear(preset.dim, images.classes)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(2).transpose(1, 2)  # the factory's patches are made from a sequence of pixels
        return self.head(self.norm(self.model(pixels)[:, 0]))  # the class token has read the others

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = F.cross_entropy(self(moved(batch[0], self.preset.shift, self.preset.flip)), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        right = (self(batch[0]).argmax(-1) == batch[1]).float().mean()
        self.log("accuracy", right, prog_bar=True, batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.preset.lr, weight_decay=0.03)
        warmup = max(1, self.steps // 10)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(arguments: list[str] | None = None) -> float:
    """Train, print and return the accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="digits", help="digits, cifar10, a folder, an archive, or an .npz file")
    parser.add_argument("--preset", choices=PRESETS, help="by default that of the images")
    parser.add_argument("--epochs", type=int, help="times through the images, other than the preset's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    lightning.seed_everything(options.seed, verbose=False)
    images = load_images(options.images)
    preset = PRESETS[options.preset or ("digits" if options.images == "digits" else "cifar10")]
    preset = preset if options.epochs is None else replace(preset, epochs=options.epochs)
    batch = min(preset.batch, len(images.train))
    module = ViT(preset, images, preset.epochs * (len(images.train) // batch))
    trainer = lightning.Trainer(
        max_epochs=preset.epochs,
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=max(1, preset.epochs // 5),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[TQDMProgressBar(refresh_rate=20)],
    )
    train = TensorDataset(images.train, images.train_classes)
    test = DataLoader(TensorDataset(images.test, images.test_classes), 2 * batch)
    with warnings.catch_warnings():
        # The images are in memory: workers would only copy them. An epoch of them may be short.
        warnings.filterwarnings("ignore", message=".*(num_workers|log_every_n_steps).*")
        trainer.fit(module, DataLoader(train, batch, shuffle=True, drop_last=True), test)
        accuracy = float(trainer.validate(module, test, verbose=False)[0]["accuracy"])
    print(f"\naccuracy on {len(images.test)} test images: {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
