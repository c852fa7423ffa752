"""Images to train on: scikit-learn's digits, CIFAR-10 from a folder or its canonical archive, or a file of arrays."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from variform.errors import ConfigError, did_you_mean
from variform.train.text import cache_folder, fetch

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = ("test_batch.bin",)
NAMES = ("digits", "cifar10")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Images:
    """Images and their classes, split for training and testing.

    Shapes:
        train, test: [N, channels, height, width] floats of mean 0 and deviation 1 a channel over the training images
        train_classes, test_classes: [N] integers

    Args:
        train: images to learn from.
        train_classes: what they show.
        test: images to be judged on.
        test_classes: what they show.
        classes: how many classes there are.
        mean: of the pixels of each channel of the training images, as they were read.
        deviation: theirs.
    """

    train: Tensor
    train_classes: Tensor
    test: Tensor
    test_classes: Tensor
    classes: int
    mean: Tensor
    deviation: Tensor

    def grey(self) -> tuple[Tensor, Tensor]:
        """The pixels in grey, as they were read: training and test images.

        Shapes:
            [N, height, width] integers from 0 to 255; the weights of red, green and blue are 0.2989, 0.587 and 0.114
        """
        weights = torch.tensor([1.0] if self.train.shape[1] == 1 else [0.2989, 0.5870, 0.1140])
        if len(weights) != self.train.shape[1]:
            raise ConfigError(f"images of {self.train.shape[1]} channels have no grey form: 1 or 3 are needed")
        read = ((t * self.deviation + self.mean) * weights[:, None, None] for t in (self.train, self.test))
        train, test = (t.sum(1).round().clamp(0, 255).long() for t in read)
        return train, test


def load_images(source: str = "digits") -> Images:
    """Read images.

    Args:
        source: `digits` (1,797 images of 8 x 8, which scikit-learn ships; 80 % to learn from), `cifar10` (60,000 images
            of 32 x 32, downloaded once), a folder with CIFAR-10's binary files or its archive, or an .npz file with
            `x_train`, `y_train`, `x_test`, `y_test` (images [N, H, W] or [N, H, W, channels]).

    Raises:
        ConfigError: nothing there, a damaged file, not installed, not downloadable, or a wrong checksum.
    """
    if source == "digits":
        return _digits()
    if source == "cifar10":
        return _cifar(fetch(CIFAR_URL, CIFAR_SHA256, cache_folder() / "cifar-10-binary.tar.gz"))
    path = Path(source).expanduser()
    if path.suffix == ".npz" and path.is_file():
        return _arrays(path)
    if path.is_dir() or path.is_file():
        return _cifar(path)
    raise ConfigError("there are no such images", value=source, hint=did_you_mean(source, NAMES))


def moved(images: Tensor, shift: int, flip: bool) -> Tensor:
    """Each image moved by up to `shift` pixels in any direction, and with `flip` mirrored half of the time.

    Shapes:
        [N, channels, height, width] -> the same
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4)
    rows, columns = (torch.randint(0, 2 * shift + 1, (count, 1), device=images.device) for _ in range(2))
    rows = rows + torch.arange(height, device=images.device)
    columns = columns + torch.arange(width, device=images.device)
    each = torch.arange(count, device=images.device)[:, None, None]
    result = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if not flip:
        return result
    mirrored = torch.rand(count, 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, result.flip(-1), result)


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("the digits come with scikit-learn", hint="pip install 'variform[examples]'") from None
    found = load_digits()
    order = np.random.RandomState(0).permutation(len(found.target))
    x, y = found.images[order][..., None], found.target[order]
    count = len(y) * 4 // 5
    return _images(x[:count], y[:count], x[count:], y[count:])


def _cifar(path: Path) -> Images:
    reader = _from_folder(path) if path.is_dir() else _from_archive(path)
    parts = [[_batch(reader(name), name) for name in names] for names in (CIFAR_TRAIN, CIFAR_TEST)]
    train, test = ([np.concatenate(arrays) for arrays in zip(*part, strict=True)] for part in parts)
    return _images(train[0], train[1], test[0], test[1])


def _from_folder(path: Path) -> Callable[[str], bytes]:
    archive = next(iter(sorted(path.glob("cifar-10-binary.tar*"))), None)
    files = {file.name: file for file in sorted(path.rglob("*.bin"))}

    def read(name: str) -> bytes:
        if name not in files:
            hint = f"{CIFAR_TRAIN[0]} ... {CIFAR_TEST[0]} are looked for, or cifar-10-binary.tar.gz"
            raise ConfigError(f"there is no {name} in this folder", value=str(path), hint=hint)
        return files[name].read_bytes()

    return read if files or archive is None else _from_archive(archive)


def _from_archive(path: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            with tarfile.open(path) as archive:
                member = next((one for one in archive if Path(one.name).name == name), None)
                content = None if member is None else archive.extractfile(member)
                if content is None:
                    raise ConfigError(f"the archive has no {name}", value=str(path))
                return content.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ConfigError(f"cannot read the archive: {error}", value=str(path)) from None

    return read


def _batch(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One file: for each image a byte for its class, and 32 x 32 bytes for each colour."""
    size = 1 + 3 * 32 * 32
    if not content or len(content) % size:
        raise ConfigError(f"{name} is damaged: {len(content)} bytes are no whole number of images")
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]


def _arrays(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as found:
            missing = [name for name in ARRAYS if name not in found]
            if missing:
                raise ConfigError(
                    f"the file has no {', '.join(missing)}; it needs {', '.join(ARRAYS)}", value=str(path)
                )
            x, y, x_test, y_test = (found[name] for name in ARRAYS)
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot read the file: {error}", value=str(path)) from None
    if x.ndim not in (3, 4) or len(x) != len(y) or len(x_test) != len(y_test) or x.shape[1:] != x_test.shape[1:]:
        shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in zip(ARRAYS, (x, y, x_test, y_test), strict=True))
        raise ConfigError(f"images [N, H, W] or [N, H, W, channels] and a class each are needed, not {shapes}")
    x, x_test = (a[..., None] if a.ndim == 3 else a for a in (x, x_test))
    return _images(x, y, x_test, y_test)


def _images(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> Images:
    train, test = (torch.from_numpy(np.ascontiguousarray(a, np.float32)).permute(0, 3, 1, 2) for a in (x, x_test))
    mean = train.mean((0, 2, 3), keepdim=True)
    deviation = train.std((0, 2, 3), keepdim=True).clamp(min=1e-6)
    train, test = (((t - mean) / deviation).contiguous() for t in (train, test))
    classes = [torch.from_numpy(np.ascontiguousarray(a, np.int64)) for a in (y, y_test)]
    highest = max(int(c.max()) for c in classes)
    return Images(train, classes[0], test, classes[1], highest + 1, mean, deviation)
