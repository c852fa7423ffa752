"""Images from a package, from CIFAR-10's own files, from arrays; and what is wrong with them."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import variform as vf
from variform.train import images
from variform.train.images import CIFAR_TEST, CIFAR_TRAIN, load_images, moved


def write_cifar(folder: Path, each: int = 3) -> None:
    """CIFAR-10 in small: image i of file f is of class (f + i) % 10, and red all over."""
    for number, name in enumerate((*CIFAR_TRAIN, *CIFAR_TEST)):
        rows = np.zeros((each, 3073), np.uint8)
        rows[:, 0] = (np.arange(each) + number) % 10
        rows[:, 1:1025] = np.arange(each)[:, None] * 40 + 10
        (folder / name).write_bytes(rows.tobytes())


def test_digits() -> None:
    found = load_images("digits")
    assert found.train.shape == (1437, 1, 8, 8)
    assert found.test.shape == (360, 1, 8, 8)
    assert found.classes == 10
    assert found.train.mean().abs() < 1e-3
    assert abs(float(found.train.std()) - 1) < 1e-3
    assert torch.equal(load_images().test, found.test)


@pytest.mark.parametrize("form", ["folder", "archive", "folder of the archive"])
def test_cifar_from_the_users_path(tmp_path: Path, form: str) -> None:
    write_cifar(tmp_path)
    source = tmp_path
    if form != "folder":
        source = tmp_path / "kept"
        source.mkdir()
        with tarfile.open(source / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for name in (*CIFAR_TRAIN, *CIFAR_TEST):
                archive.add(tmp_path / name, f"cifar-10-batches-bin/{name}")
    if form == "archive":
        source = source / "cifar-10-binary.tar.gz"
    found = load_images(str(source))
    assert found.train.shape == (15, 3, 32, 32)
    assert found.test.shape == (3, 3, 32, 32)
    assert found.train_classes.tolist() == [(f + i) % 10 for f in range(5) for i in range(3)]
    assert found.test_classes.tolist() == [5, 6, 7]
    assert found.train[0, 0, 0, 0] < found.train[2, 0, 0, 0]  # the first colour is red
    assert not found.train[:, 1:].any()


def test_cifar_by_name_is_fetched_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        for name in (*CIFAR_TRAIN, *CIFAR_TEST):
            archive.add(tmp_path / name, name)
    content = (tmp_path / "cifar.tar.gz").read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "CIFAR_URL", (tmp_path / "cifar.tar.gz").as_uri())
    with pytest.raises(vf.ConfigError, match="sha256"):
        load_images("cifar10")
    monkeypatch.setattr(images, "CIFAR_SHA256", hashlib.sha256(content).hexdigest())
    assert load_images("cifar10").test.shape == (3, 3, 32, 32)


def test_arrays(tmp_path: Path) -> None:
    x = np.random.RandomState(0).randint(0, 255, (6, 4, 4), np.uint8)
    np.savez(tmp_path / "some.npz", x_train=x, y_train=np.arange(6) % 3, x_test=x[:2], y_test=np.arange(2))
    found = load_images(str(tmp_path / "some.npz"))
    assert found.train.shape == (6, 1, 4, 4)
    assert found.classes == 3


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(vf.ConfigError, match=r"no such images.*digits"):
        load_images("digit")
    with pytest.raises(vf.ConfigError, match=r"no data_batch_1.bin"):
        load_images(str(tmp_path))
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(b"12")
    with pytest.raises(vf.ConfigError, match=r"data_batch_3\.bin is damaged"):
        load_images(str(tmp_path))
    (tmp_path / "bad.npz").write_bytes(b"12")
    with pytest.raises(vf.ConfigError, match="cannot read the file"):
        load_images(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "few.npz", x_train=np.zeros((2, 4, 4)))
    with pytest.raises(vf.ConfigError, match="has no y_train, x_test, y_test"):
        load_images(str(tmp_path / "few.npz"))
    np.savez(tmp_path / "odd.npz", x_train=np.zeros((2, 4)), y_train=[0, 1], x_test=np.zeros((1, 4)), y_test=[0])
    with pytest.raises(vf.ConfigError, match=r"x_train \[2, 4\]"):
        load_images(str(tmp_path / "odd.npz"))
    (tmp_path / "bad.tar.gz").write_bytes(b"12")
    with pytest.raises(vf.ConfigError, match="cannot read the archive"):
        load_images(str(tmp_path / "bad.tar.gz"))


def test_images_move_as_a_whole() -> None:
    torch.manual_seed(0)
    x = torch.arange(1.0, 26).view(1, 1, 5, 5).repeat(64, 1, 1, 1)
    assert torch.equal(moved(x, 0, False), x)
    shifted = moved(x, 1, False)
    forms = {tuple(image.flatten().tolist()) for image in shifted}
    assert len(forms) == 9
    assert all(13.0 in form for form in forms)
    mirrored = moved(x, 0, True)
    assert all(torch.equal(image, x[0]) or torch.equal(image, x[0].flip(-1)) for image in mirrored)
    assert len({tuple(image.flatten().tolist()) for image in mirrored}) == 2


def test_grey_pixels_are_those_that_were_read(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    arrays = {"x_train": rng.randint(0, 256, (5, 4, 4, 3)), "x_test": rng.randint(0, 256, (3, 4, 4, 3))}
    np.savez(tmp_path / "own.npz", y_train=np.arange(5), y_test=np.arange(3), **arrays)
    grey = load_images(str(tmp_path / "own.npz")).grey()
    for found, given in zip(grey, arrays.values(), strict=True):
        expected = given @ np.array([0.2989, 0.5870, 0.1140])
        assert np.abs(found.numpy() - expected).max() <= 0.5 + 1e-3
    np.savez(
        tmp_path / "own.npz", y_train=np.arange(5), y_test=np.arange(3), **{k: a[..., :2] for k, a in arrays.items()}
    )
    with pytest.raises(vf.ConfigError, match="no grey form"):
        load_images(str(tmp_path / "own.npz")).grey()
