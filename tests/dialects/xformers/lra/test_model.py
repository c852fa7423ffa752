"""The classifier: padding, pooling, two inputs; batches, shares of processes, baselines, the schedule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import variform as vf
from tests.dialects.xformers.lra.settings import BLOCK, write
from variform.dialects.xformers.benchmarks.LRA.config import Settings, read_settings
from variform.dialects.xformers.benchmarks.LRA.model import Classifier, Task, blocks
from variform.dialects.xformers.benchmarks.LRA.rows import Batch, Collate, Examples, Rows, Split, Turns, baselines
from variform.dialects.xformers.benchmarks.LRA.run_tasks import prepare


def settings(folder: Path, task: str = "listops", **changes: Any) -> Settings:
    return read_settings(write(folder, **changes), task)


def split(*rows: list[int], labels: tuple[int, ...] = ()) -> Split:
    found = Rows.of([np.array(row, np.uint8) for row in rows])
    return Split((found,), np.array(labels or range(len(rows))))


def batch(*rows: list[int], **more: Any) -> Batch:
    examples = Examples(split(*rows), 64)
    return Collate(**more)([examples[i] for i in range(len(rows))])


@pytest.mark.parametrize("attention", ["scaled_dot_product", "nystrom", "favor", "local", "linear", "mamba"])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_padding_changes_nothing(tmp_path: Path, attention: str, mode: str) -> None:
    model = Classifier(settings(tmp_path, model__pooling_mode=mode), attention).eval().double()
    token = 257 if mode == "cls" else None
    rows = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]
    together = batch(*rows, class_token=token)
    scores = model(together.ids, together.lengths)
    for row, score in zip(rows, scores, strict=True):
        alone = batch(row, class_token=token)
        assert torch.allclose(model(alone.ids, alone.lengths)[0], score, atol=1e-10)


def test_black_pixels_are_tokens(tmp_path: Path) -> None:
    model = Classifier(settings(tmp_path, "image"), "scaled_dot_product").eval()
    assert batch([0, 0, 5]).lengths.tolist() == [3]
    short, long = batch([5, 0]), batch([5, 0, 0, 0])
    assert not torch.allclose(model(short.ids, short.lengths), model(long.ids, long.lengths), atol=1e-4)


def test_the_mean_is_of_real_tokens(tmp_path: Path) -> None:
    model = Classifier(settings(tmp_path), "scaled_dot_product").eval()
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    together = batch([3, 1, 4, 1], [2, 7])
    real = torch.arange(4) < together.lengths[:, None]
    model(together.ids, together.lengths)
    y = model.norm(model.encoder(together.ids, encoder_key_padding_mask=real))
    assert torch.allclose(seen[0], torch.stack([y[0].mean(0), y[1, :2].mean(0)]), atol=1e-6)


def test_two_inputs_are_compared(tmp_path: Path) -> None:
    model = Classifier(settings(tmp_path, "retrieval"), "scaled_dot_product", inputs=2).eval()
    pairs = split([3, 1, 4], [1, 5])
    examples = Examples(Split((pairs.inputs[0], split([9, 2], [6, 5, 3, 5]).inputs[0]), pairs.labels), 64)
    found = Collate()([examples[i] for i in range(2)])
    assert found.ids.tolist() == [[3, 1, 4, 0], [1, 5, 0, 0], [9, 2, 0, 0], [6, 5, 3, 5]]
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert model(found.ids, found.lengths).shape == (2, 10)
    one, other, product, difference = seen[0].chunk(4, -1)
    assert torch.equal(product, one * other)
    assert torch.equal(difference, one - other)
    alone = batch([1, 5])
    y = model.norm(model.encoder(alone.ids))
    assert torch.allclose(one[1], y[0].mean(0), atol=1e-6)


def test_attentions_without_padding_see_rows_of_one_length(tmp_path: Path) -> None:
    small = settings(tmp_path)
    assert prepare(small, "scaled_dot_product").padding == "masked"
    found = prepare(small, "fourier_mix")
    assert (found.padding, found.collate.length) == ("seen", 64)
    assert prepare(settings(tmp_path, "image", model__common__seq_len=64), "fourier_mix").padding == "none"
    found = prepare(small, "fourier_mix")
    rows = found.collate([Examples(found.splits[0], 64)[i] for i in range(4)])
    assert rows.ids.shape == (4, 64)
    assert found.model(rows.ids, rows.lengths).isfinite().all()


def test_a_length_that_is_no_square_is_refused(tmp_path: Path) -> None:
    assert prepare(settings(tmp_path), "pooling").padding == "seen"
    with pytest.raises(vf.ConfigError, match=r"square lengths alone.*49 or 64"):
        prepare(settings(tmp_path, model__common__seq_len=60), "pooling")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"model__common__vocab_size": 15}, "listops.model.common.vocab_size"),
        ({"model__common__num_classes": 4}, "listops.model.common.num_classes"),
        ({"model__common__seq_len": 12}, "listops.model.common.seq_len"),
    ],
)
def test_sizes_that_the_examples_exceed_are_refused(tmp_path: Path, changes: dict[str, Any], path: str) -> None:
    with pytest.raises(vf.ConfigError) as error:
        prepare(settings(tmp_path, **changes), "scaled_dot_product")
    assert error.value.path == path


def test_the_class_token_has_an_id_of_its_own(tmp_path: Path) -> None:
    more = {"model__pooling_mode": "cls", "model__common__vocab_size": 17}
    assert prepare(settings(tmp_path, **more), "local").collate.class_token == 16
    more["model__common__vocab_size"] = 16
    with pytest.raises(vf.ConfigError, match="17 different tokens, the class token included"):
        prepare(settings(tmp_path, **more), "local")


def test_blocks_get_the_common_sizes_and_the_attentions_own_keys(tmp_path: Path) -> None:
    found = blocks(settings(tmp_path, model__common__dropout=0.25), "local")[0]
    attention = found["multi_head_config"]["attention"]
    assert attention["window_size"] == 3
    assert (attention["name"], attention["dropout"], attention["seq_len"], attention["dim_head"]) == (
        "local",
        0.25,
        64,
        8,
    )
    assert found["feedforward_config"]["dropout"] == 0.25
    assert "window_size" not in blocks(settings(tmp_path), "nystrom")[0]["multi_head_config"]["attention"]
    assert "dim_model" not in BLOCK


def test_a_key_that_an_attention_needs_is_asked_for_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(vf.ConfigError) as error:
        prepare(settings(tmp_path), "longformer")
    assert error.value.path == "listops.model.xformer.0.multi_head_config.attention.window"
    assert error.value.hint.endswith("model.extra_settings.attention.longformer")


def test_reversible_blocks_keep_one_stream(tmp_path: Path) -> None:
    reversible = settings(tmp_path, model__xformer=[{**BLOCK, "reversible": True, "num_layers": 2}])
    model = Classifier(reversible, "scaled_dot_product")
    assert all(block.reversible for block in model.encoder.encoders)
    rows = batch([3, 1, 4, 1], [2, 7])
    model(rows.ids, rows.lengths).sum().backward()
    assert all(p.grad is not None for p in model.encoder.encoders[1].parameters())


def test_long_rows_are_cut() -> None:
    assert Examples(split([1, 2, 3, 4]), 3)[0][0][0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("count", "world"), [(7, 1), (7, 2), (7, 3), (2, 4)])
def test_every_example_is_judged_once(count: int, world: int) -> None:
    shares = [list(Turns(count, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for i in share if i >= 0) == list(range(count))


def test_examples_that_fill_up_do_not_count() -> None:
    assert Examples(split([1, 2], [3, 4], labels=(5, 6)), 8)[-1][1] == -100


def test_baselines_learn_from_the_training_set() -> None:
    train = split([1], [1], [1], [2], [2], labels=(7, 7, 3, 4, 4))
    test = split([1], [2], [2], [3], labels=(7, 4, 7, 4))
    assert baselines(train, test, False) == {"majority": 0.5}
    assert baselines(train, test, True) == {"majority": 0.5, "root_operator": 0.75}


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_a_warmup_it_falls_at_once(tmp_path: Path, warmup: int) -> None:
    small = settings(tmp_path, training__warmup=warmup)
    schedule = Task(Classifier(small, "local"), small).configure_optimizers()["lr_scheduler"]["scheduler"]
    assert 0.7e-3 < schedule.get_last_lr()[0] <= 1e-3


def test_the_learning_rate_rises_and_falls_by_steps(tmp_path: Path) -> None:
    more = {"training__num_train_steps": 10, "training__warmup": 4, "training__weight_decay": 0.3}
    small = settings(tmp_path, **more)
    found = Task(Classifier(small, "local"), small).configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    assert found["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        optimizer.step()
        if len(rates) < 10:
            schedule.step()
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) == 3
    steps = np.diff(rates)
    assert steps[:3] == pytest.approx(steps[0])
    assert steps[3:] == pytest.approx(steps[-1])
    assert (optimizer.defaults["eps"], optimizer.defaults["weight_decay"]) == (1e-6, 0.3)
