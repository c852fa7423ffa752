"""The gallery of the docs: for every feature what it does, its paper, and a snippet that runs.

`python -m tests.parity.x_transformers.gallery` writes it from the option sets and from `gallery.yaml`, which has the
words and the snippets that keywords alone do not make.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.parity.x_transformers.ledger import changed, featured, link
from tests.parity.x_transformers.option_set import LAYERS, MODEL, OptionSet

PAGE = Path(__file__).parents[3] / "docs" / "features.md"
WORDS = Path(__file__).with_name("gallery.yaml")


def words() -> dict[str, Any]:
    """What `gallery.yaml` says.

    `head`, `sections` (titles of families), `features` (about, example, section; in order), `wrappers` (title, about,
    paper, example), `tail`.
    """
    told: dict[str, Any] = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    return told


def needs_an_example(one: OptionSet) -> bool:
    """Whether keywords alone do not make a snippet: a call has further arguments, or a value is no plain data."""
    values = [*one.layers.values(), *one.model.values()]
    return one.call is not None or any(callable(value) for value in values)


def snippet(one: OptionSet) -> str:
    """Build the model and call it."""
    layers = {"dim": 64, "depth": 2, "heads": 4, **changed(one.layers, LAYERS), **changed(one.ours, {})}
    layers |= {n: v for n, v in one.layers.items() if n in ("depth", "heads", "dim") and v != LAYERS[n]}
    layers = {n: v for n, v in layers.items() if v is not None}
    model = {"num_tokens": 256, "max_seq_len": 128, **changed(one.model, MODEL), **changed(one.ours_model, {})}

    def written(given: dict[str, Any]) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in given.items())

    return (
        f"from variform.dialects.x_transformers import {one.stack}, TransformerWrapper\n\n"
        f"layers = {one.stack}({written(layers)})\n"
        f"model = TransformerWrapper({written(model)}, attn_layers=layers)\n"
        "logits = model(torch.randint(0, 256, (1, 128)))"
    )


def formatted(text: str) -> str:
    """The page with its snippets in the style of the project."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(PAGE), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def page() -> str:
    """The whole page."""
    told = words()
    sets = {one.name: one for one in featured()}
    said = told["features"]
    in_order = [name for name in dict.fromkeys((*said, *sets)) if name in sets]
    order = sorted(in_order, key=lambda name: list(told["sections"]).index(section(name, said)))
    lines, begun = [told["head"].strip(), ""], ""
    for name in order:
        one = sets[name]
        if section(name, said) != begun:
            begun = section(name, said)
            lines += [f"## {told['sections'][begun]}", ""]
        lines += [f"### {one.feature}", "", sentence(said.get(name, {}).get("about") or one.about, one), ""]
        lines += ["```python", (said.get(name, {}).get("example") or snippet(one)).strip(), "```", ""]
    lines += around(told["wrappers"])
    return formatted("\n".join([*lines, told["tail"].strip(), ""]))


def section(name: str, said: dict[str, dict[str, str]]) -> str:
    """Where a feature stands: among its family, unless its words say otherwise."""
    return said.get(name, {}).get("section", name.partition("/")[0])


def around(wrappers: list[dict[str, str]]) -> list[str]:
    """The section of what stands around models: wrappers that train and generate, and models made of several."""
    lines = ["## Wrappers and models around", ""]
    for one in wrappers:
        paper = f" ({link(one['paper'])})" if "paper" in one else ""
        lines += [f"### {one['title']}", "", re.sub(r"\.$", "", one["about"].strip()) + paper + ".", ""]
        lines += ["```python", one["example"].strip(), "```", ""]
    return lines


def sentence(about: str, one: OptionSet) -> str:
    """What it does, its paper, and the part of the core that does it."""
    kind, _, rest = one.part.partition("/")
    name = rest.partition(".")[0]
    part = f" Part: [`{one.part}`](parts.md#{kind}-{name})." if name else ""
    paper = f" ({link(one.paper)})" if one.paper else ""
    return re.sub(r"\.$", "", about.strip()) + paper + "." + part


def missing() -> list[str]:
    """Features that `gallery.yaml` says nothing of, snippets that it has to give, and entries without a feature."""
    told = words()
    sets = {one.name: one for one in featured()}
    known = [module.partition("/")[0] for module in sets]
    found = [
        f"no words: {name}" for name in sets if not (told["features"].get(name, {}).get("about") or sets[name].about)
    ]
    found += [
        f"no example: {name}"
        for name, one in sets.items()
        if needs_an_example(one) and not told["features"].get(name, {}).get("example")
    ]
    found += [f"no section: {family}" for family in dict.fromkeys(known) if family not in told["sections"]]
    return found + [f"no such feature: {name}" for name in told["features"] if name not in sets]


def main() -> None:
    """Write the page."""
    if gaps := missing():
        raise SystemExit("\n".join(gaps))
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
