"""Trains a model with an attention on a task of the Long Range Arena and judges it on the test set.

python -m variform.dialects.xformers.benchmarks.LRA.run_tasks --attention nystrom --task listops --config config.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

from variform.core.user_modules import import_user_modules
from variform.dialects.xformers.benchmarks.LRA.config import TASKS, Settings, read_changes, read_settings
from variform.dialects.xformers.benchmarks.LRA.model import Classifier, Task, check_length
from variform.dialects.xformers.benchmarks.LRA.rows import Collate, Examples, Split, Turns, baselines
from variform.dialects.xformers.benchmarks.LRA.sources import load
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY
from variform.errors import ConfigError, VariformError, did_you_mean
from variform.train.fit import is_first_process, quiet_lightning

RESULTS = "test_eval_summary.json"
CHECKPOINT = "best"


class Material(NamedTuple):
    """What a run works on.

    Args:
        settings: of the task.
        splits: examples to learn from, to choose the checkpoint by, to be judged on.
        model: untrained.
        collate: makes batches.
        padding: what becomes of it: `none`, `masked`, or `seen` by an attention that cannot honour it.
    """

    settings: Settings
    splits: tuple[Split, Split, Split]
    model: Classifier
    collate: Collate
    padding: str


def make_parser() -> argparse.ArgumentParser:
    """The options of a run."""
    parser = argparse.ArgumentParser(prog="run_tasks", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--attention", required=True, metavar="NAME", help="a registered attention, yours included")
    parser.add_argument("--task", required=True, choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--config", default="config.json", metavar="FILE", help="settings of the tasks (config.json)")
    parser.add_argument("--preset", metavar="NAME", help="a preset of the file; full: the tasks as they stand")
    parser.add_argument("--data", default=".", metavar="FOLDER", help="where the files of text, retrieval, ... are (.)")
    parser.add_argument("--checkpoint_dir", default="checkpoints", metavar="FOLDER", help="of results (checkpoints)")
    parser.add_argument(
        "--world_size", type=int, default=1, metavar="N", help="processes, one a GPU if there are any (1)"
    )
    parser.add_argument("--skip_train", action="store_true", help="judge the model of --checkpoint_path")
    parser.add_argument("--checkpoint_path", metavar="FILE", help="a checkpoint that an earlier run wrote")
    parser.add_argument(
        "--sweep_parameters", metavar="JSON", help="""other settings: '{"training:learning_rate": 0.001}'"""
    )
    parser.add_argument("--debug", action="store_true", help="stop where a gradient is no number")
    parser.add_argument(
        "-p", "--module", action="append", default=[], metavar="MODULE", help="import a module that registers parts"
    )
    return parser


def known_attention(name: str, modules: Sequence[str]) -> None:
    """Import what registers an attention.

    Raises:
        ConfigError: nobody does.
    """
    import_user_modules(modules, [name], set(ATTENTION_REGISTRY), _note)
    if name not in ATTENTION_REGISTRY:
        hint = did_you_mean(name, ATTENTION_REGISTRY) or "-p MODULE imports a module that registers it"
        raise ConfigError(f"there is no attention {name!r}", path="--attention", hint=hint)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(settings: Settings, attention: str, folder: str | Path = ".") -> Material:
    """Examples and model of a task, checked against one another.

    Args:
        settings: of the task.
        attention: the registered name.
        folder: where files are.

    Raises:
        ConfigError: anything that does not fit.
    """
    splits = load(settings, folder)
    seed_everything(settings.training.seed, verbose=False)
    model = Classifier(settings, attention, len(splits[0].inputs))
    _check(settings, splits)
    cls = settings.pooling_mode == "cls"
    lengths = {
        int(n) for split in splits for rows in split.inputs for n in (rows.lengths().min(), rows.lengths().max())
    }
    padding, whole = "none", None
    if len(lengths) > 1:
        padding = "masked" if model.masks else "seen"
        if model.squared or not model.masks:
            check_length(model, settings)
            whole = settings.common.seq_len
    collate = Collate(settings.common.vocab_size - 1 if cls else None, whole)
    return Material(settings, splits, model, collate, padding)


def _check(settings: Settings, splits: Sequence[Split]) -> None:
    """Refuse sizes of the model that the examples exceed."""
    common, path = settings.common, f"{settings.task.partition('-')[0]}.model.common"
    cls = settings.pooling_mode == "cls"
    needed = max(rows.highest() for split in splits for rows in split.inputs) + 1 + cls
    if needed > common.vocab_size:
        message = f"the examples have {needed} different tokens" + (", the class token included" if cls else "")
        raise ConfigError(message, path=f"{path}.vocab_size", value=common.vocab_size)
    classes = max(int(split.labels.max()) for split in splits) + 1
    if classes > common.num_classes:
        raise ConfigError(f"the examples have {classes} classes", path=f"{path}.num_classes", value=common.num_classes)
    longest = max(int(rows.lengths().max()) for split in splits for rows in split.inputs) + cls
    if longest > common.seq_len and settings.task not in ("text", "retrieval"):
        message = f"rows have up to {longest} tokens, and none of them can be left out"
        raise ConfigError(message, path=f"{path}.seq_len", value=common.seq_len)


def run(material: Material, attention: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train unless told not to, judge, and write the results.

    Raises:
        ConfigError: batches that do not divide, a checkpoint of another model.
    """
    settings, task = material.settings, Task(material.model, material.settings)
    training, began = settings.training, time.perf_counter()
    each, rest = divmod(training.batch_size, options.world_size * training.gradient_accumulation)
    if rest or not each:
        parts = f"{options.world_size} processes times gradient_accumulation {training.gradient_accumulation}"
        raise ConfigError(
            f"the batch does not divide by {parts}", path="training.batch_size", value=training.batch_size
        )
    if each * options.world_size > len(material.splits[0].labels):
        message = f"there are only {len(material.splits[0].labels)} examples to learn from"
        raise ConfigError(message, path="training.batch_size", value=training.batch_size)
    saver = ModelCheckpoint(
        folder, CHECKPOINT, monitor="val_accuracy", mode="max", save_weights_only=True, enable_version_counter=False
    )
    with quiet_lightning():
        trainer = make_trainer(settings, options, saver, folder)
        loaders = [_loader(material, i, trainer, each) for i in range(3)]
        if not options.skip_train:
            trainer.fit(task, loaders[0], loaders[1], weights_only=True)
        checkpoint = options.checkpoint_path if options.skip_train else saver.best_model_path
        try:
            trainer.test(task, loaders[2], ckpt_path=checkpoint, weights_only=True, verbose=False)
        except (RuntimeError, KeyError) as error:
            if not options.skip_train or "state_dict" not in str(error):
                raise
            message = f"the checkpoint is not of this model: {str(error).splitlines()[-1].strip()}"
            raise ConfigError(message, path="--checkpoint_path", value=checkpoint) from None
    results = {
        "task": settings.task,
        "attention": attention,
        **{f"test_{name}": value for name, value in task.result.items()},
        "baselines": baselines(material.splits[0], material.splits[2], settings.task == "listops"),
        "steps": trainer.global_step,
        "parameters": sum(p.numel() for p in material.model.parameters()),
        "padding": material.padding,
        "examples": [len(split.labels) for split in material.splits],
        "world_size": options.world_size,
        "seconds": time.perf_counter() - began,
        "checkpoint": str(checkpoint),
        "validation": task.history,
        "settings": settings.to_json(),
    }
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def make_trainer(settings: Settings, options: argparse.Namespace, saver: ModelCheckpoint, folder: Path) -> Trainer:
    """Lightning's trainer for the processes and steps asked for."""
    training, gpu = settings.training, torch.cuda.is_available()
    return Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=options.world_size,
        strategy="ddp" if options.world_size > 1 else "auto",
        precision=("16-mixed" if gpu else "bf16-mixed") if training.mixed_precision else "32-true",
        max_steps=training.num_train_steps,
        accumulate_grad_batches=training.gradient_accumulation,
        val_check_interval=training.eval_frequency * training.gradient_accumulation,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if training.num_eval_steps is None else training.num_eval_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        detect_anomaly=options.debug,
        default_root_dir=folder,
        callbacks=[saver],
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )


