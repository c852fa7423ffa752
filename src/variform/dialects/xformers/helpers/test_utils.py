"""What tests of parts need."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import distributed


def init_torch_distributed_local() -> None:
    """Start a process group of this process alone, over a file; nothing happens where there is one already."""
    if distributed.is_initialized():
        return
    meeting_place = Path(tempfile.mkdtemp()) / "process_group"
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, init_method=meeting_place.as_uri(), rank=0, world_size=1)
