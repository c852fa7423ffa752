"""Starting and resuming runs: the two entries that the command line and programs call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from variform.core.text import read_file
from variform.errors import ConfigError
from variform.train.config import Config, make_config, read_config
from variform.train.folder import RunFolder, new_folder, open_folder
from variform.train.material import Material, fill_folder, prepare
from variform.train.report import Report

FOLDER_OF_CHILDREN = "VARIFORM_RUN"
"""Tells the processes that the first one starts which folder it made."""


def train(config: Config | str | Path, overrides: Iterable[str] = (), *, quiet: bool = False) -> dict[str, Any]:
    """Train a model in a new run folder.

    Args:
        config: a config, or the path of one.
        overrides: `section.field=value`, when a path is given.
        quiet: print nothing.

    Returns:
        The summary: losses, sizes, times, the run folder.

    Raises:
        ConfigError: anything wrong with the config, the text, the folder or the hardware.
        Interrupted: a signal stopped the run; it can be resumed.
    """
    if not isinstance(config, Config):
        config = read_config(config, overrides)
    lightning = _lightning()
    lightning.check_hardware(config.train)
    material = prepare(config)
    first = lightning.is_first_process()
    folder = _folder(config, first)
    report = Report(first and not quiet)
    if first:
        fill_folder(folder, config, material)
    _describe(report, folder, config, material)
    return _fit(folder, config, material, report)


def resume(path: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Go on with a run where its newest checkpoint is; the result is what an uninterrupted run gives.

    Args:
        path: the run folder.
        quiet: print nothing.

    Raises:
        ConfigError: it is no run folder, a file in it is damaged, its text has changed, or the run is complete.
        Interrupted: a signal stopped the run; it can be resumed.
    """
    folder = open_folder(path)
    content = read_file(folder.config)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{str(folder.config)!r} is damaged")
    config = make_config(content, name=folder.path.name)
    if folder.summary.is_file():
        hint = f"variform generate {folder.path} --prompt ... uses it; variform train starts another"
        raise ConfigError(
            f"the run {str(folder.path)!r} is complete: all {config.train.steps} steps are done", hint=hint
        )
    lightning = _lightning()
    lightning.check_hardware(config.train)
    material = prepare(config)
    facts, known = material.facts(), folder.read_json(folder.data)
    changed = [name for name in facts if facts[name] != known.get(name)]
    if changed:
        message = f"the text is not the one this run was started with ({', '.join(changed)} differ)"
        raise ConfigError(message, path="data.text", value=config.data.text, hint="bring it back, or start a new run")
    if known.get("sharded") != (config.train.strategy == "fsdp2"):
        message = "this run's checkpoints are of the other kind: those of fsdp2 and of unsharded models do not mix"
        raise ConfigError(message, path="train.strategy", value=config.train.strategy)
    step = max(folder.saved_steps(), default=0)
    if step:
        lightning.check_checkpoint(folder, step)
    report = Report(lightning.is_first_process() and not quiet)
    _describe(report, folder, config, material)
    report.pair("resuming", f"after step {step}" if step else "from the beginning: no checkpoint was saved yet")
    return _fit(folder, config, material, report)


def _lightning() -> Any:
    try:
        from variform.train import fit
    except ModuleNotFoundError as error:
        message = f"training needs the package {error.name}, which is not installed"
        raise ConfigError(message, hint="pip install 'variform[train]'") from None
    return fit


def _folder(config: Config, first: bool) -> RunFolder:
    section = config.train
    made = os.environ.get(FOLDER_OF_CHILDREN)
    if not first and made:
        return RunFolder(Path(made))
    if section.run is not None and not first:
        return RunFolder(Path(section.run))
    if section.run is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        message = "under a launcher the run folder must be named, so that all processes know it"
        raise ConfigError(message, path="train.run", hint="train.run=runs/my-run")
    return new_folder(section.out, section.name or config.name, section.run)


def _fit(folder: RunFolder, config: Config, material: Material, report: Report) -> dict[str, Any]:
    os.environ[FOLDER_OF_CHILDREN] = str(folder.path)
    try:
        summary: dict[str, Any] = _lightning().fit(folder, config, material, report)
    finally:
        os.environ.pop(FOLDER_OF_CHILDREN, None)
    if summary:
        loss, bigram = summary["val_loss"], summary["bigram_loss"]
        report.pair("result", f"validation loss {loss:.4f}, bigram {bigram:.4f}, ratio {summary['ratio']:.3f}")
        report.pair(
            "time", f"{summary['seconds']:.0f} s for {summary['steps']} steps, {summary['tokens']:,} characters"
        )
        report.pair("run folder", str(folder.path))
        report.pair("use it", f'variform generate {folder.path} --prompt "..."')
    return summary


def _describe(report: Report, folder: RunFolder, config: Config, material: Material) -> None:
    facts = material.facts()
    train = config.train
    report.pair("run folder", str(folder.path))
    sizes = f"{facts['train']:,} characters to train on, {facts['validation']:,} to validate on"
    report.pair("text", f"{facts['source']}: {sizes}, {len(material.vocabulary)} different ones")
    report.pair("training", f"{train.steps} steps of {config.data.batch_size} x {config.data.context} characters")
    report.pair("bigram", f"validation loss {material.bigram:.4f}")
