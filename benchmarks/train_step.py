"""A training step (forward, backward, fused AdamW) of the preset GPT beside a hand-written one and x-transformers.

python benchmarks/train_step.py
python benchmarks/train_step.py --threads 2 --clock wall --json
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from side_by_side import arguments, chosen, compare, report, settle
from tight_gpt import TightGPT, copy_weights
from torch import Tensor, nn
from torch.nn import functional as F

import variform as vf

SIZES = {"vocab_size": 256, "dim": 512, "depth": 6, "heads": 8, "max_seq_len": 512}


def x_transformers() -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=SIZES["dim"], depth=SIZES["depth"], heads=SIZES["heads"], attn_flash=True)
    return TransformerWrapper(num_tokens=SIZES["vocab_size"], max_seq_len=SIZES["max_seq_len"], attn_layers=layers)


def models() -> dict[str, nn.Module]:
    ours, tight = vf.build(vf.models.gpt(**SIZES)), TightGPT(**SIZES)
    copy_weights(ours, tight)
    count = [sum(p.numel() for p in model.parameters()) for model in (ours, tight)]
    assert count[0] == count[1], count
    ids = torch.randint(SIZES["vocab_size"], (2, 65))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), tight(ids), atol=1e-4, rtol=1e-4)
    return {"hand-written": tight, "variform": ours, "x-transformers": x_transformers()}


def step(model: nn.Module, ids: Tensor, half: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            logits = model(ids[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=9)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--precision", nargs="*", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    options = parser.parse_args()
    settle(options)
    ids = torch.randint(SIZES["vocab_size"], (options.batch, options.length + 1))
    results = {}
    for precision in options.precision:
        steps = {name: step(model, ids, precision == "bfloat16") for name, model in models().items()}
        results[precision] = compare(chosen(steps, options.only), options.rounds, options.clock)
    report("training step", results, options)


if __name__ == "__main__":
    main()
