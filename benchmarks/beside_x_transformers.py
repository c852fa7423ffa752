"""The x-transformers dialect beside x-transformers itself: training steps, their peak memory, generation.

python benchmarks/beside_x_transformers.py
python benchmarks/beside_x_transformers.py --parts generation --json
"""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from side_by_side import Timing, arguments, compare, report, settle
from torch import Tensor, nn
from torch.nn import functional as F

import variform as vf
import variform.dialects.x_transformers as ours
from variform.inspect.measure import peak_bytes
from variform.weights.x_transformers import load_x_transformers

SIZES = {"dim": 512, "depth": 6, "heads": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "llama-like": {
        "rotary_pos_emb": True,
        "use_rmsnorm": True,
        "ff_glu": True,
        "ff_swish": True,
        "ff_no_bias": True,
        "attn_kv_heads": 2,
    },
    "alibi": {"alibi_pos_bias": True},
    "t5-bias": {"rel_pos_bias": True},
    "softclamp": {"attn_softclamp_logits": True},
}
WITHOUT_FLASH = ("t5-bias", "softclamp")
"""Options that x-transformers refuses with `attn_flash=True`."""


def model_of(package: Any, length: int, flash: bool, depth: int, **options: Any) -> nn.Module:
    layers = package.Decoder(**{**SIZES, "depth": depth}, attn_flash=flash, **options)
    model: nn.Module = package.TransformerWrapper(num_tokens=256, max_seq_len=length, attn_layers=layers)
    return model


def trio(options: str, length: int, depth: int) -> dict[str, nn.Module]:
    """Upstream with fused attention where it takes that, upstream as it is by default, and ours; the same weights."""
    import x_transformers as upstream

    given = OPTIONS[options]
    default = model_of(upstream, length, False, depth, **given)
    models = {}
    if options not in WITHOUT_FLASH:
        models["x-transformers flash"] = model_of(upstream, length, True, depth, **given)
        models["x-transformers flash"].load_state_dict(default.state_dict())
    models["x-transformers"] = default
    mine = model_of(ours, length, True, depth, **given)
    load_x_transformers(mine, default.state_dict())
    ids = torch.randint(256, (2, 33))
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(ids), default.eval()(ids), atol=1e-3, rtol=1e-3)
    models["variform"] = mine
    return {name: model.train() for name, model in models.items()}


def step(model: nn.Module, ids: Tensor, half: bool) -> Callable[[], None]:
    """Forward and backward; gradients are thrown away."""

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            logits = model(ids[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        model.zero_grad()

    return run


def generators(prompt: Tensor, new: int) -> dict[str, Callable[[], Tensor]]:
    """Greedy generation with a cache, eager; ours compiled as well."""
    models = trio("plain", prompt.shape[1] + new, 12)
    runs = {}
    for name, model in models.items():
        package = ours if name == "variform" else __import__("x_transformers")
        wrapper = package.AutoregressiveWrapper(model.eval())
        runs[name] = lambda wrapper=wrapper: wrapper.generate(prompt, new, temperature=0.0, cache_kv=True)
    native = models["variform"].native
    runs["variform compiled"] = lambda: vf.generate(native, prompt, new, greedy=True, compile=True)
    first = runs["x-transformers"]()
    for name, run in runs.items():
        if not torch.equal(run(), first):
            print(f"{name}: other tokens than x-transformers")
    return runs


def training(options: Any) -> dict[str, list[Timing]]:
    ids = torch.randint(256, (options.batch, options.length + 1))
    results = {}
    for name in options.cases:
        for precision in options.precision:
            models = trio(name, options.length, SIZES["depth"])
            steps = {key: step(model, ids, precision == "bfloat16") for key, model in models.items()}
            results[f"{name}, {precision}"] = compare(steps, options.rounds, options.clock)
            gc.collect()
    return results


def memory(options: Any) -> dict[str, list[Timing]]:
    """Peak megabytes of a step beyond the weights, in the column of milliseconds."""
    ids = torch.randint(256, (options.batch, options.length + 1))
    results = {}
    for name in options.cases:
        for precision in options.precision:
            peaks = {}
            for key, model in trio(name, options.length, SIZES["depth"]).items():
                run = step(model, ids, precision == "bfloat16")
                run()
                peaks[key] = peak_bytes(run, torch.device("cpu")) / 2**20
            base = next(iter(peaks.values()))
            results[f"{name}, {precision}, MiB"] = [Timing(key, peak, peak / base) for key, peak in peaks.items()]
            gc.collect()
    return results


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--cases", nargs="*", choices=tuple(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--precision", nargs="*", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parts = ("training", "memory", "generation")
    parser.add_argument("--parts", nargs="*", choices=parts, default=list(parts))
    options = parser.parse_args()
    settle(options)
    if "training" in options.parts:
        report("training step", training(options), options)
    if "memory" in options.parts:
        report("peak memory of a training step", memory(options), options)
    if "generation" in options.parts:
        runs = generators(torch.randint(256, (1, 128)), 128)
        report("generation", {"128 new tokens": compare(runs, options.rounds, options.clock)}, options)


if __name__ == "__main__":
    main()
