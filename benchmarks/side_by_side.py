"""Fair timing of several ways to do the same thing: in one process, in turns, medians and ratios of neighbours.

Runs of a round follow each other directly and each round starts with another one, so that what the machine does
beside it falls on all alike; a ratio compares runs of the same round.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True)
class Timing:
    """What was measured of one candidate.

    Args:
        name: of the candidate.
        milliseconds: median over the rounds.
        ratio: median over the rounds of its time / the baseline's time in the same round.
    """

    name: str
    milliseconds: float
    ratio: float


def compare(candidates: dict[str, Callable[[], Any]], rounds: int, clock: str = "cpu", repeat: int = 1) -> list[Timing]:
    """Time the candidates; the first is the baseline. One round is run before and thrown away."""
    now, names = CLOCKS[clock], list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = now()
            for _ in range(repeat):
                candidates[name]()
            if turn:
                seconds[name].append((now() - start) / repeat)
    base = seconds[names[0]]
    return [
        Timing(
            name,
            1e3 * statistics.median(times),
            statistics.median(time / first for time, first in zip(times, base, strict=True)),
        )
        for name, times in seconds.items()
    ]


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that count (at least 5)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="cpu", help="cpu: time of the process; wall: elapsed")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--only", nargs="*", default=None, help="candidates to run beside the baseline")
    return parser


def settle(options: argparse.Namespace) -> None:
    """Threads and seed."""
    if options.rounds < 5:
        raise SystemExit("at least 5 rounds are needed for a median that means something")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)


def chosen(candidates: dict[str, Callable[[], Any]], only: list[str] | None) -> dict[str, Callable[[], Any]]:
    """The baseline and the candidates asked for."""
    if only is None:
        return candidates
    unknown = set(only) - set(candidates)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(candidates)}")
    baseline = next(iter(candidates))
    return {name: run for name, run in candidates.items() if name == baseline or name in only}


def report(title: str, results: dict[str, list[Timing]], options: argparse.Namespace) -> None:
    """Print a table a case, or everything as JSON."""
    setting = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": options.threads,
        "clock": options.clock,
        "rounds": options.rounds,
    }
    if options.json:
        cases = {case: [asdict(timing) for timing in timings] for case, timings in results.items()}
        print(json.dumps({"benchmark": title, "setting": setting, "cases": cases}, indent=2))
        return
    print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in setting.items()))
    width = max(22, *(len(timing.name) for timings in results.values() for timing in timings))
    for case, timings in results.items():
        print(f"\n{case:<{width + 2}}{'ms':>10}{'ratio':>8}")
        for timing in timings:
            print(f"  {timing.name:<{width}}{timing.milliseconds:>10.1f}{timing.ratio:>8.3f}")