def _loader(material: Material, index: int, trainer: Trainer, each: int) -> DataLoader[Any]:
    """The batches of one process: shuffled to learn from; all examples, each once, to be judged on."""
    longest = material.settings.common.seq_len - (material.collate.class_token is not None)
    examples: Any = Examples(material.splits[index], longest)
    world, rank, seed = trainer.world_size, trainer.global_rank, material.settings.training.seed
    if index == 0:
        sampler: Any = DistributedSampler(examples, world, rank, shuffle=True, seed=seed, drop_last=True)
        return DataLoader(examples, each, sampler=sampler, collate_fn=material.collate, drop_last=True)
    size = each * material.settings.training.gradient_accumulation
    return DataLoader(examples, size, sampler=Turns(len(examples), rank, world), collate_fn=material.collate)


def text(results: dict[str, Any]) -> str:
    """The results in some lines."""
    known = results["baselines"]
    steps = f" after {results['steps']} steps" if results["steps"] else ""
    lines = [
        f"{results['task']}, {results['attention']}: test accuracy {results['test_accuracy']:.1%}"
        f"{steps}, {results['parameters']:,} parameters",
        f"  the commonest answer: {known['majority']:.1%}",
    ]
    if "root_operator" in known:
        lines.append(f"  the commonest answer for the root operator: {known['root_operator']:.1%}")
    if results["padding"] == "seen":
        lines.append("  this attention cannot leave padding out: rows were padded to seq_len, which it has seen")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a task; the exit status: 0, or 2 for anything a user can mend."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.skip_train != (options.checkpoint_path is not None):
        parser.error("--skip_train and --checkpoint_path go together")
    try:
        known_attention(options.attention, options.module)
        if options.world_size < 1:
            raise ConfigError("at least one process is needed", path="--world_size", value=options.world_size)
        if options.checkpoint_path is not None and not Path(options.checkpoint_path).is_file():
            raise ConfigError("there is no such file", path="--checkpoint_path", value=options.checkpoint_path)
        changes = None if options.sweep_parameters is None else read_changes(options.sweep_parameters)
        settings = read_settings(options.config, options.task, options.preset, changes)
        folder = Path(options.checkpoint_dir) / f"{options.task}__{options.attention}"
        results = run(prepare(settings, options.attention, options.data), options.attention, folder, options)
    except VariformError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if is_first_process():
        print(text(results))
        print(f"  written: {folder / RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
