"""`variform describe --costs` and the limits of `variform check`: formulas, sizes by name, budgets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from variform.core.spec import Spec
from variform.errors import ConfigError
from variform.inspect import Costs, Report, check, costs
from variform.stack.program import ProgramModel


def asked_costs(spec: Spec, options: argparse.Namespace) -> Costs | None:
    """The costs, where formulas are asked for: by a flag, or as all that can be said of a program without a length.

    Raises:
        ConfigError: sizes in two ways, or a batch size alone.
    """
    batch, length = options.batch, options.length
    if not options.costs and not options.at and not (spec.part is ProgramModel and length is None):
        return None
    if options.at:
        if batch is not None or length is not None:
            raise ConfigError("give sizes by name or with --batch and --length, not both", path="--at")
        return costs(spec, sizes_from(options.at))
    if length is not None:
        return costs(spec, {"B": 1 if batch is None else batch, "L": length})
    if batch is not None:
        raise ConfigError("give --length too, or sizes by name: --at B=8 L=1024", path="--batch")
    return costs(spec)


def checked(spec: Spec, options: argparse.Namespace) -> Report:
    """The report of a check with the limits asked for."""
    return check(
        spec,
        batch=options.batch,
        length=options.length,
        decode=options.decode,
        at=sizes_from(options.at),
        max_params=options.max_params,
        max_flops=options.max_flops,
        max_memory=options.max_memory,
        optimizer=options.optimizer,
    )


def sizes_from(texts: Sequence[str] | None) -> dict[str, int] | None:
    """Sizes by name from `B=8 L_in=1024` (or `B=8,L_in=1024`).

    Raises:
        ConfigError: not of that form.
    """
    if not texts:
        return None
    found: dict[str, int] = {}
    for text in " ".join(texts).replace(",", " ").split():
        name, sign, number = text.partition("=")
        if not sign or not number.isdecimal() or name in found:
            raise ConfigError("sizes are written once each, as NAME=NUMBER", path="--at", value=text)
        found[name] = int(number)
    return found
