"""Fair timing and peak memory: candidates in turns in one process, medians, bytes that the allocator really held."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Run = Callable[[], Any]


def medians(runs: Mapping[str, Run], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each candidate; one round is run before and thrown away.

    Each round starts with another candidate, so that what the machine does beside it falls on all alike. On a CPU the
    time of this process counts, summed over its threads; on a GPU what passes until the device is done.

    Args:
        runs: what to time, by name.
        rounds: rounds that count.
        device: where they run.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        shift = turn % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            spent = timed(runs[name], device)
            if turn:
                seconds[name].append(spent)
    return {name: statistics.median(found) for name, found in seconds.items()}


def timed(run: Run, device: torch.device) -> float:
    """Seconds of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most that the allocator held during a run, beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    recorded: Any = profile.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that the profiler's own code writes to standard error."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
