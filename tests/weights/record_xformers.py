"""Records what checkpoints of upstream's versions hold and compute: python -m tests.weights.record_xformers FOLDER

FOLDER holds one folder a version, `0.0.16`, ..., each with the unpacked wheel. They come from

pip download --no-deps --only-binary :all: --python-version 3.10 --platform manylinux2014_x86_64 xformers==0.0.16

FOLDER/../fairscale, if there, is the unpacked source of fairscale 0.4.13, which upstream's mixture of experts needed.
Each version runs in a process of its own. A model is written down once, with the versions that agree on it.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("xformers_checkpoints.json")


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    versions = sorted(path.name for path in folder.iterdir())
    for version in versions:
        paths = (str(folder / version), str(folder.parent / "fairscale"), os.environ.get("PYTHONPATH", ""))
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        run = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--one"]
        text = subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout
        for name, record in json.loads(text.splitlines()[-1]).items():
            merge(found, name, version, record)
    FILE.write_text(json.dumps(found, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")
    print(f"{len(found)} models of {', '.join(versions)}")


def merge(found: dict[str, Any], name: str, version: str, record: dict[str, Any]) -> None:
    """Add a record; versions that disagree are told apart by their names."""
    for key in (name, f"{name} ({version})"):
        if key not in found:
            found[key] = {"versions": [version], **record}
            return
        if same(found[key], record):
            found[key]["versions"].append(version)
            return


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    if one["weights"] != two["weights"] or one.get("error") != two.get("error"):
        return False
    pairs = zip(one.get("values", []), two.get("values", []), strict=True)
    return "drawn" in one or all(abs(a - b) < 1e-9 for a, b in pairs)


def one_version() -> None:
    warnings.simplefilter("ignore")
    from tests.weights.xformers_checkpoints import checkpoints, fill

    # The compiled library of the wheel does not load; without it a name is missing that type checks mention.
    for path in ("core", "attention_mask", "global_tokens", "local", "random", "scaled_dot_product", "utils"):
        module = importlib.import_module(f"xformers.components.attention.{path}")
        if not hasattr(module, "SparseCS"):
            module.SparseCS = type("SparseCS", (), {})
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
        print(json.dumps(records(checkpoints(), fill)))


def records(cases: dict[str, Any], fill: Any) -> dict[str, Any]:
    """What each model holds and computes, or why upstream cannot run it."""
    records = {}
    for name, case in cases.items():
        torch.manual_seed(0)
        try:
            model = fill(case.build("xformers"))
            record: dict[str, Any] = {
                "weights": {k: list(v.shape) for k, v in model.state_dict().items()},
                "same": again(model),
            }
        except Exception as error:
            records[name] = {"weights": {}, "error": f"{type(error).__name__}: {error}"}
            continue
        try:
            with torch.no_grad():
                y = case.run(model)
            record |= {"shape": list(y.shape), "values": [round(v, 11) for v in y.flatten().tolist()]}
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"
        if case.drawn:
            record["drawn"] = drawn(model, case.drawn).tolist()
        records[name] = record
    return records


def again(model: torch.nn.Module) -> dict[str, str]:
    """Names of weights that stand under an earlier name already."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: first[id(t)] for name, t in state.items() if first.setdefault(id(t), name) != name}


def drawn(model: torch.nn.Module, path: str) -> torch.Tensor:
    """What the model's attention drew at random."""
    holder: Any = next(m for name, m in model.named_modules() if name.endswith("attention"))
    for step in path.split("."):
        holder = getattr(holder, step)
    return holder if isinstance(holder, torch.Tensor) else holder.to_bool().long()


if __name__ == "__main__":
    one_version() if sys.argv[1] == "--one" else main(Path(sys.argv[1]))
