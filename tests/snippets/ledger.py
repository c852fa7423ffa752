"""The code blocks that users of the three systems already have, and what becomes of each.

`seeds/*.md` holds the blocks as published, one heading a block; `seeds/ledger.yaml` says for every block what it is
and what is checked; `seeds/substitutions.yaml` is the only place where a block may be changed.
"""

import ast
import contextlib
import inspect
import io
import re
import sys
import types
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.interop.with_timm import declare_operators
from tests.snippets.markdown import Block, blocks

ROOT = Path(__file__).parents[2]
SEEDS = Path(__file__).parent / "seeds"
KINDS = {"run", "signature", "output", "fragment", "command", "config", "excluded"}


@dataclass(frozen=True)
class Entry:
    """One row of the ledger. `block@variant` is a second run of a block, with further substitutions of its own."""

    id: str
    kind: str
    why: str = ""  # for everything but run and command: why it is not simply run
    of: Any = (
        None  # signature: the object or {name: object}; output, fragment: the block it belongs to; config: the file
    )
    after: list[str] = field(default_factory=list)  # run: blocks of the same document to run first, in one namespace
    check: list[str] = field(
        default_factory=list
    )  # run: expressions that must be true; `_` is the last expression's value
    prints: str = ""  # run: the output block it must print
    match: str = "exact"  # how: exact, numbers (any number may differ), or tree (a printed model may show more)
    meta: bool = False  # run under the meta device: shapes and parameters, no memory
    process: bool = False  # run in a process of its own: it registers parts or patches classes
    vision: bool = False  # likewise, with timm on the path
    slow: bool = False
    xfail: str = ""  # what is missing; the test must fail until it is there

    @property
    def document(self) -> str:
        return self.id.split("/")[0]

    @property
    def block_id(self) -> str:
        return self.id.split("@")[0]


@cache
def code_blocks() -> dict[str, Block]:
    """The published blocks, by document/heading."""
    found = [(f"{path.stem}/{block.heading}", block) for path in documents() for block in blocks(path)]
    assert len(dict(found)) == len(found), "two blocks under one heading"
    return dict(found)


def documents() -> list[Path]:
    return sorted(path for path in SEEDS.glob("*.md") if path.name != "README.md")


@cache
def entries() -> dict[str, Entry]:
    data = yaml.safe_load((SEEDS / "ledger.yaml").read_text(encoding="utf-8"))
    rows = {f"{document}/{name}": row for document, named in data.items() for name, row in named.items()}
    return {name: Entry(id=name, **row) for name, row in rows.items()}


@cache
def substitutions() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load((SEEDS / "substitutions.yaml").read_text(encoding="utf-8"))
    return table


def rules(entry: Entry) -> list[dict[str, str]]:
    table = substitutions()
    everywhere = table["everywhere"] + ([] if torch.cuda.is_available() else table["without_cuda"])
    own = [rule for name in dict.fromkeys((entry.block_id, entry.id)) for rule in block_row(name).get("replace", [])]
    return own + everywhere


def block_row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = substitutions()["blocks"].get(name, {})
    return row


def source(entry: Entry) -> str:
    """The code that runs: the given names, then the block, with the substitutions that concern it."""
    code = code_blocks()[entry.block_id].code
    for rule in rules(entry):
        code = re.sub(rule["find"], rule["put"], code, flags=re.MULTILINE)
    given = block_row(entry.id).get("given", block_row(entry.block_id).get("given", ""))
    for rule in substitutions()["everywhere"]:
        given = re.sub(rule["find"], rule["put"], given, flags=re.MULTILINE)
    return f"{given}\n{code}" if given else code


def run(entry: Entry) -> None:
    """Run a block after those it continues, in a namespace of their own, and check what the ledger promises."""
    module = types.ModuleType("snippet")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    device = torch.device("meta") if entry.meta else contextlib.nullcontext()
    printed = io.StringIO()
    try:
        for name in entry.after:
            with contextlib.redirect_stdout(io.StringIO()):
                execute(entries()[f"{entry.document}/{name}"], module)
        with device, contextlib.redirect_stdout(printed):
            execute(entry, module)
        for expression in entry.check:
            assert eval(expression, vars(module)), f"{entry.id}: not true: {expression}"
    finally:
        del sys.modules[module.__name__]
    check_printed(entry, printed.getvalue())


