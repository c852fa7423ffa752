"""Where the tasks' examples come from: generated, from images, or from files in the form of LRA's release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from variform.dialects.xformers.benchmarks.LRA.config import ListOpsDataset, Settings
from variform.dialects.xformers.benchmarks.LRA.listops import IDS, generated
from variform.dialects.xformers.benchmarks.LRA.rows import Rows, Split
from variform.errors import ConfigError
from variform.train.images import NAMES, load_images
from variform.train.text import cache_folder

FORMS = {
    "listops": "files basic_train.tsv, basic_val.tsv and basic_test.tsv with the columns Source and Target",
    "text": "the folders train and test of the IMDb reviews, with files pos/*.txt and neg/*.txt",
    "retrieval": "files new_aan_pairs.train.tsv, .eval.tsv and .test.tsv, lines of label, id1, id2, text1 and text2",
    "pathfinder32": "folders LEVEL/metadata of *.npy text files and LEVEL/imgs of .png images",
}
DEFAULTS = {"text": "aclImdb", "retrieval": "tsv_data", "pathfinder32": "pathfinder32"}
DEV_SHARE = 10
"""One in so many training examples chooses the checkpoint, where the files have no split for it."""


def load(settings: Settings, folder: str | Path = ".") -> tuple[Split, Split, Split]:
    """The examples to learn from, to choose the checkpoint by, and to be judged on.

    Args:
        settings: of the task.
        folder: where files are.

    Raises:
        ConfigError: no such files, a damaged one, or fewer examples than asked for.
    """
    data, task = settings.dataset, settings.task
    if task == "listops" and isinstance(data, ListOpsDataset) and data.source is None:
        counts = (data.train or 96_000, data.dev or 2_000, data.test or 2_000)
        splits = generated(data, counts, cache_folder() / "lra")
        return splits[0], splits[1], splits[2]
    if task == "image":
        return _counted(settings, *_images(data.source or NAMES[0]))
    path = find(settings, folder)
    if task == "listops":
        return _counted(settings, *(_listops(path / f"basic_{name}.tsv") for name in ("train", "val", "test")))
    if task == "retrieval":
        files = (path / f"new_aan_pairs.{name}.tsv" for name in ("train", "eval", "test"))
        return _counted(settings, *(_pairs(file) for file in files))
    if task == "text":
        return _counted(settings, *(_shuffled(_reviews(path / part), data.seed) for part in ("train", "test")))
    whole = _shuffled(_pathfinder(path), data.seed)
    tenth = len(whole.labels) // 10
    first, second = len(whole.labels) - 2 * tenth, len(whole.labels) - tenth
    return _counted(settings, whole.cut(0, first), whole.cut(first, second), whole.cut(second, len(whole.labels)))


def find(settings: Settings, folder: str | Path = ".") -> Path:
    """The folder of a task's files.

    Raises:
        ConfigError: it is not there; the message says where it was looked for and what it has to hold.
    """
    task, _, level = settings.task.partition("-")
    path = Path(folder).expanduser() / (settings.dataset.source or DEFAULTS[task]) / level
    if not path.is_dir():
        hint = f"it holds {FORMS[task].replace('LEVEL', level)}; say where with --data or dataset.source"
        raise ConfigError(f"there is no folder {str(path)!r}", path=f"{task}.dataset.source", hint=hint)
    return path


def needs_files(settings: Settings) -> bool:
    """Whether the task is read from files of the user."""
    return settings.task != "image" and (settings.task != "listops" or settings.dataset.source is not None)


def _counted(settings: Settings, *splits: Split) -> tuple[Split, Split, Split]:
    """As many examples as asked for; where there is no split to choose by, the end of the training examples is it."""
    data = settings.dataset
    if len(splits) == 2:
        train, test = splits
        size = data.dev or len(train.labels) // DEV_SHARE
        if size + (data.train or 1) > len(train.labels):
            message = f"there are {len(train.labels)} training examples, of which dev are held out"
            asked = f"train {data.train or 'all'}, dev {size}"
            raise ConfigError(message, path=f"{settings.task}.dataset", value=asked, hint="ask for fewer")
        border = len(train.labels) - size
        splits = (train.cut(0, border), train.cut(border, len(train.labels)), test)
    found = []
    for name, split, count in zip(("train", "dev", "test"), splits, (data.train, data.dev, data.test), strict=True):
        if count is not None and count > len(split.labels):
            message = f"there are only {len(split.labels)} examples"
            raise ConfigError(message, path=f"{settings.task}.dataset.{name}", value=count)
        found.append(split.cut(0, len(split.labels) if count is None else count))
    return found[0], found[1], found[2]


def _images(source: str) -> tuple[Split, Split]:
    images = load_images(source)
    answers = (images.train_classes, images.test_classes)
    train, test = (
        Split((Rows.of(list(pixels.flatten(1).numpy().astype(np.uint8))),), classes.numpy())
        for pixels, classes in zip(images.grey(), answers, strict=True)
    )
    return train, test


def _listops(file: Path) -> Split:
    rows, labels = [], []
    for number, (source, target) in _lines(file, 2):
        if number == 1:
            continue
        tokens = source.replace("(", " ").replace(")", " ").split()
        unknown = [token for token in tokens if token not in IDS]
        if unknown or not target.isdecimal():
            raise ConfigError(f"line {number} is no ListOps tree with its value", value=str(file))
        rows.append(np.array([IDS[token] for token in tokens], np.uint8))
        labels.append(int(target))
    return _split(file, [rows], labels)


def _pairs(file: Path) -> Split:
    first, second, labels = [], [], []
    for number, (label, _, _, one, other) in _lines(file, 5):
        try:
            labels.append(int(float(label)))
        except ValueError:
            raise ConfigError(f"line {number} does not begin with a label", value=str(file)) from None
        first.append(_bytes(one))
        second.append(_bytes(other))
    return _split(file, [first, second], labels)


def _reviews(folder: Path) -> Split:
    rows, labels = [], []
    for label, name in enumerate(("neg", "pos")):
        for file in sorted((folder / name).glob("*.txt")):
            rows.append(_bytes(file.read_text(encoding="utf-8")))
            labels.append(label)
    return _split(folder, [rows], labels)


def _pathfinder(folder: Path) -> Split:
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError("images are read with Pillow", hint="pip install 'variform[train]'") from None
    rows, labels = [], []
    for listing in sorted((folder / "metadata").glob("*.npy")):
        for line in listing.read_text(encoding="utf-8").splitlines():
            place, name, _, label, *_ = line.split(" ")
            file = folder / place / name
            if file.is_file() and file.stat().st_size:  # the release has empty files
                with Image.open(file) as image:
                    rows.append(np.asarray(image.convert("L"), np.uint8).reshape(-1))
                labels.append(int(label))
    return _split(folder, [rows], labels)


def _lines(file: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file with their numbers, cut at tabs."""
    if not file.is_file():
        raise ConfigError(f"there is no file {str(file)!r}", hint=f"it has {columns} columns with tabs between them")
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != columns:
                message = f"line {number} has {len(cells)} columns with tabs between them, not {columns}"
                raise ConfigError(message, value=str(file))
            yield number, cells


def _bytes(text: str) -> np.ndarray:
    """Bytes as ids from 1 on: 0 pads."""
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int16) + np.int16(1)


def _split(place: Path, inputs: list[list[np.ndarray]], labels: list[int]) -> Split:
    if not labels:
        raise ConfigError("there are no examples", value=str(place))
    empty = next((i for rows in inputs for i, row in enumerate(rows) if not len(row)), None)
    if empty is not None:
        raise ConfigError(f"example {empty} is empty", value=str(place))
    return Split(tuple(Rows.of(rows) for rows in inputs), np.array(labels, np.int64))


def _shuffled(split: Split, seed: int) -> Split:
    order = np.random.RandomState(seed).permutation(len(split.labels))
    return Split(tuple(Rows.of([rows[i] for i in order]) for rows in split.inputs), split.labels[order])
