"""Comparing a model with its standalone file: in a process of its own, without the library."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import variform as vf
from variform.export import to_file

RUN = """
import runpy, sys, torch
torch.set_num_threads(1)
folder, names = sys.argv[1], sys.argv[2].split(",")
for name in names:
    module = runpy.run_path(f"{folder}/{name}.py", run_name="standalone")
    model = module["make_model"]()
    module["load_weights"](model, f"{folder}/{name}.safetensors")
    model.eval()
    found = {}
    for kind in ("float32", "float64"):
        model.to(getattr(torch, kind))
        runs = torch.load(f"{folder}/{name}.{kind}.inputs.pt", weights_only=True)
        found[kind] = []
        for args, more in runs:
            model.zero_grad()
            out = model(*args, **more)
            results = list(out.values()) if isinstance(out, dict) else [out]
            sum(result.square().sum() for result in results).backward()
            found[kind].append((results, [p.grad for p in model.parameters() if p.grad is not None]))
    torch.save(found, f"{folder}/{name}.results.pt")
assert not any(name.split(".")[0] == "variform" for name in sys.modules), "the file imports the library"
"""


def compare(specs: dict[str, Any], folder: Path) -> None:
    """Export, load and run each of the models, and compare: bits in float32, gradients in float64."""
    expected = {name: prepared(name, spec, folder) for name, spec in specs.items()}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN, str(folder), ",".join(specs)],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, runs in expected.items():
        found = torch.load(folder / f"{name}.results.pt", weights_only=True)
        for kind, ours in runs.items():
            for number, ((out, grads), (results, gradients)) in enumerate(zip(ours, found[kind], strict=True)):
                where = f"{name}, {kind}, run {number}"
                if kind == "float32":
                    assert all(torch.equal(a, b) for a, b in zip(out, results, strict=True)), where
                torch.testing.assert_close(
                    results, out, rtol=1e-9, atol=1e-10, msg=where
                ) if kind == "float64" else None
                if kind == "float64":
                    sums = sorted(float(g.abs().sum()) for g in grads), sorted(float(g.abs().sum()) for g in gradients)
                    torch.testing.assert_close(
                        torch.tensor(sums[1]), torch.tensor(sums[0]), rtol=1e-6, atol=1e-9, msg=where
                    )


def prepared(name: str, spec: Any, folder: Path) -> dict[str, list[tuple[list[Tensor], list[Tensor]]]]:
    """Write a model's file, weights and inputs; what the model itself answers."""
    torch.manual_seed(0)
    to_file(spec, folder / f"{name}.py")
    model = vf.build(spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    vf.save_weights(model, folder / f"{name}.safetensors")
    answers = {}
    for kind in ("float32", "float64"):
        dtype = getattr(torch, kind)
        model.to(dtype)
        runs = [inputs(model, batch, near(model, length), dtype, padded) for batch, length, padded in SIZES]
        torch.save(runs, folder / f"{name}.{kind}.inputs.pt")
        answers[kind] = [answer(model, *run) for run in runs]
    return answers


SIZES = [(3, 7, False), (1, 13, False), (3, 7, True), (2, 11, True)]


def answer(model: Any, args: tuple[Any, ...], more: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of a model."""
    model.zero_grad()
    out = model(*args, **more)
    results = list(out.values()) if isinstance(out, dict) else [out]
    sum(result.square().sum() for result in results).backward()
    return [r.detach() for r in results], [p.grad.clone() for p in model.parameters() if p.grad is not None]


def near(model: Any, length: int) -> int:
    """A length that all parts take."""
    for part in model.modules():
        if isinstance(part, vf.Part):
            length = part.near_length(part.spec.args, length)
    return length


def inputs(model: Any, batch: int, length: int, dtype: torch.dtype, padded: bool) -> tuple[Any, dict[str, Tensor]]:
    """Random inputs, with padding where the model takes it."""
    args, more = model.example_inputs(batch, length)
    if isinstance(args[0], dict):
        return ({name: filled(value, dtype) for name, value in args[0].items()},), {}
    args = tuple(filled(value, dtype) for value in args)
    more = {name: filled(value, dtype) for name, value in more.items()}
    if padded and takes_padding(model) and args[-1].dim() != 4:
        more["valid"] = mask(batch, args[-1].shape[1])
        if len(args) == 2:
            more["source_valid"] = mask(batch, args[0].shape[1])
    return args, more


def takes_padding(model: Any) -> bool:
    specs = [spec for _, spec in model.spec.walk()]
    reads = any("valid" in spec.part.reads_streams(spec.args) for spec in specs)
    return reads and all(spec.part.abilities(spec.args).key_padding for spec in specs)


def filled(value: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.randint(5, value.shape) if value.dtype == torch.long else torch.randn(value.shape, dtype=dtype)


def mask(batch: int, length: int) -> Tensor:
    valid = torch.rand(batch, length) > 0.3
    valid[:, length // 2] = True
    return valid
