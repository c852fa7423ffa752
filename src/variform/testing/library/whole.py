"""Whole models."""

from __future__ import annotations

from typing import Any

from variform import models
from variform.stack.encoder_decoder import EncoderDecoder
from variform.stack.model import Transformer
from variform.testing.samples import Sample, samples_for

SIZES: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4}


TEXT: dict[str, Any] = {"vocab_size": 11, "max_seq_len": 160, **SIZES}


@samples_for(Transformer)
def _transformer() -> list[Sample]:
    return [
        Sample(models.gpt(**TEXT, tie=True), "gpt"),
        Sample(models.llama(**TEXT, kv_heads=2), "llama"),
        Sample(models.bert(**TEXT), "bert"),
        Sample(models.vit(image_size=6, patch_size=2, **SIZES, classes=3), "vit"),
    ]


@samples_for(EncoderDecoder)
def _encoder_decoder() -> list[Sample]:
    return [Sample(models.seq2seq(**TEXT), "seq2seq")]
