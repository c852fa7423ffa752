"""A character-level GPT on Shakespeare, built from an xFormers configuration, trained with Lightning, in one file.

    python3 microGPT.py                          about a minute on a CPU; a bigger model on a GPU
    python3 microGPT.py --text my.txt --steps 3000 --prompt "Friends of my soul"

It ends with a paragraph that begins with the prompt. An hommage to Andrej Karpathy's minGPT.
"""

import argparse
import math
import warnings
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from variform.dialects.xformers.factory.model_factory import xFormer, xFormerConfig
from variform.train.text import load_text
from variform.train.vocabulary import Characters


@dataclass(frozen=True)
class Preset:
    """Sizes that fit a machine."""

    layers: int
    dim: int
    heads: int
    block: int
    batch: int
    steps: int
    lr: float
    dropout: float


PRESETS = {
    "cpu": Preset(layers=4, dim=128, heads=4, block=64, batch=16, steps=600, lr=3e-3, dropout=0.0),
    "gpu": Preset(layers=8, dim=512, heads=8, block=128, batch=512, steps=2000, lr=6e-4, dropout=0.1),
}


class Blocks(Dataset):
    """Pieces of a text: each character is to be told from those before it."""

    def __init__(self, ids: Tensor, block: int, stride: int) -> None:
        self.ids, self.block = ids, block
        self.starts = range(0, len(ids) - block - 1, stride)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        piece = self.ids[self.starts[index] : self.starts[index] + self.block + 1]
        return piece[:-1], piece[1:]


class GPT(lightning.LightningModule):
    """The model, its loss, and its optimizer: AdamW after a short warm-up, down a cosine to a tenth."""

    def __init__(self, preset: Preset, vocab_size: int) -> None:
        super().__init__()
        self.preset = preset
        config: list[dict[str, Any]] = [
            {
                "block_type": "encoder",  # with a causal attention and nothing to cross-attend to: a decoder alone
                "num_layers": preset.layers,
                "dim_model": preset.dim,
                "residual_norm_style": "post",
                "position_encoding_config": {
                    "name": "vocab",
                    "seq_len": preset.block,
                    "vocab_size": vocab_size,
                },
                "multi_head_config": {
                    "num_heads": preset.heads,
                    "residual_dropout": preset.dropout,
                    "use_rotary_embeddings": True,
                    "attention": {
                        "name": "scaled_dot_product",
                        "dropout": preset.dropout,
                        "causal": True,
                        "seq_len": preset.block,
                    },
                },
                "feedforward_config": {
                    "name": "FusedMLP",
                    "dropout": preset.dropout,
                    "activation": "gelu",
                    "hidden_layer_multiplier": 4,
                },
            }
        ]
        self.model = xFormer.from_config(xFormerConfig(config, weight_init="small"))
        self.norm = nn.LayerNorm(preset.dim)
        self.head = nn.Linear(preset.dim, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.model(ids)))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten())
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten()), prog_bar=True)

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.preset.lr, betas=(0.9, 0.95))
        warmup, steps = max(1, self.preset.steps // 20), self.preset.steps

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def sample(self, ids: Tensor, count: int, temperature: float = 0.8, top_k: int = 10) -> Tensor:
        """Continue ids [1, L] by `count` characters, each one of the `top_k` likeliest."""
        self.eval()
        for _ in range(count):
            logits = self(ids[:, -self.preset.block :])[:, -1] / temperature
            best, places = logits.topk(min(top_k, logits.shape[-1]))
            ids = torch.cat((ids, places.gather(1, torch.multinomial(best.softmax(-1), 1))), 1)
        return ids


def main(arguments: list[str] | None = None) -> float:
    """Train, print a paragraph, return the loss on text that was not trained on, in nats a character."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="shakespeare", help="shakespeare, tiny_shakespeare, or a text file")
    parser.add_argument("--preset", choices=PRESETS, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="training steps, other than the preset's")
    parser.add_argument("--prompt", default="Friends of my soul")
    parser.add_argument("--characters", type=int, default=500, help="how many to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    lightning.seed_everything(options.seed, verbose=False)
    preset = PRESETS[options.preset]
    preset = preset if options.steps is None else Preset(**{**vars(preset), "steps": options.steps})
    text = load_text(options.text).content[:1_200_000]
    vocabulary = Characters.of(text)
    ids = vocabulary.encode(text)
    split = len(ids) * 9 // 10
    train, held_out = Blocks(ids[:split], preset.block, 1), Blocks(ids[split:], preset.block, preset.block)

    module = GPT(preset, len(vocabulary))
    trainer = lightning.Trainer(
        max_steps=preset.steps,
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if options.preset == "gpu" else "32-true",
        gradient_clip_val=1.0,
        limit_val_batches=100,
        num_sanity_val_steps=0,
        val_check_interval=preset.steps,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[TQDMProgressBar(refresh_rate=20)],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*num_workers.*"
        )  # the text is in memory: workers would only copy it
        trainer.fit(
            module,
            DataLoader(train, preset.batch, shuffle=True, drop_last=True),
            DataLoader(held_out, preset.batch),
        )
    loss = float(trainer.callback_metrics["val_loss"])
    print(f"\nloss on held-out text: {loss:.3f} nats a character")
    prompt = "".join(c for c in options.prompt if c in vocabulary.characters)
    print(vocabulary.decode(module.cpu().sample(vocabulary.encode(prompt)[None], options.characters)[0]))
    return loss


if __name__ == "__main__":
    main()
