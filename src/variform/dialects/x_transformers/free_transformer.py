"""`FreeTransformer`: a decoder that is told latent bits of the text (Fleuret 2025, arXiv:2510.17558)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.core.build import build
from variform.core.spec import Spec, described
from variform.dialects.x_transformers.binary_mapper import NAT, BinaryMapper
from variform.dialects.x_transformers.decoding import check_count
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.filters import filter_of, filters_of, top_p
from variform.dialects.x_transformers.latents import refuse_unknown
from variform.dialects.x_transformers.read import read_layers
from variform.errors import Problem
from variform.generate.readers import evaluating
from variform.generate.samplers import draw
from variform.ops.masks import KeyPadding
from variform.parts.head.heads import LMHead
from variform.parts.stream_ops.key_condition import KeyCondition
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack

__all__ = ["BinaryMapper", "FreeTransformer"]


class LatentCode(nn.Module):
    """What is learned between the halves of a `FreeTransformer`; its names are those of upstream's checkpoints."""

    def __init__(self, dim: int, bits: int, codes: int) -> None:
        super().__init__()
        self.query_token_for_latents = nn.Parameter(torch.randn(dim) * 1e-2)
        self.to_latent_bit_logits = nn.Linear(dim, bits, bias=False)
        self.from_latent_to_condition = nn.Linear(codes, dim, bias=False)


