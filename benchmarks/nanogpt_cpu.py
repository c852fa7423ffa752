"""nanoGPT's published CPU setting on any text: 4 layers, 4 heads, width 128, context 64, batch 12, 2000 steps.

    python benchmarks/nanogpt_cpu.py shakespeare.txt

Rotary positions in place of learned ones, AdamW with betas (0.9, 0.99), and initial weights of standard deviation
0.06: at width 128 GPT-2's 0.02 starts too small for 2000 steps. The first 90 % of the text train, the rest validates:
every full window of it once, which nanoGPT estimates from random ones.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import variform as vf
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.head.heads import LMHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.rotary import RotaryRotation
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

CONTEXT, BATCH = 64, 12
PEAK, FLOOR, WARMUP = 1e-3, 1e-4, 100


def spec(vocab_size: int) -> vf.Spec:
    norm = LayerNorm.spec(bias=False)
    layer = TransformerLayer.spec(
        sublayers=[
            Sublayer.spec(body=MultiHead.spec(rotation=RotaryRotation.spec()), norm=norm),
            Sublayer.spec(body=MLP.spec(bias=False), norm=norm),
        ]
    )
    return Transformer.spec(
        embedding=TokenEmbedding.spec(),
        stacks=[LayerStack.spec(layers=[layer] * 4, norm=norm)],
        head=LMHead.spec(),
        dim=128,
        heads=4,
        causal=True,
        max_seq_len=CONTEXT,
        vocab_size=vocab_size,
        init_std=0.06,
    )


def rate(step: int, steps: int) -> float:
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    return FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))


def loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats; windows [B, context + 1]."""
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def validate(model: nn.Module, data: Tensor) -> float:
    model.eval()
    windows = data.unfold(0, CONTEXT + 1, CONTEXT)
    total = sum(float(loss(model, part)) * len(part) for part in windows.split(128))
    model.train()
    return total / len(windows)


def train(data: Tensor, vocab_size: int, steps: int) -> nn.Module:
    model = vf.build(spec(vocab_size))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        starts = torch.randint(len(data) - CONTEXT, (BATCH, 1))
        loss(model, data[starts + torch.arange(CONTEXT + 1)]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    text = options.text.read_text(encoding="utf-8")
    characters = sorted(set(text))
    number = {character: index for index, character in enumerate(characters)}
    data = torch.tensor([number[character] for character in text])
    cut = int(0.9 * len(data))
    start = time.perf_counter()
    model = train(data[:cut], len(characters), options.steps)
    result = {
        "validation_loss": round(validate(model, data[cut:]), 4),
        "steps": options.steps,
        "seed": options.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_seconds": round(time.perf_counter() - start, 1),
        "torch": torch.__version__,
        "threads": options.threads,
    }
    if options.json:
        print(json.dumps(result))
        return
    print("\n".join(f"{name:<18}{value}" for name, value in result.items()))
    prompt = torch.tensor([number.get("\n", 0)])
    sample = vf.generate(model, prompt, CONTEXT, temperature=0.8, seed=options.seed)
    print("\nsample:", "".join(characters[token] for token in sample.tolist()))


if __name__ == "__main__":
    main()
