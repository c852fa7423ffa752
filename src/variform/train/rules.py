"""Rules of a training config that go beyond one field."""

from __future__ import annotations

from variform.core.spec import Spec
from variform.errors import Problem, nearest_multiples
from variform.train.sections import DataSection, TrainSection


def model_problems(spec: Spec, data: DataSection, vocab_size: int | None) -> list[Problem]:
    """Why a model cannot be trained to predict the next character of the text.

    Args:
        spec: the resolved model.
        data: how the text is cut.
        vocab_size: how many different characters the text has; None when it has not been read.
    """
    if spec.kind != "model" or "vocab_size" not in spec.args:
        return [Problem("", f"a {spec.kind} ({spec.name}) cannot be trained on text", hint="a preset such as gpt can")]
    problems: list[Problem] = []
    if spec.get("causal") is not True:
        hint = "set causal: true, or take a causal preset"
        problems.append(Problem("causal", "a model that predicts the next character must be causal", hint=hint))
    if spec.get("head") is None:
        problems.append(Problem("head", "a language model needs a head that gives logits", hint="write head: lm"))
    limit = spec.get("max_seq_len")
    if isinstance(limit, int) and limit < data.context:
        hint = f"raise it, or lower data.context ({data.context})"
        problems.append(Problem("max_seq_len", "shorter than the training windows", limit, hint))
    size = spec.get("vocab_size")
    if vocab_size is not None and size != vocab_size:
        hint = "write vocab_size: from data"
        problems.append(Problem("vocab_size", f"the text has {vocab_size} different characters", size, hint))
    return problems


def contradictions(data: DataSection, train: TrainSection) -> list[Problem]:
    """Settings that are valid alone and not together."""
    problems: list[Problem] = []
    if train.warmup > train.steps:
        problems.append(Problem("train.warmup", f"longer than the training of {train.steps} steps", train.warmup))
    if train.schedule == "constant" and "final_lr" in train.model_fields_set and train.final_lr != 1.0:
        problems.append(Problem("train.final_lr", "a constant schedule has no other final rate", train.final_lr))
    if isinstance(train.devices, int):
        world = train.devices * train.nodes
        if data.batch_size % world:
            hint = nearest_multiples(data.batch_size, world)
            message = f"must divide evenly over {world} processes"
            problems.append(Problem("data.batch_size", message, data.batch_size, hint))
    if train.nodes > 1 and train.run is None:
        problems.append(Problem("train.run", "training on several machines needs a run folder that all of them know"))
    if train.name is not None and train.run is not None:
        problems.append(Problem("train.name", "train.run names the whole folder: give one of the two", train.name))
    if train.name is not None and (train.name in ("", ".", "..") or "/" in train.name or "\\" in train.name):
        problems.append(Problem("train.name", "a name, not a path", train.name, "train.out is the folder of the runs"))
    return problems
