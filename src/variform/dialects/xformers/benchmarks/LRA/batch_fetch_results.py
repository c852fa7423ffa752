"""Puts the results of a batch of the Long Range Arena into a table.

python -m variform.dialects.xformers.benchmarks.LRA.batch_fetch_results -ck checkpoints
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from variform.dialects.xformers.benchmarks.LRA.config import TASKS
from variform.dialects.xformers.benchmarks.LRA.run_tasks import RESULTS
from variform.errors import ConfigError, VariformError

Results = dict[tuple[str, str], dict[str, Any]]
"""By attention and task."""


def fetch(folder: str | Path) -> Results:
    """The results of all runs that ended, at any depth below a folder; of runs that differ in that alone, the newest.

    Raises:
        ConfigError: no such folder, or a damaged file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"there is no folder {str(root)!r}", path="-ck")
    found: Results = {}
    for file in sorted(root.rglob(RESULTS), key=lambda file: file.stat().st_mtime):
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            found[results["attention"], results["task"]] = results
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{str(file)!r} is damaged", hint="run the task again") from None
    return found


def table(found: Results) -> str:
    """Test accuracies in percent: an attention a row, a task a column, the baselines last.

    The mean is over the tasks of the row, and is left out where another row has more of them.
    """
    if not found:
        return "no run has ended yet"
    tasks = [task for task in TASKS if any(task == done for _, done in found)]
    rows = [["attention", *tasks, "mean"]]
    for attention in dict.fromkeys(attention for attention, _ in sorted(found)):
        figures = [found[attention, task]["test_accuracy"] if (attention, task) in found else None for task in tasks]
        mean = None if None in figures else sum(filter(None, figures)) / len(tasks)
        rows.append([attention, *map(_percent, figures), _percent(mean)])
    for name, shown in (("majority", "(commonest answer)"), ("root_operator", "(commonest for the root operator)")):
        known = {task: results["baselines"].get(name) for (_, task), results in found.items()}
        if any(known.values()):
            rows.append([shown, *(_percent(known[task]) for task in tasks), ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows)


def _percent(figure: float | None) -> str:
    return "" if figure is None else f"{100 * figure:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status: 0, or 2 for anything a user can mend."""
    parser = argparse.ArgumentParser(
        prog="batch_fetch_results", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("-ck", "--checkpoint_path", required=True, metavar="FOLDER", help="of checkpoints and logs")
    parser.add_argument("--json", action="store_true", help="all figures and settings")
    options = parser.parse_args(arguments)
    try:
        found = fetch(options.checkpoint_path)
    except VariformError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(list(found.values()), indent=2) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
