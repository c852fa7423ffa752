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
CUT = "# ---- next snippet ----"


def words() -> dict[str, Any]:
    """What `gallery.yaml` says: `head`, `sections` (titles of families), `features` (about, example), `tail`."""
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


def formatted(snippets: list[str]) -> list[str]:
    """Snippets in the style of the docs."""
    text = f"\n{CUT}\n".join(snippets)
    command = [sys.executable, "-m", "ruff", "format", "--line-length", "100", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return [part.strip() for part in done.stdout.split(CUT)]


def page() -> str:
    """The whole page."""
    told = words()
    sets = {one.name: one for one in featured()}
    said = told["features"]
    order = [name for family in told["sections"] for name in sets if name.startswith(f"{family}/")]
    codes = formatted([said.get(name, {}).get("example") or snippet(sets[name]) for name in order])
    lines, family = [told["head"].strip(), ""], ""
    for name, code in zip(order, codes, strict=True):
        one = sets[name]
        if name.partition("/")[0] != family:
            family = name.partition("/")[0]
            lines += [f"## {told['sections'][family]}", ""]
        lines += [f"### {one.feature}", "", sentence(said.get(name, {}).get("about") or one.about, one), ""]
        lines += ["```python", code, "```", ""]
    return "\n".join([*lines, told["tail"].strip(), ""])


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
