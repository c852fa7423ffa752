"""What a run works on: the text, its ids, the resolved model, the loss to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from variform.core.spec import Spec
from variform.train.bigram import bigram_loss
from variform.train.config import Config, write_config
from variform.train.data import Split, split_ids
from variform.train.folder import RunFolder, write_json
from variform.train.text import Text, load_text
from variform.train.vocabulary import Characters


@dataclass(frozen=True)
class Material:
    """What a run works on.

    Args:
        text: the text.
        vocabulary: its characters.
        split: its ids in two parts.
        spec: the resolved model.
        bigram: validation loss of the bigram model.
    """

    text: Text
    vocabulary: Characters
    split: Split
    spec: Spec
    bigram: float

    def facts(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        parts = {"train": self.split.train.shape[0], "validation": self.split.validation.shape[0]}
        return {"source": self.text.source, "sha256": self.text.sha256, **parts, "bigram_loss": self.bigram}


def prepare(config: Config) -> Material:
    """Read the text and resolve the model.

    Raises:
        ConfigError: the text cannot be had or is too short, the model does not fit it, a prompt is not in it.
    """
    text = load_text(config.data.text)
    vocabulary = Characters.of(text.content)
    spec = config.spec(len(vocabulary))
    split = split_ids(vocabulary.encode(text.content), config.data)
    if config.train.samples.tokens:
        vocabulary.encode(config.train.samples.prompt)
    bigram = bigram_loss(split.train, split.validation, len(vocabulary), config.data)
    return Material(text, vocabulary, split, spec, bigram)


def fill_folder(folder: RunFolder, config: Config, material: Material) -> None:
    """Write what a run folder holds from the start."""
    plain = config.plain(material.spec, material.text.source)
    if config.train.threads is None and config.train.devices == 1:
        plain["train"]["threads"] = torch.get_num_threads()  # sums depend on it in their last bits
    write_config(plain, folder.config)
    material.vocabulary.save(folder.vocabulary)
    write_json(folder.data, {**material.facts(), "sharded": config.train.strategy == "fsdp2"})
