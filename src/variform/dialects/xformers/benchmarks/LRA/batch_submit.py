"""Submits a job for each attention and task of the Long Range Arena: to SLURM, or without it one after another.

python -m variform.dialects.xformers.benchmarks.LRA.batch_submit -c config.json -ck checkpoints -a nystrom favor
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from variform.dialects.xformers.benchmarks.LRA.batch_fetch_results import fetch, table
from variform.dialects.xformers.benchmarks.LRA.config import TASKS, read_settings
from variform.dialects.xformers.benchmarks.LRA.run_tasks import known_attention
from variform.dialects.xformers.benchmarks.LRA.sources import find, needs_files
from variform.errors import ConfigError, VariformError

RUN = "variform.dialects.xformers.benchmarks.LRA.run_tasks"


def make_parser() -> argparse.ArgumentParser:
    """The options of a batch."""
    parser = argparse.ArgumentParser(
        prog="batch_submit", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("-c", "--config_path", required=True, metavar="FILE", help="settings of the tasks")
    parser.add_argument("-ck", "--checkpoint_path", required=True, metavar="FOLDER", help="of checkpoints and logs")
    parser.add_argument("-a", "--attentions", nargs="+", required=True, metavar="NAME", help="registered attentions")
    parser.add_argument(
        "-t", "--tasks", nargs="+", choices=TASKS, metavar="TASK", help=f"all whose data is there: {', '.join(TASKS)}"
    )
    parser.add_argument("--preset", metavar="NAME", help="a preset of the file; full: the tasks as they stand")
    parser.add_argument("--data", default=".", metavar="FOLDER", help="where the files of text, retrieval, ... are (.)")
    parser.add_argument("--world_size", type=int, default=1, metavar="N", help="processes of a job (1)")
    parser.add_argument("--partition", metavar="NAME", help="of SLURM")
    parser.add_argument("--timeout", type=int, default=2800, metavar="MINUTES", help="for a job (2800)")
    parser.add_argument("--cluster", choices=("slurm", "local"), help="by default slurm where srun is found")
    parser.add_argument(
        "-p", "--module", action="append", default=[], metavar="MODULE", help="import a module that registers parts"
    )
    return parser


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each job by its name; tasks whose files are not there are left out, with a line that says so.

    Raises:
        ConfigError: a mistake in the settings; no files of a task that was asked for by name.
    """
    for attention in options.attentions:
        known_attention(attention, options.module)
    tasks = []
    for task in options.tasks or TASKS:
        settings = read_settings(options.config_path, task, options.preset)
        try:
            if needs_files(settings):
                find(settings, options.data)
            tasks.append(task)
        except ConfigError as error:
            if options.tasks:
                raise
            print(f"left out: {task}: {error.problems[0].message}; {error.hint}")
    shared = ["--config", str(Path(options.config_path).resolve()), "--data", str(Path(options.data).resolve())]
    shared += ["--checkpoint_dir", str(Path(options.checkpoint_path).resolve())]
    shared += ["--world_size", str(options.world_size)]
    shared += [] if options.preset is None else ["--preset", options.preset]
    shared += [word for module in options.module for word in ("-p", module)]
    return {
        f"{task}__{attention}": [sys.executable, "-m", RUN, "--attention", attention, "--task", task, *shared]
        for attention in options.attentions
        for task in tasks
    }


def make_executor(options: argparse.Namespace, folder: Path) -> Any:
    """Submitit's executor: a job is a task a process on SLURM, and one task that starts its processes elsewhere.

    Raises:
        ConfigError: submitit is not installed, SLURM is not there, or an option that only SLURM has.
    """
    try:
        import submitit
    except ImportError:
        raise ConfigError("jobs are submitted with submitit", hint="pip install 'variform[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder, cluster=options.cluster)
    except RuntimeError as error:
        raise ConfigError(str(error), path="--cluster", value=options.cluster) from None
    slurm = executor.cluster == "slurm"
    if options.partition is not None and not slurm:
        raise ConfigError("there is no SLURM here, which has partitions", path="--partition", value=options.partition)
    executor.update_parameters(
        timeout_min=options.timeout,
        nodes=1,
        tasks_per_node=options.world_size if slurm else 1,
        gpus_per_node=options.world_size if slurm else min(options.world_size, torch.cuda.device_count()),
        **({} if options.partition is None else {"slurm_partition": options.partition}),
    )
    return executor


def submit(options: argparse.Namespace) -> int:
    """Submit the jobs; without SLURM wait for each and print the results.

    Returns:
        how many jobs failed, as far as it was waited for.
    """
    folder = Path(options.checkpoint_path).resolve()
    jobs = commands(options)
    executor = make_executor(options, folder / "jobs")
    from submitit.helpers import CommandFunction

    failed = 0
    for name, command in jobs.items():
        executor.update_parameters(name=name)
        job = executor.submit(CommandFunction(command, verbose=True))
        print(f"submitted: {name} as job {job.job_id} ({executor.cluster}), logs in {job.paths.stdout}", flush=True)
        print(f"  {shlex.join(command)}", flush=True)
        if executor.cluster == "local":
            failed += not _finished(job)
    if executor.cluster == "local":
        print(f"\n{table(fetch(folder))}")
    else:
        print(f"results: python -m {RUN.replace('run_tasks', 'batch_fetch_results')} -ck {folder}")
    return failed


def _finished(job: Any) -> bool:
    """Wait for a local job; what it had to say where it failed."""
    while not job.done():
        time.sleep(0.1)
    error = job.exception()
    if error is not None:
        print(f"  failed: {(job.stderr() or str(error)).strip().splitlines()[-1]}", flush=True)
    return error is None


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit; the exit status: 0, or 2 for anything a user can mend."""
    options = make_parser().parse_args(arguments)
    try:
        return 2 if submit(options) else 0
    except VariformError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