def execute(entry: Entry, module: types.ModuleType) -> None:
    tree = ast.parse(source(entry), filename=entry.id)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        tree.body[-1] = ast.copy_location(ast.Assign([ast.Name("_", ast.Store())], last.value), last)
    exec(compile(ast.fix_missing_locations(tree), entry.id, "exec"), vars(module))


def check_printed(entry: Entry, printed: str) -> None:
    """What a run prints is the published output: the very text, or its lines in their order with other numbers."""
    if not entry.prints:
        return
    expected = code_blocks()[f"{entry.document}/{entry.prints}"].code
    if entry.match == "exact":
        assert lines(printed) == lines(expected)
        return
    got = iter([numberless(line) for line in lines(printed)])
    for line in filter(None, map(numberless, lines(expected))):
        assert line in got, f"{entry.id} does not print, after what came before: {line}"


def check_tree(expected: str, printed: str) -> None:
    """Printed models have the published classes, names, nesting and sizes; the lines around them are equal."""
    wanted, got = (tree(expected), tree(printed))
    assert [line for path, line in got if not path] == [line for path, line in wanted if not path]
    shown = iter([item for item in got if item[0]])
    for item in wanted:
        assert not item[0] or item in shown, f"not printed, after what came before: {item}"
    extra = [path for path, _ in got if path and not {path} & {path for path, _ in wanted}]
    assert {path[-1] for path in extra} <= {"q_proj", "k_proj", "v_proj", "native"}


def tree(text: str) -> list[tuple[tuple[str, ...], str]]:
    """The lines of a printed model with their places in it; lines outside of models have the place ()."""
    found: list[tuple[tuple[str, ...], str]] = []
    place: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        node = re.fullmatch(r"(?:\((\w+)\): )?(\w+)\((.*?)(\)?)", line)
        if line == ")":
            place.pop()
        elif node is None or not (place or node[2] == "xFormer"):
            found.append(((), re.sub(r"\s+", " ", re.sub(r"^\[\d{4}-[^]]*\]", "", line))))
        else:
            name, sizes = node[1] or "", f"({node[3]})" if node[2] in ("Linear", "Embedding") else ""
            found.append(((*place, name), node[2].replace("FusedLayerNorm", "LayerNorm") + sizes))
            if not node[4]:
                place.append(name)
    return found


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def numberless(line: str) -> str:
    return re.sub(r"-+", "-", re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?", "N", line.strip())))


def signatures(entry: Entry) -> dict[str, list[tuple[str, list[str]]]]:
    """The functions and fields that a block shows: name -> [(what, names)], with `name=default` where there is one."""
    shown: dict[str, list[tuple[str, list[str]]]] = {}
    for node in ast.parse(source(entry)).body:
        if isinstance(node, ast.FunctionDef):
            shown[node.name] = [("__init__", parameters(node))]
        elif isinstance(node, ast.ClassDef):
            methods = [(item.name, parameters(item)) for item in node.body if isinstance(item, ast.FunctionDef)]
            fields = [ast.unparse(item.target) for item in node.body if isinstance(item, ast.AnnAssign)]
            shown[node.name] = methods + ([("fields", fields)] if fields else [])
    return shown


def parameters(node: ast.FunctionDef) -> list[str]:
    names = [argument.arg for argument in node.args.args if argument.arg != "self"]
    defaults = [f"={ast.unparse(value)}" for value in node.args.defaults]
    return [name + default for name, default in zip(names, [""] * (len(names) - len(defaults)) + defaults, strict=True)]


def actual(target: Any, what: str) -> list[str]:
    """The same of the object itself."""
    if what == "fields":
        return list(inspect.get_annotations(target))
    signature = inspect.signature(getattr(target, what))
    return [
        name if parameter.default is parameter.empty else f"{name}={plain(parameter.default)}"
        for name, parameter in signature.parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def plain(value: Any) -> str:
    return repr(value.__name__) if callable(value) else repr(value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if entries()[sys.argv[1]].vision:
        declare_operators()
    torch.manual_seed(0)
    run(entries()[sys.argv[1]])
