"""Sparse attention beside the dense ways to compute the same: time and peak memory, forward and in training.

python benchmarks/sparse.py
python benchmarks/sparse.py --cases layout window --json
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from side_by_side import Timing, arguments, chosen, compare, report, settle
from torch import Tensor, nn
from torch.nn import functional as F

from variform.dialects.xformers.components import MultiHeadDispatch
from variform.dialects.xformers.components.attention import BlockSparseAttention, ScaledDotProduct
from variform.inspect.measure import peak_bytes
from variform.ops.attention import Call, attention
from variform.ops.masks import Dense, ShiftedWindows, Window
from variform.ops.scores import GridBias

Ways = dict[str, Callable[[], Tensor]]


def leaves(*shape: int) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for _ in range(3)]


def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def scattered(width: int, density: float) -> Ways:
    """A random mask of 1024 x 1024 for 16 sequences of one head."""
    (q, k, v), mask = leaves(16, 1024, width), torch.rand(1024, 1024) < density
    mask.fill_diagonal_(True)
    sdp = ScaledDotProduct()
    heads = [t.unsqueeze(1) for t in (q, k, v)]
    return {
        "SDPA, mask": lambda: F.scaled_dot_product_attention(*heads, attn_mask=mask),
        "naive dense": lambda: naive(q, k, v, mask),
        "variform": lambda: sdp(q=q, k=k, v=v, mask=mask),
    }


def causal_heads() -> Ways:
    """A causal layout of blocks of 32 by head, with the fine mask on top: 2 x 8 heads x 2048 x 128."""
    q, k, v = leaves(2, 8, 2048, 128)
    layout, fine = torch.ones(8, 64, 64).tril(), torch.ones(2048, 2048).tril()
    masked, flagged = (BlockSparseAttention(layout, 32, num_heads=8, causal=causal) for causal in (False, True))
    return {
        "SDPA is_causal": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "variform, fine mask": lambda: masked(q, k, v, att_mask=fine),
        "variform, causal=True": lambda: flagged(q, k, v),
    }


def causal_module() -> Ways:
    """The same inside of multi-head modules."""
    x = torch.randn(2, 2048, 1024, requires_grad=True)
    layout, fine = torch.ones(8, 64, 64).tril(), torch.ones(2048, 2048).tril()
    theirs = nn.MultiheadAttention(1024, 8, batch_first=True)
    ours = MultiHeadDispatch(dim_model=1024, num_heads=8, attention=BlockSparseAttention(layout, 32, num_heads=8))
    ignored = ~fine.bool()
    return {
        "nn.MultiheadAttention": lambda: theirs(x, x, x, attn_mask=ignored)[0],
        "the same, need_weights=False": lambda: theirs(x, x, x, attn_mask=ignored, need_weights=False)[0],
        "variform": lambda: ours(query=x, key=x, value=x, att_mask=fine),
    }


def layout() -> Ways:
    """Blocks of 128 at a density of 0.09, length 4096, 8 heads, width 64."""
    q, k, v = leaves(1, 8, 4096, 64)
    blocks = torch.zeros(32 * 32, dtype=torch.bool)
    blocks[torch.randperm(32 * 32)[:92]] = True
    blocks = blocks.view(32, 32)
    mask = blocks.repeat_interleave(128, 0).repeat_interleave(128, 1)
    ours = BlockSparseAttention(blocks, 128, num_heads=8)
    sdp = ScaledDotProduct()
    return {
        "SDPA, mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "variform, layout": lambda: ours(q, k, v),
        "variform, dense mask": lambda: sdp(q, k, v, att_mask=mask),
    }


def window() -> Ways:
    """256 positions back, length 4096, 8 heads, width 64."""
    q, k, v = leaves(1, 8, 4096, 64)
    place = torch.arange(4096)
    mask = Window(255).dense(place, place)
    call, sdp = Call(q, k, v, structure=Window(255)), ScaledDotProduct()
    return {
        "SDPA, mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "variform, window": lambda: attention(call),
        "variform, dense mask": lambda: sdp(q, k, v, att_mask=mask),
    }


def swin() -> Ways:
    """Moved windows of 7 x 7 on 4 grids of 56 x 56 tokens, 3 heads, width 32, with their table of biases."""
    q, k, v = leaves(4, 3, 56 * 56, 32)
    place, table = torch.arange(56 * 56), torch.randn(13 * 13, 3, requires_grad=True)
    windows, bias = ShiftedWindows((56, 56), 7, 3), GridBias(table, 56, (7, 7))
    mask = windows.dense(place, place)
    call, masked = (Call(q, k, v, structure=structure, scores=(bias,)) for structure in (windows, None))

    def dense() -> Tensor:
        added = bias.additive(place, place, torch.float32).masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=added)

    return {
        "SDPA, mask and bias": dense,
        "variform, by windows": lambda: attention(call),
        "variform, dense mask": lambda: attention(replace(masked, mask=Dense(mask))),
    }


CASES: dict[str, Callable[[], Ways]] = {
    "scattered 0.1, 1024": lambda: scattered(1024, 0.1),
    "scattered 0.01, 1024": lambda: scattered(1024, 0.01),
    "scattered 0.1, 64": lambda: scattered(64, 0.1),
    "scattered 0.01, 64": lambda: scattered(64, 0.01),
    "causal heads": causal_heads,
    "causal module": causal_module,
    "layout": layout,
    "window": window,
    "swin": swin,
}


def trained(way: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: way().sum().backward()


def idle(way: Callable[[], Tensor]) -> Callable[[], Any]:
    def run() -> Tensor:
        with torch.no_grad():
            return way()

    return run


def peak(run: Callable[[], Any]) -> float:
    """MiB that torch allocates at once, beyond what is there before."""
    run()  # what is remembered is there
    return peak_bytes(run, torch.device("cpu")) / 2**20


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--cases", nargs="*", default=list(CASES), help=f"of: {', '.join(CASES)}")
    options = parser.parse_args()
    settle(options)
    results: dict[str, list[Timing]] = {}
    for case in (name for name in CASES if any(name.startswith(asked) for asked in options.cases)):
        for what, mode in (("forward", idle), ("training", trained)):
            runs = chosen({name: mode(way) for name, way in CASES[case]().items()}, options.only)
            memory = {name: peak(run) for name, run in runs.items()}
            timings = compare(runs, options.rounds, options.clock)
            first = memory[timings[0].name]
            results[f"{case}: {what}"] = [
                Timing(
                    f"{one.name} [{memory[one.name]:.0f} MiB, {memory[one.name] / first:.2f}x]",
                    one.milliseconds,
                    one.ratio,
                )
                for one in timings
            ]
    report("sparse attention", results, options)


if __name__ == "__main__":
    main()
