"""The fenced blocks of a Markdown file, and the script that its Python blocks make.

`python -m tests.snippets.markdown README.md` prints that script.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>`{3,})(?P<language>[\w+-]*)[ ]*(?P<info>.*)$")


@dataclass(frozen=True)
class Block:
    language: str
    info: str
    code: str
    line: int  # of the first line of code, from 1
    heading: str


def blocks(path: Path) -> list[Block]:
    found: list[Block] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    heading, index = "", 0
    while index < len(lines):
        if title := re.match(r"#+ (.*)", lines[index]):
            heading = title[1].strip()
        fence = FENCE.match(lines[index])
        index += 1
        if fence is None:
            continue
        start = index
        while index < len(lines) and lines[index].strip() != fence["ticks"]:
            index += 1
        if index == len(lines):
            raise ValueError(f"{path}:{start}: this fence is never closed")
        code = "\n".join(line.removeprefix(fence["indent"]) for line in lines[start:index])
        found.append(Block(fence["language"], fence["info"].strip(), code, start + 1, heading))
        index += 1
    return found


def script(path: Path) -> str:
    """The Python blocks of `path` as one file, each on the lines where it stands in the document."""
    lines: list[str] = []
    for block in blocks(path):
        if block.language == "python":
            lines += [""] * (block.line - 1 - len(lines)) + block.code.split("\n")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(script(Path(sys.argv[1])), end="")
