"""Presets: functions that return the spec of a well-known kind of model."""

from variform.models.bert import bert
from variform.models.gpt import gpt
from variform.models.llama import llama
from variform.models.seq2seq import seq2seq
from variform.models.vit import vit

__all__ = ["bert", "gpt", "llama", "seq2seq", "vit"]
