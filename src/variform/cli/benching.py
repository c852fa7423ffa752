"""The verb `bench`: parts measured side by side, users' parts among them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from variform.cli.output import show
from variform.core.registry import parts
from variform.core.user_modules import import_user_modules

Argument = tuple[tuple[str, ...], dict[str, Any]]

ARGUMENTS: list[Argument] = [
    (("what",), {"metavar": "WHAT", "choices": ("attention",), "help": "attention: all attentions and mixers"}),
    (("--only",), {"nargs": "+", "metavar": "NAME", "help": "these parts beside softmax attention"}),
    (
        ("-p", "--module"),
        {"action": "append", "default": [], "metavar": "MODULE", "help": "import a module that registers parts"},
    ),
    (("--lengths",), {"nargs": "+", "type": int, "metavar": "N", "help": "tokens (512 1024 2048 4096 8192)"}),
    (("--batch",), {"type": int, "default": 1, "metavar": "N", "help": "rows (1)"}),
    (("--dim",), {"type": int, "default": 256, "metavar": "N", "help": "features (256)"}),
    (("--heads",), {"type": int, "default": 4, "metavar": "N", "help": "heads (4)"}),
    (("--causal",), {"action": "store_true", "help": "the causal form of each"}),
    (("--inference",), {"action": "store_true", "help": "forward alone"}),
    (
        ("--dtype",),
        {"default": "float32", "choices": ("float32", "bfloat16"), "help": "of weights and input (float32)"},
    ),
    (("--device",), {"default": "cpu", "metavar": "TYPE", "help": "cpu or cuda (cpu)"}),
    (("--rounds",), {"type": int, "default": 3, "metavar": "N", "help": "rounds whose median counts (3)"}),
    (("--limit",), {"type": float, "default": 20.0, "metavar": "S", "help": "seconds that one run may take (20)"}),
    (("--plot",), {"metavar": "FILE", "help": "draw time and memory over length: out.svg or out.png"}),
]


def bench(options: argparse.Namespace) -> None:
    """Measure the parts of a kind side by side: time, memory, the crossover with softmax attention."""
    import torch

    from variform.bench.attention import LENGTHS, Setting, bench_attention
    from variform.bench.table import text

    known = {name for _, name in parts()} | {f"{kind}/{name}" for kind, name in parts()}
    import_user_modules(options.module, options.only or [], known, _note)
    setting = Setting(
        batch=options.batch,
        dim=options.dim,
        heads=options.heads,
        causal=options.causal,
        backward=not options.inference,
        dtype=getattr(torch, options.dtype),
        device=torch.device(options.device),
        rounds=options.rounds,
        limit=options.limit,
    )
    rows = bench_attention(options.only, options.lengths or LENGTHS, setting, _note)
    if options.plot is not None:
        from variform.bench.plot import plot

        _note(f"written: {plot(rows, setting, options.plot)}")
    show(text(rows, setting), {"setting": setting.to_json(), "rows": [row.to_json() for row in rows]}, options.json)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
