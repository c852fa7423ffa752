"""timm needs torchvision, of which no CPU build exists: it lies beside the environment, its operators are declared."""

import os
import sys
from pathlib import Path

import pytest
import torch

DECLARED: list[torch.library.Library] = []


def declare_operators() -> None:
    """Declare torchvision's operators, which is all that timm needs of them; before timm is imported."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    DECLARED.append(library)  # the operators go with it


def timm_folder() -> str:
    """Where `make vision` put timm and torchvision, without their dependencies; a test without them is skipped."""
    folder = Path(sys.prefix) / "vision"
    if not folder.is_dir():
        assert not os.environ.get("CI"), f"{folder} is missing: make vision"
        pytest.skip("timm is not installed: make vision")
    return str(folder)
