"""A training run from beginning to end, with Lightning's Trainer; new or resumed."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader

from variform.core.build import build
from variform.errors import ConfigError
from variform.train.callbacks import Interrupted, Recorder, Saver
from variform.train.config import Config
from variform.train.data import StepLoader, TrainBatches, ValBatches
from variform.train.folder import RunFolder, write_json
from variform.train.journal import read_metrics
from variform.train.material import Material
from variform.train.module import LanguageModule
from variform.train.plot import plot_losses
from variform.train.report import Report
from variform.train.sections import TrainSection
from variform.weights import save_weights


def fit(folder: RunFolder, config: Config, material: Material, report: Report) -> dict[str, Any]:
    """Train, or go on from the newest checkpoint in the folder; returns the summary.

    Raises:
        Interrupted: a signal stopped the run; it can be resumed.
        ConfigError: Lightning refuses the hardware, or a file of the run is damaged.
    """
    train = config.train
    step = max(folder.saved_steps(), default=0)
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    torch.manual_seed(train.seed)
    model = build(material.spec, device="meta" if train.strategy == "fsdp2" else None)
    module = LanguageModule(model, train)
    tokens = config.data.batch_size * config.data.context
    recorder = Recorder(folder, train, tokens, material.vocabulary, material.bigram, report)
    saver = Saver(folder, train, recorder, lambda trainer: export(trainer, module, folder))
    with quiet_lightning():
        trainer = make_trainer(folder, train, [recorder, saver], step)
        loaders = make_loaders(trainer, config, material)
        try:
            with stopped_by_signals(saver):
                run(trainer, module, loaders, folder.checkpoint(step) if step else None, recorder)
        except (Interrupted, SystemExit, KeyboardInterrupt) as error:
            draw(folder, material)
            message = str(error) if isinstance(error, Interrupted) else "interrupted"
            raise Interrupted(f"{message}; go on with: variform train --resume {folder.path}") from None
        finally:
            recorder.finish()
        export(trainer, module, folder)
    if not trainer.is_global_zero:
        return {}
    draw(folder, material)
    return summarise(folder, config, material, recorder, sum(p.numel() for p in model.parameters()))


def run(
    trainer: Trainer, module: LanguageModule, loaders: tuple[Any, Any], checkpoint: Any, recorder: Recorder
) -> None:
    """Fit, and validate at the end unless the last step was validated."""
    training, validation = loaders
    trainer.fit(module, training, validation, ckpt_path=checkpoint, weights_only=True)
    if recorder.last_val is None or recorder.last_val[0] != trainer.global_step:
        trainer.validate(module, validation, verbose=False)


def check_hardware(train: TrainSection) -> None:
    """Refuse what this machine does not have.

    Raises:
        ConfigError: no CUDA device, or fewer than were asked for.
    """
    there = torch.cuda.device_count()
    if train.accelerator == "cuda" and not there:
        raise ConfigError("there is no CUDA device", path="train.accelerator", value="cuda", hint="auto, or cpu")
    on_cuda = train.accelerator == "cuda" or (train.accelerator == "auto" and there > 0)
    if on_cuda and isinstance(train.devices, int) and train.devices > there:
        raise ConfigError(f"there are {there} CUDA devices", path="train.devices", value=train.devices)


def make_trainer(folder: RunFolder, train: TrainSection, callbacks: list[Any], step: int) -> Trainer:
    """Lightning's Trainer as the config wants it.

    Raises:
        ConfigError: there is no such hardware.
    """
    strategy: Any = {"auto": "auto", "ddp": DDPStrategy(), "fsdp2": None}[train.strategy]
    if strategy is None:
        world = train.nodes * (train.devices if isinstance(train.devices, int) else max(1, torch.cuda.device_count()))
        strategy = ModelParallelStrategy(
            data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    logger = TensorBoardLogger(folder.path, name="tensorboard", version="", purge_step=step + 1 if step else None)
    try:
        return Trainer(
            accelerator="gpu" if train.accelerator == "cuda" else train.accelerator,
            devices=train.devices,
            num_nodes=train.nodes,
            strategy=strategy,
            precision="bf16-mixed" if train.precision == "bfloat16" else "32-true",
            max_steps=train.steps,
            max_epochs=-1,
            val_check_interval=train.val_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=logger,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
            default_root_dir=folder.path,
        )
    except (ValueError, RuntimeError) as error:  # Lightning's own judgement of devices and strategies
        raise ConfigError(
            f"Lightning refuses this hardware: {error}", path="train.devices", value=train.devices
        ) from None


def make_loaders(trainer: Trainer, config: Config, material: Material) -> tuple[StepLoader, DataLoader[Any]]:
    """The training and validation batches of this process.

    Raises:
        ConfigError: the batch does not divide over the processes.
    """
    rank, world, data, train = trainer.global_rank, trainer.world_size, config.data, config.train
    if data.batch_size % world:
        message = f"must divide evenly over {world} processes"
        raise ConfigError(message, path="data.batch_size", value=data.batch_size)
    batches = TrainBatches(material.split.train, data, train.seed, train.steps, rank, world)
    validation = DataLoader(ValBatches(material.split.validation, data, rank, world), batch_size=None)
    return StepLoader(batches, lambda: trainer.global_step), validation


def check_checkpoint(folder: RunFolder, step: int) -> None:
    """Read a checkpoint once, as data only, before Lightning does.

    Raises:
        ConfigError: it is damaged, or holds something other than data.
    """
    path = folder.checkpoint(step)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)["global_step"]
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n", 1)[0]
        older = len(folder.saved_steps()) > 1
        hint = "delete it to go on from the one before" if older else "delete it to begin again"
        raise ConfigError(f"the checkpoint {str(path)!r} is damaged: {reason}", hint=hint) from None
    if found != step:
        raise ConfigError(f"the checkpoint {str(path)!r} is of step {found}: it was renamed")


def export(trainer: Trainer, module: LanguageModule, folder: RunFolder) -> None:
    """Write the weights; the shards of a spread-out model are gathered first."""
    state = trainer.strategy.lightning_module_state_dict()
    if trainer.is_global_zero:
        own = {name.removeprefix("model."): t for name, t in state.items() if name.startswith("model.")}
        save_weights(module.model, folder.weights, state=own)


def draw(folder: RunFolder, material: Material) -> None:
    """Draw the losses, if there are any yet."""
    rows = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    if rows:
        plot_losses(rows, material.bigram, folder.path.name, folder.picture)


def summarise(folder: RunFolder, config: Config, material: Material, recorder: Recorder, params: int) -> dict[str, Any]:
    """Write and return the figures of a finished run."""
    assert recorder.last_val is not None
    steps, loss = recorder.last_val
    rows = [row for row in read_metrics(folder.metrics) if "train_loss" in row]
    summary = {
        "run": str(folder.path),
        "val_loss": loss,
        "bigram_loss": material.bigram,
        "ratio": loss / material.bigram,
        "train_loss": rows[-1]["train_loss"] if rows else None,
        "params": params,
        "steps": steps,
        "tokens": steps * config.data.batch_size * config.data.context,
        "seconds": round(recorder.seconds(), 1),
        "text": material.text.source,
        "torch": str(torch.__version__),
    }
    write_json(folder.summary, summary)
    return summary


@contextmanager
def stopped_by_signals(saver: Saver) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to save and stop after the current step; a second one stops it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if saver.stop:
            raise KeyboardInterrupt
        saver.stop = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notes: the report says what matters, and its advice on workers is not for data in memory."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated.*")
            # Sharded weights on processors: every process draws its own shards, as `configure_model` wants it.
            warnings.filterwarnings("ignore", message="DTensor random operators may not have complete support")
            # Losses of earlier layers go through the later ones, which hand them on as they are.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def is_first_process() -> bool:
    """Whether this process is the run's first, before any process group exists."""
    return all(int(os.environ.get(name, "0")) == 0 for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))
