"""The contract suite: what every part promises, checked on any registered part, ours or a user's.

from variform import testing

testing.check_part(MyMixer)              # all checks; AssertionError names those that fail
testing.run_check("causal", "my_mixer")  # one check, as a result
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from variform.core.codec import as_spec
from variform.core.part import Part
from variform.core.registry import lookup
from variform.core.spec import Spec
from variform.testing import report
from variform.testing.case import Case, Inputs
from variform.testing.filling import minimal
from variform.testing.hosts import FACTS, Host, Setting, in_layers
from variform.testing.report import Check, NotApplicable, Result, check, checks
from variform.testing.samples import Sample, all_samples, samples_for, samples_of

__all__ = [
    "FACTS",
    "Case",
    "Check",
    "Host",
    "Inputs",
    "NotApplicable",
    "Result",
    "Sample",
    "Setting",
    "all_samples",
    "cases",
    "check",
    "check_part",
    "checks",
    "in_layers",
    "minimal",
    "run_check",
    "samples_for",
    "samples_of",
]


def check_part(
    part: type[Part] | Part | Spec | str, *, skip: Sequence[str] = (), slow: bool = False, **facts: Any
) -> list[Result]:
    """Run all checks on a part.

    Args:
        part: a part class, its registered name, a spec of it, or a built part.
        skip: names of checks to leave out.
        slow: run the checks that take seconds, too.
        **facts: sizes other than the usual ones (`dim=24, heads=3`).

    Raises:
        AssertionError: naming each check that failed and why.
        ConfigError: the part is unknown, or its required fields cannot be guessed (pass a spec).
    """
    left_out = {report.find(name).name for name in skip}
    chosen = [one for one in checks() if one.name not in left_out and (slow or not one.slow)]
    results = [report.run(one, case) for case in cases(part, **facts) for one in chosen]
    failed = [result for result in results if not result.ok]
    if failed:
        lines = "\n".join(f"  {result}" for result in failed)
        raise AssertionError(f"{len(failed)} of {len(results)} checks failed:\n{lines}")
    return results


def run_check(name: str, part: type[Part] | Part | Spec | str, **facts: Any) -> Result:
    """Run one check on a part, and stop at its first instance that fails; arguments as in `check_part`."""
    one = report.find(name)
    results = [report.run(one, case) for case in cases(part, **facts)]
    return next((result for result in results if not result.ok), results[0])


def cases(part: type[Part] | Part | Spec | str, **facts: Any) -> list[Case]:
    """The instances of a part that the checks run on."""
    if isinstance(part, str):
        part = lookup(part)
    if isinstance(part, type):
        return [Case(sample, facts) for sample in samples_of(part)]
    return [Case(Sample(as_spec(part)), facts)]


# The checks register themselves and run in the order of import.
# isort: off
from variform.testing import basics, sequence, heads, decoding, backends, lifecycle, cost  # noqa: E402, F401
from variform.testing import losses, library, landmarks, programs, sequence_ops, lowering, streams  # noqa: E402, F401
from variform.testing import histories  # noqa: E402, F401
from variform.testing import around, scored  # noqa: E402, F401
