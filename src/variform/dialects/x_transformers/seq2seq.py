"""`XTransformer`: an encoder and a decoder that reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.build import build
from variform.core.spec import Spec
from variform.dialects.x_transformers.answers import HEADS
from variform.dialects.x_transformers.attention_layers import AttentionLayers, Decoder, Encoder
from variform.dialects.x_transformers.autoregressive_wrapper import AutoregressiveWrapper
from variform.dialects.x_transformers.errors import KeywordError
from variform.dialects.x_transformers.model import MODEL, ModelDraft, read_model, stack_path
from variform.dialects.x_transformers.read import resolved
from variform.dialects.x_transformers.routes import KNOWN
from variform.dialects.x_transformers.table import REQUIRED, Route, Table, kept, problems_of, raise_any
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.errors import Problem, did_you_mean
from variform.stack.encoder_decoder import EncoderDecoder

XTRANSFORMER: Table = {
    "dim": Route(REQUIRED, kept, types=(int,)),
    "tie_token_emb": Route(False, kept),
    "ignore_index": Route(-100, kept, types=(int,)),
    "pad_value": Route(0, kept, types=(int,)),
    "cross_attn_tokens_dropout": Route(0.0, kept, types=(int, float)),
}
_ANSWERS = {*HEADS, "tie_embedding", "tie_embedding_scale", "use_cls_token", "num_cls_tokens"}
_APART = {"attn_layers", "return_only_embed", "attn_z_loss_weight", "max_mem_len", "shift_mem_down"}
_APART |= {"input_not_include_cache"}
_WHOLE = {"average_pool_embed", "attn_pool", "num_pooled_tokens", "attn_pool_depth", "dim_pooled_tokens"}
SIDES = {
    "enc_": [name for name in MODEL if name not in _ANSWERS | _APART],
    "dec_": [name for name in MODEL if name not in {"use_cls_token", "num_cls_tokens"} | _APART | _WHOLE],
}
"""Keywords of `TransformerWrapper` that each side takes beside those of its layers: an encoder has no answers of its
own, and a decoder answers token by token."""


class XTransformer(nn.Module):
    """An encoder-decoder (Vaswani et al. 2017, arXiv:1706.03762), described by upstream's keywords.

    What is built is a model of the core, `native`; `spec` is its full description.

    Shapes:
        src: [B, Ls] token ids, tgt: [B, Lt] token ids -> the decoder's next-token loss, a scalar

    Args:
        dim: features of both sides.
        tie_token_emb: one token embedding for both sides.
        ignore_index: targets of this value do not count.
        pad_value: what an ended row is filled up with.
        cross_attn_tokens_dropout: part of the source's tokens that the decoder does not see, drawn for each row, in
            training (Perceiver AR, Hawthorne et al. 2022, arXiv:2202.07765).
        **keywords: `enc_...` and `dec_...`: those of `TransformerWrapper` (see `SIDES`), of `Encoder` and of `Decoder`.

    Raises:
        KeywordError: unknown or unsupported keywords, and values that do not fit.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        sides = {prefix: _trimmed(keywords, prefix) for prefix in SIDES}
        own = {name: value for name, value in keywords.items() if not name.startswith(tuple(SIDES))}
        raise_any(_problems(own, sides))
        dim, tied = own["dim"], own.get("tie_token_emb", False)
        parts = _both(sides, dim)
        raise_any(_agreement(parts, tied))
        for _, draft in parts.values():
            draft.share_tokens = tied
        encoder, decoder = (draft.spec(layers) for layers, draft in parts.values())
        dropped = float(own.get("cross_attn_tokens_dropout", 0.0))
        spec = resolved(EncoderDecoder.spec(encoder=encoder, decoder=decoder, dim=dim, context_dropout=dropped))
        ready = {f"encoder.{stack_path(parts['enc_'][1])}": parts["enc_"][0].native}
        ready[f"decoder.{stack_path(parts['dec_'][1])}"] = parts["dec_"][0].native
        self.native: EncoderDecoder = build(spec, ready=ready)
        net = TransformerWrapper.around(self.native.decoder, *parts["dec_"])
        # Not registered: their parameters are the native model's.
        self.__dict__["_encoder"] = TransformerWrapper.around(self.native.encoder, *parts["enc_"])
        self.__dict__["_decoder"] = AutoregressiveWrapper(net, own.get("ignore_index", -100), own.get("pad_value", 0))

    @property
    def spec(self) -> Spec:
        """The full description of both sides."""
        return self.native.spec

    @property
    def unit_offset(self) -> bool:
        """Whether upstream's checkpoints of this model store the gains of norms less one."""
        return self.encoder.unit_offset

    @property
    def encoder(self) -> TransformerWrapper:
        """The encoder by itself, with the same modules."""
        encoder: TransformerWrapper = self.__dict__["_encoder"]
        return encoder

    @property
    def decoder(self) -> AutoregressiveWrapper:
        """The decoder by itself, with the same modules."""
        decoder: AutoregressiveWrapper = self.__dict__["_decoder"]
        return decoder

    @property
    def ignore_index(self) -> int:
        """Targets of this value do not count."""
        return self.decoder.ignore_index

    @property
    def pad_value(self) -> int:
        """What an ended row is filled up with."""
        return self.decoder.pad_value

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation, of both sides."""
        self.encoder.train(mode)
        self.decoder.train(mode)
        return super().train(mode)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        src_prepend_embeds: Tensor | None = None,
        *,
        src_condition: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The decoder's mean loss.

        Args:
            src: token ids of the source.
            tgt: token ids of the target.
            mask: [B, Ls] bool, True at real tokens of the source.
            attn_mask: what may attend to what within the source.
            src_prepend_embeds: [B, P, dim] features before the source's tokens.
            src_condition: of the encoder's adaptive parts, [B, C] or [B, Ls, C].
            condition: the same of the decoder's.
        """
        sides = {"mask": mask, "attn_mask": attn_mask, "condition": src_condition}
        context = self.encoder(src, **sides, prepend_embeds=src_prepend_embeds, return_embeddings=True)
        if mask is not None and src_prepend_embeds is not None:
            mask = F.pad(mask, (src_prepend_embeds.shape[1], 0), value=True)
        context, mask = self.native.dropped(context, mask)
        loss: Tensor = self.decoder(tgt, context=context, context_mask=mask, condition=condition)
        return loss

    @torch.no_grad()
    def generate(
        self,
        seq_in: Tensor,
        seq_out_start: Tensor,
        seq_len: int,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        *,
        src_condition: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Continue target prompts for sources.

        Args:
            seq_in: [B, Ls] token ids of the sources.
            seq_out_start: [B, Lt] token ids the targets begin with.
            seq_len: how many tokens to add.
            mask: [B, Ls] bool, True at real tokens of the source.
            attn_mask: what may attend to what within the source.
            src_condition: of the encoder's adaptive parts.
            **options: of `AutoregressiveWrapper.generate`, with the decoder's `condition` among them.
        """
        sides = {"mask": mask, "attn_mask": attn_mask, "condition": src_condition}
        context = self.encoder(seq_in, **sides, return_embeddings=True)
        return self.decoder.generate(seq_out_start, seq_len, context=context, context_mask=mask, **options)


def _trimmed(keywords: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in keywords.items() if name.startswith(prefix)}


def _problems(own: Mapping[str, Any], sides: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    known = [*XTRANSFORMER, *(prefix + name for prefix, taken in SIDES.items() for name in (*taken, *KNOWN))]
    found = problems_of("XTransformer", XTRANSFORMER, own, dict.fromkeys(known))
    dropped = own.get("cross_attn_tokens_dropout", 0.0)
    if isinstance(dropped, int | float) and not 0.0 <= dropped < 1.0:
        found.append(Problem("cross_attn_tokens_dropout", "a probability in [0, 1) is needed", dropped))
    for prefix, given in sides.items():
        taken = {name: value for name, value in given.items() if name in SIDES[prefix]}
        table = {name: MODEL[name] for name in SIDES[prefix]}
        found += problems_of("XTransformer", table, taken, dict.fromkeys(known), prefix)
        if "dim" in given:
            found.append(Problem(f"{prefix}dim", "both sides have the width dim; leave it out", given["dim"]))
        for name in given:
            if name in MODEL and name not in SIDES[prefix]:
                message = f"not supported for a side of XTransformer; it takes {', '.join(SIDES[prefix])}, and layers"
                found.append(Problem(prefix + name, message))
    return found


def _both(sides: Mapping[str, Mapping[str, Any]], dim: int) -> dict[str, tuple[AttentionLayers, ModelDraft]]:
    """The layers and the draft of each side; the problems of both at once, named as the caller wrote them."""
    parts: dict[str, tuple[AttentionLayers, ModelDraft]] = {}
    problems: list[Problem] = []
    for prefix, given in sides.items():
        try:
            parts[prefix] = _side(prefix, given, dim)
        except KeywordError as error:
            problems += [_of_side(problem, prefix) for problem in error.problems]
    raise_any(problems)
    return parts


def _of_side(problem: Problem, prefix: str) -> Problem:
    """A problem of a side, in which keywords are called as the caller writes them."""
    path, hint = problem.path, problem.hint
    if "." not in path and path not in (*KNOWN, *MODEL):  # those of layers and of models are all of a side
        hint = did_you_mean(path, (*KNOWN, *SIDES[prefix]))
    if hint.startswith("did you mean"):
        hint = re.sub(r"'(?!dim')(\w+)'", rf"'{prefix}\1'", hint)
    return replace(problem, path=prefix + problem.path, hint=hint)


def _side(prefix: str, given: Mapping[str, Any], dim: int) -> tuple[AttentionLayers, ModelDraft]:
    outer = {name: value for name, value in given.items() if name in SIDES[prefix]}
    inner = {name: value for name, value in given.items() if name not in SIDES[prefix]}
    layers: AttentionLayers  # each side has tables and tied layers of its own
    if prefix == "enc_":
        layers = Encoder.within("encoder.", dim=dim, **inner)
    else:
        layers = Decoder.within("decoder.", dim=dim, **{"cross_attend": True, **inner})
    only = {"return_only_embed": True} if prefix == "enc_" else {}
    return layers, read_model("XTransformer", {**outer, **only, "attn_layers": layers})


def _agreement(parts: Mapping[str, tuple[AttentionLayers, ModelDraft]], tied: bool) -> list[Problem]:
    (encoder, source), (decoder, target) = parts.values()
    found = []
    if encoder.unit_offset != decoder.unit_offset:
        message = "must be the same on both sides"
        found.append(Problem("dec_norm_add_unit_offset", message, decoder.unit_offset))
    for prefix, draft in (("enc_", source), ("dec_", target)) if tied else ():
        for name in ("token_emb", "embed_num_tokens", "l2norm_embed"):
            if getattr(draft, name):
                message = "not with tie_token_emb=True: both sides have one plain embedding"
                found.append(Problem(f"{prefix}{name}", message))
        if (draft.emb_dim or encoder.dim) != (source.emb_dim or encoder.dim):
            message = "tied embeddings need one width on both sides"
            found.append(Problem(f"{prefix}emb_dim", message, draft.emb_dim))
    for prefix, draft in (("enc_", source), ("dec_", target)):
        if draft.embed_num_tokens:
            message = "the sides of an XTransformer are given tokens alone, and no further ids"
            found.append(Problem(f"{prefix}embed_num_tokens", message, draft.embed_num_tokens))
    if tied and source.num_tokens != target.num_tokens:
        message = f"tied embeddings need as many tokens as the encoder has, {source.num_tokens}"
        found.append(Problem("dec_num_tokens", message, target.num_tokens))
    return found
