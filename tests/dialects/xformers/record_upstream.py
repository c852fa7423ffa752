"""Records what upstream computes; its wheel, unpacked, must lie on the path: PYTHONPATH=wheel python -m ...

pip download --no-deps --only-binary :all: --python-version 3.10 --platform manylinux2014_x86_64 xformers==0.0.16
"""

import importlib
import json
import warnings
from pathlib import Path

import torch

from tests.dialects.xformers.cases import recorded

FILE = Path(__file__).with_name("upstream_0.0.16.json")


def main() -> None:
    warnings.simplefilter("ignore")
    # The compiled library of the wheel does not load; without it a name is missing that type checks mention.
    importlib.import_module("xformers.components.attention.core").SparseCS = type("SparseCS", (), {})
    with torch.no_grad():
        results = {name: run() for name, run in recorded("xformers").items()}
    data = {
        name: {"shape": list(y.shape), "values": [round(v, 12) for v in y.flatten().tolist()]}
        for name, y in results.items()
    }
    FILE.write_text(json.dumps(data), encoding="utf-8")


if __name__ == "__main__":
    main()
