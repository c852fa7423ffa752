"""The verbs: what each takes on the command line, and what it does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import groupby
from typing import Any

from variform.cli.benching import ARGUMENTS as BENCHING
from variform.cli.benching import bench
from variform.cli.lowering import ARGUMENTS as LOWERING
from variform.cli.output import show
from variform.core.registry import kinds, parts
from variform.core.spec import Spec
from variform.errors import ConfigError

Options = argparse.Namespace
Argument = tuple[tuple[str, ...], dict[str, Any]]
Arguments = list[Argument]


def check(options: Options) -> None:
    """Find everything that is wrong with a config; nothing is trained or built."""
    from variform.cli.costing import checked

    spec, _ = _described(options)
    report = checked(spec, options)
    if not report.ok:
        raise ConfigError(report.problems)
    show(str(report), report.to_json(), options.json)


def describe(options: Options) -> None:
    """Show every part with its shapes, parameters, FLOPs and bytes; nothing is allocated."""
    if options.diagram is not None:
        _draw(options)
        return
    from variform.cli.costing import asked_costs
    from variform.inspect import Costs, Description
    from variform.inspect import describe as measure

    spec, context = _described(options)
    batch = 1 if options.batch is None else options.batch
    found: Costs | Description | None = asked_costs(spec, options)
    if found is None:
        found = measure(spec, batch=batch, length=options.length or context)
    show(str(found), found.to_json(), options.json)


def _draw(options: Options) -> None:
    from variform.inspect.diagram import diagram

    spec, context = _described(options)
    written = diagram(spec, options.length or context).save(options.diagram)
    show(f"written: {written}", {"diagram": str(written)}, options.json)


def lower(options: Options) -> None:
    """Print any model as a program: blocks of module dicts that compute the same."""
    from variform.cli.lowering import print_lowered

    print_lowered(_described(options)[0], options)


def diff(options: Options) -> None:
    """Show what two configs or programs have that the other has not, and what that costs."""
    from variform.cli.configs import load
    from variform.cli.costing import sizes_from
    from variform.inspect import compare

    if options.no_costs and options.at:
        raise ConfigError("sizes say where to give costs: leave out --no-costs or --at", path="--at")
    at = sizes_from(options.at)
    found = compare(load(options.before), load(options.after), at, measure=not options.no_costs)
    show(str(found), found.to_json(), options.json)


def explain(options: Options) -> None:
    """Show which attention backends would run, and why the others would not."""
    from variform.inspect import explain as judge

    spec, context = _described(options)
    found = judge(
        spec,
        batch=options.batch,
        length=options.length or context,
        device=options.device,
        training=not (options.inference or options.decode),
        decode=options.decode,
    )
    show(str(found), found.to_json(), options.json)


def list_parts(options: Options) -> None:
    """List the registered parts, by kind."""
    from variform.core.schema import part_info

    infos = [part_info(part) for part in parts(options.kind).values()]
    width = max((len(info["name"]) for info in infos), default=0)
    lines: list[str] = []
    for kind, group in groupby(infos, key=lambda info: info["kind"]):
        lines += [kind, *(f"  {info['name']:<{width}}  {info['summary']}" for info in group)]
    show("\n".join(lines), infos, options.json)


def schema(options: Options) -> None:
    """Print the JSON Schema of all parts, for editors and programs."""
    from variform.core.schema import registry_schema

    print(json.dumps(registry_schema(), indent=2))


def train(options: Options) -> None:
    """Train a model on text, or go on with a run: --resume RUN."""
    from variform.train import run

    if options.resume is not None:
        if options.config is not None or options.overrides:
            raise ConfigError("a resumed run keeps its config: give --resume RUN alone")
        summary = run.resume(options.resume, quiet=options.json)
    elif options.config is None:
        raise ConfigError("give a training config, or --resume RUN", hint="variform train examples/microgpt.yaml")
    else:
        summary = run.train(options.config, options.overrides, quiet=options.json)
    if options.json and summary:
        print(json.dumps(summary, indent=2))


def generate(options: Options) -> None:
    """Continue a prompt with the model of a run; text appears as it is made."""
    from variform.cli.generation import generate_text

    generate_text(options)


def export(options: Options) -> None:
    """Write a model as one readable PyTorch file that needs no variform."""
    from variform.cli.exporting import export_model

    export_model(options)


def _described(options: Options) -> tuple[Spec, int | None]:
    """The model that a file describes, and the length it is trained at, if the file says so."""
    from variform.cli.configs import load_with_length

    return load_with_length(options.config, options.overrides)


CONFIG: Arguments = [
    (
        ("config",),
        {"metavar": "CONFIG", "help": "a YAML or JSON file with a part, a preset, a program or a training config"},
    ),
    (
        ("overrides",),
        {"metavar": "PATH=VALUE", "nargs": "*", "help": "changes: model.dim=64, stacks.0.layers.1.heads=8"},
    ),
]
DIAGRAM = (
    ("--diagram",),
    {"metavar": "FILE", "help": "draw the model instead: out.svg, or out.mmd for Mermaid text"},
)
SIZES: Arguments = [
    (("--batch",), {"type": int, "default": 1, "metavar": "N", "help": "rows (1)"}),
    (("--length",), {"type": int, "metavar": "N", "help": "tokens a row (the training length, or the longest)"}),
]
DECODE: Arguments = [(("--decode",), {"action": "store_true", "help": "look at cached decoding"})]
BATCH: Argument = (("--batch",), {**SIZES[0][1], "default": None})
COSTS: Argument = (
    ("--costs",),
    {"action": "store_true", "help": "formulas for every part, or line of a program"},
)
AT: Argument = (("--at",), {"nargs": "+", "metavar": "NAME=N", "help": "numbers at these sizes too: B=8 L_in=1024"})
LIMITS: Arguments = [
    (("--max-params",), {"metavar": "N", "help": "the most parameters: 100M"}),
    (("--max-flops",), {"metavar": "N", "help": "the most operations of a forward pass: 5T"}),
    (("--max-memory",), {"metavar": "SIZE", "help": "the most bytes of a training step in float32: 24GiB"}),
    (("--optimizer",), {"metavar": "NAME", "default": "adamw", "help": "whose values count as memory (adamw)"}),
]
NUMBER: Any = {"type": float, "metavar": "X"}

VERBS: dict[str, tuple[Callable[[Options], None], Arguments]] = {
    "check": (check, [*CONFIG, BATCH, SIZES[1], AT, *DECODE, *LIMITS]),
    "describe": (describe, [*CONFIG, BATCH, SIZES[1], COSTS, AT, DIAGRAM]),
    "diff": (
        diff,
        [
            (("before",), {"metavar": "CONFIG", "help": "a YAML or JSON file"}),
            (("after",), {"metavar": "CONFIG", "help": "the other one"}),
            AT,
            (("--no-costs",), {"action": "store_true", "help": "parts and lines alone"}),
        ],
    ),
    "explain": (
        explain,
        [
            *CONFIG,
            *SIZES,
            *DECODE,
            (("--inference",), {"action": "store_true", "help": "no backward pass follows"}),
            (("--device",), {"metavar": "TYPE", "help": "cpu or cuda"}),
        ],
    ),
    "lower": (lower, [*CONFIG, *LOWERING]),
    "export": (
        export,
        [
            CONFIG[0],
            (("out",), {"metavar": "OUT", "help": "where: model.py, or a graph: model.onnx, model.pt2"}),
            CONFIG[1],
            (
                ("--weights",),
                {
                    "nargs": "+",
                    "metavar": ("SAVED", "NEW"),
                    "help": "saved weights; and, for model.py, a file for them by OUT's names",
                },
            ),
            (("--length",), {"type": int, "metavar": "N", "help": "tokens of the example that a graph is traced with"}),
        ],
    ),
    "bench": (bench, BENCHING),
    "parts": (list_parts, [(("--kind",), {"metavar": "K", "help": f"one of {', '.join(sorted(kinds()))}"})]),
    "schema": (schema, []),
    "train": (
        train,
        [
            (("config",), {"metavar": "CONFIG", "nargs": "?", "help": "a training config"}),
            CONFIG[1],
            (("--resume",), {"metavar": "RUN", "help": "go on with the run in this folder"}),
        ],
    ),
    "generate": (
        generate,
        [
            (("run_folder",), {"metavar": "RUN", "help": "a run folder"}),
            (("--prompt",), {"required": True, "metavar": "TEXT", "help": "what to continue"}),
            (("--tokens",), {"type": int, "default": 400, "metavar": "N", "help": "new characters (400)"}),
            (("--temperature",), {**NUMBER, "default": 0.8, "help": "0.8; 0 takes the likeliest character"}),
            (("--top-k",), {"type": int, "metavar": "K", "help": "choose among the K likeliest"}),
            (("--top-p",), {**NUMBER, "help": "choose among the likeliest that reach X together"}),
            (("--min-p",), {**NUMBER, "help": "choose among those X times as likely as the likeliest"}),
            (("--seed",), {"type": int, "metavar": "N", "help": "makes the text reproducible"}),
        ],
    ),
}
"""By name: the function, and its arguments for argparse."""
