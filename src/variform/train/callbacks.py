"""Lightning callbacks: the loss log and samples, and checkpoints that resume exactly."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor

from variform.errors import VariformError
from variform.train.folder import RunFolder
from variform.train.journal import COLUMNS, Journal, row
from variform.train.report import Report
from variform.train.sampling import sample_text
from variform.train.sections import TrainSection
from variform.train.vocabulary import Characters


class Interrupted(VariformError):
    """A run was stopped by a signal; all of it up to then is saved."""


class Recorder(Callback):
    """Writes the loss log, TensorBoard's events and samples.

    Its state is how long the files were, so that a resumed run neither loses a row nor has one twice.

    Args:
        folder: where.
        train: how often.
        tokens: characters in one step.
        vocabulary: for samples.
        bigram: the loss to compare with.
        report: where people look.
    """

    def __init__(
        self,
        folder: RunFolder,
        train: TrainSection,
        tokens: int,
        vocabulary: Characters,
        bigram: float,
        report: Report,
    ) -> None:
        self.train, self.tokens, self.vocabulary, self.bigram, self.report = train, tokens, vocabulary, bigram, report
        self.journals = {
            "metrics": Journal(folder.metrics, ",".join(COLUMNS) + "\n"),
            "samples": Journal(folder.samples),
        }
        self.sizes = dict.fromkeys(self.journals, 0)
        self.before = 0.0
        self.started: float | None = None
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.loss_count = 0
        self.shown = ""
        self.last_val: tuple[int, float] | None = None

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        sizes = {name: journal.size() for name, journal in self.journals.items()}
        kept = {"sizes": sizes, "seconds": self.seconds(), "loss_count": self.loss_count, "last_val": self.last_val}
        return {**kept, "loss_sum": self.loss_sum.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.sizes, self.before = dict(state_dict["sizes"]), float(state_dict["seconds"])
        self.loss_sum, self.loss_count = state_dict["loss_sum"], int(state_dict["loss_count"])
        self.last_val = state_dict["last_val"]

    def seconds(self) -> float:
        """Training time so far, over all sittings."""
        return self.before + (0.0 if self.started is None else time.perf_counter() - self.started)

    # ---- hooks ----

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Cut the files back to the checkpoint, or start them."""
        self._open(trainer)
        self.started = time.perf_counter()
        self.report.start(trainer.global_step, self.train.steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the step's loss; every `log_every` steps a row with their mean."""
        step = trainer.global_step
        loss_now = outputs["cross_entropy"].double()
        self.loss_sum = self.loss_sum.to(loss_now.device) + loss_now
        self.loss_count += 1
        if step % self.train.log_every and step != self.train.steps:
            return
        loss = float(trainer.strategy.reduce(self.loss_sum / self.loss_count, reduce_op="mean"))
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        norm = float(whole(pl_module.gradient_norm))
        rate = float(pl_module.last_rate)
        self._log(trainer, {"step": step, "train_loss": loss, "lr": rate, "grad_norm": norm})
        self.shown = f"train {loss:.3f}"
        self._show(step)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """A row with the validation loss, a line for people, and a sample when it is due."""
        step, loss = trainer.global_step, pl_module.val_loss
        self.last_val = (step, loss)
        self._log(trainer, {"step": step, "val_loss": loss})
        self._show(step)
        parts = [f"step {step:>6}", self.shown, f"validation {loss:.3f}", f"bigram {self.bigram:.3f}"]
        self.report.line(" | ".join([*filter(None, parts), f"{self.seconds():.0f} s"]))
        if self._sample_due(step):
            self._sample(trainer, pl_module, step)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the terminal and the files in order."""
        self.finish()

    def finish(self) -> None:
        """Close the files."""
        self.before, self.started = self.seconds(), None
        self.report.stop()
        for journal in self.journals.values():
            journal.close()

    def settle(self, trainer: Trainer) -> None:
        """Make the running sum that of all processes: a checkpoint holds the first process's state alone."""
        if trainer.world_size > 1:
            self.loss_sum = trainer.strategy.reduce(self.loss_sum.to(trainer.strategy.root_device), reduce_op="mean")

    # ---- internals ----

    def _open(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            for name, journal in self.journals.items():
                if journal.file is None:
                    journal.open(self.sizes[name])

    def _log(self, trainer: Trainer, values: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            self._open(trainer)  # a run that is resumed after its last step only has a validation left
            values["tokens"] = values["step"] * self.tokens
            self.journals["metrics"].write(row(values))
            step = values["step"]
            shown = {name: value for name, value in values.items() if name not in ("step", "tokens")}
            for logger in trainer.loggers:
                logger.log_metrics(shown, step)

    def _show(self, step: int) -> None:
        val = "" if self.last_val is None else f"validation {self.last_val[1]:.3f}"
        self.report.advance(step, f"{self.shown} {val} bigram {self.bigram:.3f}")

    def _sample_due(self, step: int) -> bool:
        if self.train.samples.tokens == 0:
            return False
        validations, every = step // self.train.val_every, self.train.samples.every
        return validations <= 1 or step == self.train.steps or (every is not None and validations % every == 0)

    def _sample(self, trainer: Trainer, module: Any, step: int) -> None:
        # All processes draw the same text together: the layers of a sharded model are gathered by all of them.
        text = sample_text(module.model, self.vocabulary, self.train.samples, self.train.seed, step)
        if trainer.is_global_zero:
            self.journals["samples"].write(f"--- sample after step {step} ---\n{text}\n\n")
        self.report.line(f"--- sample after step {step} ---\n{text}\n---")


class Saver(Checkpoint):
    """Saves the full trainer state every so often, and when the run is asked to stop.

    A step's checkpoint comes after its validation, so that a resumed run has neither to repeat nor to skip it. The
    newest two are kept.

    Args:
        folder: where.
        train: how often.
        recorder: whose files the checkpoint goes with.
        export: writes the weights; called before a stopped run ends.
    """

    def __init__(
        self, folder: RunFolder, train: TrainSection, recorder: Recorder, export: Callable[[Trainer], None]
    ) -> None:
        self.folder, self.train, self.recorder, self.export = folder, train, recorder, export
        self.stop = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save, unless the step's validation is still to come."""
        if trainer.global_step % self.train.val_every:
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save after a validation within the training."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        stop = self._stop_together(trainer, step)
        if stop or step % self.train.checkpoint_every == 0 or step == self.train.steps:
            self._save(trainer, step)
        if stop and step < self.train.steps:
            self.export(trainer)
            raise Interrupted(f"interrupted after step {step} of {self.train.steps}; everything so far is saved")

    def _save(self, trainer: Trainer, step: int) -> None:
        self.recorder.settle(trainer)
        trainer.save_checkpoint(self.folder.checkpoint(step))
        if trainer.is_global_zero:
            for old in self.folder.saved_steps()[:-2]:
                self.folder.checkpoint(old).unlink(missing_ok=True)

    def _stop_together(self, trainer: Trainer, step: int) -> bool:
        """Whether to stop now; several processes agree on it, every `log_every` steps."""
        if trainer.world_size == 1:
            return self.stop
        if step % self.train.log_every:
            return False
        return bool(trainer.strategy.reduce_boolean_decision(self.stop, all=False))


def whole(value: Tensor | None) -> Tensor:
    """A tensor that may be spread over processes, in one piece."""
    assert value is not None
    return value.full_tensor() if isinstance(value, DTensor) else value
