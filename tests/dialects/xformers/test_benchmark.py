"""The training benchmark: the task is learned by both models, tables have the published form, mistakes are told."""

import pytest
import torch

import variform as vf
from variform.dialects.xformers.benchmarks import benchmark_pytorch_transformer as benchmark

CPU = torch.device("cpu")


@pytest.mark.parametrize("make", [benchmark.xformers_model, benchmark.pytorch_model])
def test_both_models_learn_the_task(make: type) -> None:
    torch.manual_seed(0)
    model = make(32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    batch, target = torch.randn(2, 9, 32), 1.0
    before = benchmark.evaluate(model, batch, target)
    lines: list[str] = []
    losses = benchmark.train(model, optimizer, "name", 30, lambda: (batch, target), report=lines.append)
    assert benchmark.evaluate(model, batch, target) < 0.5 * before
    assert len(losses) == len(lines) == 30
    assert lines[3] == f"name - step 3: loss {losses[3]:.4f}"


def test_models_have_the_same_size() -> None:
    makers = (benchmark.xformers_model, benchmark.pytorch_model)
    sizes = [sum(p.numel() for p in make(64).parameters()) for make in makers]
    assert sizes[0] == sizes[1]


def test_the_tables_are_those_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--shapes", "2x8x16", "1x8x32", "--steps", "1"])
    printed = capsys.readouterr().out
    assert "xformers (2, 8, 16) - step 0: loss" in printed
    assert "--- Transformer training benchmark - runtime ---" in printed
    assert "| Units: MB | emb 16 - heads 8 | emb 32 - heads 8 |" in printed


@pytest.mark.parametrize("text", ["2x8", "axbxc", "0x8x16", "1x8x12"])
def test_bad_shapes_are_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(vf.ConfigError):
        benchmark.read_shape(text)
    with pytest.raises(SystemExit):
        benchmark.main(["--shapes", text])
    assert "--shapes" in capsys.readouterr().err


def test_autocast_computes_in_half_precision() -> None:
    found = benchmark.compare((1, 8, 16), 1, CPU, autocast=True)
    assert all(result.seconds > 0 and result.megabytes > 0 for result in found)
