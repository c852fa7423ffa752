"""The quick demo of the configaformers dialect, fused and literal: time and peak memory of forward and backward.

python benchmarks/programs.py
python benchmarks/programs.py --depth 2 --rounds 5 --json

Peak memory is measured twice: by the bytes that torch's allocator holds over a step beyond what it held before
(parameters apart), and as the largest resident size of a fresh process, everything included.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import arguments, compare, report
from torch import Tensor, nn
from torch.nn import functional as F

import variform as vf
from variform.dialects.configaformers import get_alibi, program_spec
from variform.inspect.measure import peak_bytes

HEADS = 12
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross entropy": lambda logits, ids: F.cross_entropy(logits.flatten(0, 1), ids.flatten()),
    "mean": lambda logits, ids: logits.mean(),
}


def demo(dim: int, depth: int, vocab: int) -> dict[str, Any]:
    """The quick demo: rotary positions and ALiBi together, a feedforward before the head."""
    residual, add = {"type": "make_stream", "output_name": "r"}, {"type": "merge_streams", "input_name_1": "r"}
    feedforward = [
        residual,
        {"type": "norm"},
        {"type": "linear", "output_dim": 4 * dim},
        {"type": "activation"},
        {"type": "linear", "output_dim": dim},
        add,
    ]
    heads = [{"type": "make_heads", "input_name": n, "output_name": n, "num_heads": HEADS} for n in ("q", "k")]
    ropes = [{"type": "rope", "input_name": n, "output_name": n, "rotate_dim": 16} for n in ("q", "k")]
    attention = [
        residual,
        {"type": "norm"},
        *({"type": "linear", "output_name": name} for name in ("q", "k", "v")),
        *heads,
        *ropes,
        {"type": "mha_dots", "input_name_queries": "q", "input_name_keys": "k"},
        {"type": "attention_offset"},
        {"type": "mha_sum", "input_name_values": "v"},
        {"type": "linear"},
        add,
    ]
    blocks = [
        {"config": [{"type": "embedding", "output_dim": dim, "num_classes": vocab}], "repeat": 1},
        {"config": attention + feedforward, "repeat": depth},
        {"config": [*feedforward, {"type": "linear", "output_dim": vocab}], "repeat": 1},
    ]
    streams = {"emb_ids": ["B", "L_in"], "attn_offset": ["B", HEADS, "L_in", "L_in"]}
    return {"model_config": {"blocks": blocks}, "input_streams": streams}


def models(options: argparse.Namespace, names: tuple[str, ...] = ("literal", "fused")) -> dict[str, nn.Module]:
    spec = program_spec(**demo(options.dim, options.depth, options.vocab))
    built = {name: vf.build(spec.replace(attention=name)) for name in names}
    first = next(iter(built.values())).state_dict()
    for model in built.values():
        model.load_state_dict(first, assign=True)  # the same tensors: a second set would double what is held
    return built


def step(model: nn.Module, options: argparse.Namespace, loss: str) -> Callable[[], Tensor]:
    """Forward and backward; the gradients are freed before."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(options.vocab, (options.batch, options.length), generator=generator)
    inputs = {"emb_ids": ids, "attn_offset": get_alibi(HEADS, options.length)}

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        value = LOSSES[loss](model(inputs)["x"], ids)
        value.backward()
        return value.detach()

    return run


def peak_resident(options: argparse.Namespace, name: str, loss: str) -> int:
    """The largest resident size of a fresh process that runs one step."""
    sizes = [f"--{key}={getattr(options, key)}" for key in ("dim", "depth", "vocab", "length", "batch", "threads")]
    command = [sys.executable, str(Path(__file__)), *sizes, "--resident", name, "--loss", loss]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident_peak() -> int:
    """Of this process alone: `getrusage` would count its parent before the program was loaded."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory(options: argparse.Namespace, loss: str) -> dict[str, dict[str, float]]:
    """Peaks in MiB, and their ratio."""
    built = models(options)
    parameters = sum(p.numel() * p.element_size() for p in next(iter(built.values())).parameters())
    found: dict[str, dict[str, float]] = {"allocated": {}, "allocated and parameters": {}, "resident": {}}
    for name, model in built.items():
        peak = peak_bytes(step(model, options, loss), torch.device("cpu"))
        found["allocated"][name] = peak / 2**20
        found["allocated and parameters"][name] = (peak + parameters) / 2**20
        found["resident"][name] = peak_resident(options, name, loss) / 2**20
    for row in found.values():
        row["ratio"] = row["fused"] / row["literal"]
    return found


def options_of() -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0], rounds=5)
    for name, size in (("dim", 768), ("depth", 12), ("vocab", 50257), ("length", 1024), ("batch", 2)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--loss", nargs="*", choices=tuple(LOSSES), default=list(LOSSES))
    parser.add_argument("--no-time", action="store_true", help="measure memory only")
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--resident", choices=("literal", "fused"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = options_of()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.resident:
        step(models(options, (options.resident,))[options.resident], options, options.loss[0])()
        print(resident_peak())
        return
    if not options.no_time:
        steps = {loss: {n: step(m, options, loss) for n, m in models(options).items()} for loss in options.loss}
        for loss, runs in steps.items():
            torch.testing.assert_close(runs["fused"](), runs["literal"](), rtol=1e-5, atol=1e-6)
            report("programs", {loss: compare(runs, options.rounds, options.clock)}, options)
    if not options.no_memory:
        peaks = {loss: memory(options, loss) for loss in options.loss}
        if options.json:
            print(json.dumps({"benchmark": "programs, peak memory in MiB", "cases": peaks}, indent=2))
            return
        for loss, rows in peaks.items():
            print(f"\n{loss + ', MiB':<28}" + "".join(f"{name:>10}" for name in ("literal", "fused", "ratio")))
            for what, row in rows.items():
                print(f"  {what:<26}{row['literal']:>10.0f}{row['fused']:>10.0f}{row['ratio']:>10.3f}")


if __name__ == "__main__":
    main()
