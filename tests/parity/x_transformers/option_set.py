"""What a family of options has to say about itself: the data behind the parity tests and the ledger of the docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

LAYERS: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 4, "attn_dim_head": 8}
"""Keywords of the stack in every set, unless a set says otherwise."""

MODEL: dict[str, Any] = {"num_tokens": 50, "max_seq_len": 32}
"""Keywords of the wrapper in every set, unless a set says otherwise."""

VERSIONS = ("2.26.4", "2.31.10")
"""The releases of x-transformers that everything is compared with."""


@dataclass(frozen=True)
class OptionSet:
    """One way to configure a `TransformerWrapper`, compared with upstream's from the same keywords and weights.

    Args:
        name: of the set, words-with-hyphens, of its own.
        layers: keywords of the stack, over `LAYERS`; None leaves one out.
        model: keywords of the wrapper, over `MODEL`.
        ours: further keywords of the stack that this library alone has.
        ours_model: the same of the wrapper.
        stack: the class of the stack.
        feature: what the ledger and the gallery call it; "" leaves a combination or a variant out of them.
        about: what it does, for the gallery: a sentence or two, with the formula.
        part: the part or slot of the core that does it, as `kind/name` or `kind/name.field`.
        paper: its source, an arXiv identifier ("arXiv:2409.04431") or a link; "" for none.
        call: further arguments of `forward`, made for ids [B, L].
        versions: the releases that have these keywords.
        wrong: why upstream's result is not the right one, and is not compared; "" where it is.
        incompatible: why the weights have no counterpart upstream; "" where they do.
        random: whether results are random in evaluation too, so that distributions are compared elsewhere.
        same: whether the option changes nothing in the function (an option of speed or of training alone).
        decodes: whether it is decoded with a cache; None asks the model, which must be able to where it is causal.
        why_not: why it cannot decode, shown in the ledger.
    """

    name: str
    layers: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    ours_model: Mapping[str, Any] = field(default_factory=dict)
    stack: Literal["Decoder", "Encoder", "PrefixDecoder", "CrossAttender"] = "Decoder"
    feature: str = ""
    about: str = ""
    part: str = ""
    paper: str = ""
    call: Callable[[Tensor], dict[str, Any]] | None = None
    versions: tuple[str, ...] = VERSIONS
    wrong: str = ""
    incompatible: str = ""
    random: bool = False
    same: bool = False
    decodes: bool | None = None
    why_not: str = ""

    def keywords(self, upstream: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """All keywords of the stack and of the wrapper, those of this library alone left out for `upstream`."""
        chosen = {**LAYERS, **self.layers, **({} if upstream else self.ours)}
        layers = {name: value for name, value in chosen.items() if value is not None}
        return layers, {**MODEL, **self.model, **({} if upstream else self.ours_model)}