class FreeTransformer(nn.Module):
    """A decoder whose second half is told random bits, which an encoder draws from the text while training.

    With h the first half of the decoder: z = draw(bits(encoder(query; h))) and the keys and values of the first
    attention of the second half are of h + W z. What z tells is paid for in the loss (`BinaryMapper`). Padding has no
    part in that loss.

    Args:
        num_tokens: size of the vocabulary.
        dim: features.
        dec_head_depth: blocks of the first half; 0 for none.
        dec_tail_depth: blocks of the second half.
        max_seq_len: taken as upstream does, which knows no limit either: positions are rotary.
        enc_depth: blocks of the encoder.
        dim_latent: taken for upstream's sake; anything but `dim` is refused.
        attn_dim_head: features of a head.
        heads: heads of all attentions.
        latent_bits: bits of a code; the map from codes has 2^bits columns.
        per_token_latents: a code for each token, or one for the text.
        kl_loss_threshold: nats that a code may tell for free.
        binary_mapper_kwargs: further arguments of the `BinaryMapper`.
        enc_kwargs: further keywords of the encoder.
        dec_kwargs: further keywords of both halves of the decoder.
        kl_loss_weight: of the loss for what codes tell.
        latent_dropout_prob: dropout of codes.
        pad_id: the token of padding.
        **keywords: of all three stacks.

    Raises:
        KeywordError: unknown keywords, or such as do not go with the latents.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        dec_head_depth: int,
        dec_tail_depth: int,
        max_seq_len: int,
        enc_depth: int = 1,
        dim_latent: int | None = None,
        attn_dim_head: int = 64,
        heads: int = 8,
        latent_bits: int = 16,
        per_token_latents: bool = True,
        kl_loss_threshold: float = NAT,
        binary_mapper_kwargs: Mapping[str, Any] | None = None,
        enc_kwargs: Mapping[str, Any] | None = None,
        dec_kwargs: Mapping[str, Any] | None = None,
        kl_loss_weight: float = 1.0,
        latent_dropout_prob: float = 0.0,
        pad_id: int = -1,
        **keywords: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(FreeTransformer, keywords)
        if dim_latent not in (None, dim):
            raise KeywordError(f"latents are mapped to the {dim} features", path="dim_latent", value=dim_latent)
        common = {"dim": dim, "attn_dim_head": attn_dim_head, "heads": heads, **keywords}
        decoder = {**common, **(dec_kwargs or {}), "causal": True}
        tail = _stack({**decoder, "depth": dec_tail_depth}, first_alone=True)
        stacks = [tail]
        if dec_head_depth:
            first = {**decoder, "depth": dec_head_depth, "pre_norm_has_final_norm": False}
            stacks.insert(0, _stack(first, wrapped=False, scope="head."))
        self.pad_id = pad_id
        self.per_token_latents = per_token_latents
        self.kl_loss_weight = kl_loss_weight
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.decoder: Transformer = build(
            Transformer.spec(
                dim=dim, causal=True, embedding=None, stacks=stacks, head=LMHead.spec(vocab_size=num_tokens)
            )
        )
        self.encoder: LayerStack = build(_stack({**common, **(enc_kwargs or {}), "depth": enc_depth}, added=False))
        self.binary_mapper = BinaryMapper(latent_bits, kl_loss_threshold, **(binary_mapper_kwargs or {}))
        self.latent = LatentCode(dim, latent_bits, self.binary_mapper.num_codes)
        self.latent_dropout = nn.Dropout(latent_dropout_prob)

    @property
    def upstream_modules(self) -> dict[str, nn.Module]:
        """What upstream's checkpoints hold under which names."""
        *head, tail = self.decoder.stacks.in_order()
        assert isinstance(self.decoder.head, LMHead)
        return {
            "": self.latent,
            "token_emb.": self.token_emb,
            "token_unembed.": self.decoder.head.project,
            "encoder.": self.encoder,
            **({"decoder_head.": head[0]} if head else {}),
            "decoder_tail.": tail,
        }

    def forward(
        self, seq: Tensor, seq_for_latents: Tensor | None = None, return_all_losses: bool = False
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """The loss: cross entropy of the next tokens, and what the latents tell.

        Args:
            seq: [B, L + 1] ids.
            seq_for_latents: [B, L'] ids of another text, of which one latent is made; by default `seq` without its end.
            return_all_losses: give back (loss, (cross entropy, that of the latents)).
        """
        self._check(seq, 2)
        if seq_for_latents is not None:
            self._check(seq_for_latents, 1)
        inputs, labels = seq[:, :-1], seq[:, 1:].long()
        x = self._first_half(inputs)
        if seq_for_latents is None:
            codes, told = self._latents(x, inputs != self.pad_id, self.per_token_latents)
        else:
            codes, told = self._latents(self._first_half(seq_for_latents), seq_for_latents != self.pad_id, False)
        condition = self.latent.from_latent_to_condition(self.latent_dropout(codes))
        *_, tail = self.decoder.stacks.in_order()
        streams = {"condition": condition}
        assert self.decoder.head is not None
        logits = self.decoder.head(tail(x, streams), streams)
        predicted = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=self.pad_id)
        loss = predicted + self.kl_loss_weight * told
        return (loss, (predicted, told)) if return_all_losses else loss

    def encode_to_latents(
        self,
        decoder_head_embeds: Tensor,
        mask: Tensor | None = None,
        return_kl_loss: bool = False,
        per_token_latents: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Codes drawn from features of the first half, one-hot: [B, L, 2^bits], or [B, 1, 2^bits] for one a text.

        Args:
            decoder_head_embeds: [B, L, dim].
            mask: [B, L] bool, False at padding.
            return_kl_loss: give the loss of the codes back too.
            per_token_latents: as the model says by default.
        """
        per_token = self.per_token_latents if per_token_latents is None else per_token_latents
        codes, told = self._latents(decoder_head_embeds, mask, per_token, return_kl_loss)
        return (codes, told) if return_kl_loss else codes

    def _check(self, ids: Tensor, least: int, padded: bool = True) -> None:
        if ids.dim() != 2 or ids.shape[1] < least or not len(ids):
            raise InputError(f"token ids are [batch, length], {least} of them at least; got {list(ids.shape)}")
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise InputError(f"token ids are integers, not {ids.dtype}")
        if not torch.compiler.is_compiling():
            size, real = self.token_emb.num_embeddings, ids[ids != self.pad_id] if padded else ids
            if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < size:
                raise InputError(f"token ids are from 0 to {size - 1}; got {int(real.min())} to {int(real.max())}")

    def _first_half(self, ids: Tensor) -> Tensor:
        x: Tensor = self.token_emb(ids.clamp(min=0))  # padding may be told by an id that is no token
        *head, _ = self.decoder.stacks.in_order()
        for stack in head:
            x = stack(x, {})
        return x

    def _latents(self, x: Tensor, mask: Tensor | None, each: bool, with_loss: bool = True) -> tuple[Tensor, Tensor]:
        query = self.latent.query_token_for_latents.expand_as(x)
        # One latent is of the tokens wherever they stand: at one position, rotations cancel.
        positions = None if each else torch.zeros(x.shape[1], dtype=torch.long, device=x.device)
        streams: dict[str, Any] = {"condition": x, "valid": mask, "positions": positions}
        if not each and mask is not None:
            streams |= {"valid": None, "mask": KeyPadding(mask)}  # the query stands at every place, padding too
        pooled = self.encoder(query, streams)
        assert isinstance(pooled, Tensor)
        bits = self.latent.to_latent_bit_logits(pooled if each else pooled[:, :1])
        counted = mask if each else None
        codes, told = self.binary_mapper(bits, calc_aux_loss=with_loss, mask=counted)
        return codes, told

    @torch.no_grad()
    def generate(
        self,
        prompts: Tensor,
        seq_len: int,
        latents: Any = None,
        filter_logits_fn: str | Callable[..., Tensor] = top_p,
        logit_filter_kwargs: Mapping[str, Any] | None = None,
        use_kv_cache: bool = True,
    ) -> Tensor:
        """Go on with prompts up to `seq_len` tokens, the prompt included.

        Args:
            prompts: [..., L] ids.
            seq_len: tokens in the end.
            latents: one code a row by its number, [] or [B], or as weights of codes, [2^bits] or [B, 2^bits]; None
                tells the decoder nothing.
            filter_logits_fn: what is done to logits before a token is drawn; a function of logits, or one by name.
            logit_filter_kwargs: its further arguments; by default `thres=0.9` where it has it.
            use_kv_cache: whether keys and values are kept from token to token.
        """
        check_count(seq_len)
        options = logit_filter_kwargs
        if options is None and "thres" in inspect.signature(filter_of(filter_logits_fn)).parameters:
            options = {"thres": 0.9}
        filters = filters_of(filter_logits_fn, options, 1.0)
        if not prompts.dim() or not prompts.shape[-1]:
            raise InputError(f"prompts are [.., length], of one token at least; got {list(prompts.shape)}")
        ids = prompts.reshape(-1, prompts.shape[-1])
        self._check(ids, 1, padded=False)
        condition = self._condition(latents, len(ids))
        with evaluating(self):
            state = self.decoder.init_state(len(ids), max(seq_len, ids.shape[1])) if use_kv_cache else None
            new = ids
            for _ in range(seq_len - ids.shape[1]):
                x = self.token_emb(ids if state is None else new)
                out = self.decoder(x, condition=condition, state=state)
                out, state = out if state is not None else (out, None)
                new = draw(out[:, -1], filters, False, None).unsqueeze(1)
                ids = torch.cat((ids, new), 1)
        return ids.reshape(*prompts.shape[:-1], ids.shape[1])

    def _condition(self, latents: Any, rows: int) -> Tensor | None:
        if latents is None:
            return None
        weight = self.latent.from_latent_to_condition.weight
        codes = latents if isinstance(latents, Tensor) else torch.tensor(latents)
        codes = codes.to(weight.device)
        if not codes.is_floating_point():
            count = self.binary_mapper.num_codes
            if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < count:
                raise InputError(f"latents are codes in [0, {count}), not {codes.tolist()}")
            codes = F.one_hot(codes.long(), self.binary_mapper.num_codes)
        told: Tensor = self.latent.from_latent_to_condition(codes.to(weight.dtype))
        if told.dim() > 2 or (told.dim() == 2 and len(told) not in (1, rows)):
            raise InputError(f"one latent, or one for each of the {rows} rows, is needed, not {list(codes.shape)}")
        return told.expand(rows, -1)


def _stack(
    keywords: Mapping[str, Any],
    *,
    wrapped: bool = True,
    first_alone: bool = False,
    added: bool = True,
    scope: str = "",
) -> Spec:
    """A stack whose attentions, or the first alone, read keys and values off the condition.

    Shared parts have names within `scope`.
    """
    chosen = {"rotary_pos_emb": True, "use_rmsnorm": True, **keywords}
    _, spec = read_layers("FreeTransformer", chosen, scope=scope)
    if not wrapped:
        return spec
    layers = list(spec["layers"]) if spec.part is LayerStack else []
    if not layers or not all(isinstance(layer, Spec) and "sublayers" in layer.args for layer in layers):
        raise KeywordError([Problem("", "latents need blocks of attention and feedforward, in one residual stream")])
    count = 1 if first_alone else len(layers)
    layers[:count] = [_conditioned(layer, added) for layer in layers[:count]]
    return spec.replace(layers=layers)


def _conditioned(layer: Spec, added: bool) -> Spec:
    first, *rest = layer["sublayers"]
    step = described(first)
    return layer.replace(
        sublayers=[step.replace(body=KeyCondition.spec(body=step["body"], added=added, project=False)), *rest]
    )
