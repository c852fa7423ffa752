"""Examples from files in the form of LRA's release, from images; held-out parts; what is missing or damaged."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import variform as vf
from tests.dialects.xformers.lra.settings import write
from variform.dialects.xformers.benchmarks.LRA.config import TASKS, Settings, read_settings
from variform.dialects.xformers.benchmarks.LRA.listops import IDS
from variform.dialects.xformers.benchmarks.LRA.sources import find, load, needs_files


def settings(folder: Path, task: str, **changes: object) -> Settings:
    return read_settings(write(folder), task, None, {f"dataset:{k}": v for k, v in changes.items()})


def write_reviews(folder: Path) -> None:
    for part, count in (("train", 6), ("test", 3)):
        for label in ("neg", "pos"):
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                (folder / part / label / f"{i}.txt").write_text(f"{label} ä{i}", encoding="utf-8")


def write_pairs(folder: Path) -> None:
    folder.mkdir()
    for part, count in (("train", 4), ("eval", 2), ("test", 3)):
        lines = [f'{i % 2}.0\tP{i}\tQ{i}\tone "{i}\tother {part}' for i in range(count)]
        (folder / f"new_aan_pairs.{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_pathfinder(folder: Path, count: int = 20) -> None:
    (folder / "metadata").mkdir(parents=True)
    (folder / "imgs" / "0").mkdir(parents=True)
    lines = []
    for i in range(count):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / "imgs" / "0" / f"sample_{i}.png")
        lines.append(f"imgs/0 sample_{i}.png {i} {i % 2} 1.0 2.0")
    (folder / "imgs" / "0" / "sample_20.png").write_bytes(b"")
    (folder / "metadata" / "0.npy").write_text("\n".join([*lines, "imgs/0 sample_20.png 20 1 1.0"]), encoding="utf-8")


def test_reviews(tmp_path: Path) -> None:
    write_reviews(tmp_path / "aclImdb")
    train, dev, test = load(settings(tmp_path, "text", train=8, dev=4, test=6), tmp_path)
    assert [len(split.labels) for split in (train, dev, test)] == [8, 4, 6]
    texts = [
        bytes(int(b) - 1 for b in split.inputs[0][i]).decode()
        for split in (train, dev)
        for i in range(len(split.labels))
    ]
    labels = np.concatenate([train.labels, dev.labels])
    assert sorted(texts) == sorted(f"{label} ä{i}" for label in ("neg", "pos") for i in range(6))
    assert [text[:3] for text in texts] == [("neg", "pos")[label] for label in labels]
    assert {len(set(train.labels)), len(set(dev.labels))} != {1}


def test_what_chooses_the_checkpoint_is_not_what_it_is_judged_on(tmp_path: Path) -> None:
    write_reviews(tmp_path / "aclImdb")
    train, dev, test = load(settings(tmp_path, "text", train=None, dev=None, test=None), tmp_path)
    assert [len(split.labels) for split in (train, dev, test)] == [11, 1, 6]
    with pytest.raises(vf.ConfigError, match="12 training examples, of which dev are held out"):
        load(settings(tmp_path, "text", train=9, dev=4, test=6), tmp_path)


def test_pairs(tmp_path: Path) -> None:
    write_pairs(tmp_path / "tsv_data")
    train, dev, test = load(settings(tmp_path, "retrieval", train=4, dev=2, test=3), tmp_path)
    assert [list(split.labels) for split in (train, dev, test)] == [[0, 1, 0, 1], [0, 1], [0, 1, 0]]
    shown = [bytes(int(b) - 1 for b in rows[1]) for rows in dev.inputs]
    assert shown == [b'one "1', b"other eval"]


def test_pathfinder(tmp_path: Path) -> None:
    write_pathfinder(tmp_path / "pathfinder32" / "curv_baseline")
    found = settings(tmp_path, "pathfinder32-curv_baseline", train=16, dev=2, test=2)
    splits = load(found, tmp_path)
    pixels = [int(split.inputs[0][i][5]) for split in splits for i in range(len(split.labels))]
    assert sorted(pixels) == list(range(20)) != pixels
    assert [pixel % 2 for pixel in pixels] == [int(label) for split in splits for label in split.labels]
    assert np.array_equal(load(found, tmp_path)[0].labels, splits[0].labels), "a seed repeats the split"
    other = settings(tmp_path, "pathfinder32-curv_baseline", train=16, dev=2, test=2, seed=1)
    assert load(other, tmp_path)[0].inputs[0].flat.tolist() != splits[0].inputs[0].flat.tolist()


def test_trees(tmp_path: Path) -> None:
    (tmp_path / "trees").mkdir()
    for part in ("train", "val", "test"):
        text = "Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t9\n( ( [SM 3 ) ] )\t3\n"
        (tmp_path / "trees" / f"basic_{part}.tsv").write_text(text, encoding="utf-8")
    train, _, _ = load(settings(tmp_path, "listops", source="trees", train=2, dev=1, test=None), tmp_path)
    assert train.inputs[0][0].tolist() == [IDS[token] for token in ("[MAX", "2", "9", "]")]
    assert train.labels.tolist() == [9, 3]


def test_images_are_grey_pixels(tmp_path: Path) -> None:
    train, dev, test = load(settings(tmp_path, "image", train=None, dev=37, test=None))
    assert [len(split.labels) for split in (train, dev, test)] == [1400, 37, 360]
    assert set(train.inputs[0].lengths()) == {64}
    assert (train.inputs[0].flat.min(), train.inputs[0].highest()) == (0, 16)


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("listops", "image")])
def test_missing_files_are_told_with_their_form(tmp_path: Path, task: str) -> None:
    found = settings(tmp_path, task)
    assert needs_files(found)
    with pytest.raises(vf.ConfigError, match=r"it holds .*--data"):
        find(found, tmp_path)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "tsv_data"
    write_pairs(folder)
    found = settings(tmp_path, "retrieval", train=4, dev=2, test=3)
    file = folder / "new_aan_pairs.eval.tsv"
    for content, message in (
        ("1\ta\tb\tc\n", "line 1 has 4 columns"),
        ("x\ta\tb\tc\td\n", "line 1 does not begin with a label"),
        ("1\ta\tb\t\td\n", "example 0 is empty"),
        ("", "there are no examples"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(vf.ConfigError, match=message):
            load(found, tmp_path)
    file.unlink()
    with pytest.raises(vf.ConfigError, match="there is no file"):
        load(found, tmp_path)


def test_more_examples_than_there_are_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "tsv_data")
    with pytest.raises(vf.ConfigError) as error:
        load(settings(tmp_path, "retrieval", train=5), tmp_path)
    assert error.value.path == "retrieval.dataset.train"
