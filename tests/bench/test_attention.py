"""Attentions measured side by side: which parts, at which lengths, what is left out and why."""

from pathlib import Path

import pytest
import torch
from torch import nn

import variform as vf
from variform.bench.attention import Measured, Row, Setting, _crossover, bench_attention, chosen
from variform.bench.plot import plot
from variform.bench.table import text
from variform.inspect.measure import medians, peak_bytes

SMALL = Setting(dim=16, heads=2, rounds=1)
CPU = torch.device("cpu")


def test_every_attention_and_mixer_of_one_sequence_is_measured() -> None:
    names = set(chosen(None, SMALL))
    kinds = {f"{kind}/{name}" for kind in ("attention", "mixer") for _, name in vf.parts(kind)}
    of_two = {"mixer/cross_attention", "mixer/cross_compositional", "mixer/projected_cross_attention"}
    assert kinds - names <= {"mixer/multi_head", *of_two}
    assert next(iter(chosen(None, SMALL))) == "attention/softmax"


def test_rows_hold_time_memory_and_ratio() -> None:
    rows = bench_attention(["linear"], [32, 64], SMALL)
    assert [row.name for row in rows] == ["attention/softmax", "attention/linear"]
    for row in rows:
        assert [one.length for one in row.measured] == [32, 64]
        assert all(one.seconds and one.peak_bytes and one.ratio for one in row.measured)
    assert rows[0].measured[0].ratio == 1
    assert "linear" in text(rows, SMALL)
    assert rows[1].to_json()["name"] == "attention/linear"


def test_a_causal_form_is_asked_for() -> None:
    able = {name for (_, name), part in vf.parts("attention").items() if part.can.causal}
    measured = {name.rpartition("/")[2] for name in chosen(None, Setting(causal=True)) if name.startswith("attention/")}
    assert measured == able


def test_names_are_full_or_short_and_typos_are_told() -> None:
    assert "attention/linear" in chosen(["attention/linear"], SMALL)
    with pytest.raises(vf.ConfigError, match=r"no attention or mixer 'liner'.*linear"):
        chosen(["liner"], SMALL)


def test_lengths_that_would_take_too_much_are_left_out_with_the_reason() -> None:
    slow = Setting(dim=16, heads=2, rounds=1, limit=1e-9)
    rows = bench_attention(["linear"], [32, 64], slow)
    assert all(row.measured[0].seconds is not None for row in rows)
    assert all("one run would take about" in row.measured[1].why_not for row in rows)
    held = bench_attention(["linear"], [32, 64], Setting(dim=16, heads=2, rounds=1, memory=1))
    assert "one run would hold about" in held[1].measured[1].why_not
    assert "at 64, one run would hold" in text(held, slow)


@pytest.mark.parametrize(
    ("ratios", "crossover"),
    [((2.0, 1.5), None), ((0.9, 0.5), 512), ((2.0, 0.5), 724), ((0.9, 1.5), None), ((2.0, 0.5, 1.2), None)],
)
def test_the_crossover_lies_between_the_lengths(ratios: tuple[float, ...], crossover: int | None) -> None:
    rows = [Measured(512 * 2**i, 1.0, 1, ratio) for i, ratio in enumerate(ratios)]
    assert _crossover(rows) == crossover


def test_peaks_are_what_was_allocated() -> None:
    def run() -> torch.Tensor:
        one = torch.empty(1 << 18)
        two = torch.empty(1 << 19)
        del one
        return two + 1

    assert peak_bytes(run, CPU) == pytest.approx(4 * (1 << 19) * 2, abs=256)  # a scalar beside the two


def test_medians_are_of_each_candidate() -> None:
    small, large = nn.Linear(8, 8), nn.Linear(512, 512)
    runs = {"small": lambda: small(torch.ones(1, 8)), "large": lambda: large(torch.ones(4096, 512))}
    seconds = medians(runs, 3, CPU)
    assert seconds["large"] > seconds["small"]


def test_a_plot_is_written(tmp_path: Path) -> None:
    rows = [Row("attention/softmax", (Measured(512, 1.0, 8, 1.0), Measured(1024, 4.0, 16, 1.0)))]
    assert plot(rows, SMALL, tmp_path / "out.svg").read_text(encoding="utf-8").count("<svg") == 1
