"""What stands around the layers: embeddings, added tokens, passes, heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.parity.x_transformers.option_set import OptionSet

OLD = ("2.26.4",)
NEW = ("2.31.10",)


def _set(name: str, feature: str = "", part: str = "", paper: str = "", **given: Any) -> OptionSet:
    """A set of wrapper keywords; those of `OptionSet` itself are taken as such."""
    own = (
        "ours_model",
        "layers",
        "stack",
        "call",
        "versions",
        "wrong",
        "incompatible",
        "random",
        "same",
        "decodes",
        "why_not",
    )
    more = {key: given.pop(key) for key in own if key in given}
    return OptionSet(name, model=given, feature=feature, part=part, paper=paper, **more)


def _with(**tensors: Callable[[Tensor], Any]) -> Callable[[Tensor], dict[str, Any]]:
    """Further arguments, each made for the ids."""
    return lambda ids: {name: make(ids) for name, make in tensors.items()}


def _floats(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda ids: torch.randn(len(ids), *[size or ids.shape[1] for size in shape])


def _mask(ids: Tensor) -> Tensor:
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[-1, 7:] = False
    return mask


def _kinds(ids: Tensor) -> dict[str, Tensor]:
    return {"kind": ids % 3, "place": (ids + 1) % 4}


def _bias(ids: Tensor) -> Tensor:
    return torch.randn(4, ids.shape[1], ids.shape[1])


NUMBER = "a number a token is no distribution to draw from"
LOOPS: dict[str, Any] = {"pre_and_post_norm": True}

SETS = [
    _set("emb-dim", "Factorised embedding", "embedding/factorised", "arXiv:1909.11942", emb_dim=16),
    _set("emb-dim-prepended", emb_dim=16, call=_with(prepend_embeds=_floats(3, 16))),
    _set("emb-dim-sinusoidal", emb_dim=16, scaled_sinu_pos_emb=True, post_emb_norm=True),
    _set(
        "embed-num-tokens",
        "Further token ids",
        "embedding/summed",
        "arXiv:1810.04805",
        embed_num_tokens={"kind": 3, "place": 4},
        call=_with(embed_ids=_kinds),
    ),
    _set(
        "embed-num-tokens-normed",
        versions=NEW,
        embed_num_tokens={"kind": 3, "place": 4},
        post_emb_norm=True,
        tie_embedding=True,
        call=_with(embed_ids=_kinds),
    ),
    _set("emb-dropout", "Embedding dropout", "embedding/prefixed.dropout", "", emb_dropout=0.3, same=True),
    _set("post-emb-norm", "Embedding norm", "embedding/tokens.norm", "arXiv:2211.05100", post_emb_norm=True),
    _set(
        "emb-frac-gradient",
        "Embedding gradient fraction",
        "embedding/prefixed.gradient",
        "arXiv:2105.13290",
        emb_frac_gradient=0.1,
        same=True,
    ),
    _set(
        "l2norm-embed",
        "Unit-length embedding (FixNorm)",
        "embedding/tokens.unit",
        "arXiv:1910.05895",
        l2norm_embed=True,
    ),
    _set("l2norm-embed-tied", versions=NEW, l2norm_embed=True, tie_embedding=True, layers={"rotary_pos_emb": True}),
    _set("tie-embedding", "Tied embedding", "head/tied_lm", "arXiv:1608.05859", tie_embedding=True, versions=NEW),
    # Earlier logits of a tied head have no factor.
    _set("tie-embedding-old", tie_embedding=True, versions=OLD, ours_model={"tie_embedding_scale": 1.0}),
    _set(
        "tie-embedding-scale",
        tie_embedding=True,
        tie_embedding_scale=0.7,
        versions=NEW,
        feature="Scale of tied logits",
        part="head/tied_lm.scale",
        paper="arXiv:1608.05859",
    ),
    _set("tie-embedding-norm", versions=NEW, tie_embedding=True, post_emb_norm=True, scaled_sinu_pos_emb=True),
    _set(
        "no-abs-pos",
        "Model without absolute positions",
        "embedding/tokens.position",
        "arXiv:2203.16634",
        use_abs_pos_emb=False,
    ),
    _set("max-seq-len-0", max_seq_len=0, feature="Unbounded length", part="embedding/tokens.position"),
    _set(
        "scaled-sinu-pos-emb",
        "Sinusoidal positions with a learned scale",
        "position/scaled_sinusoidal",
        "arXiv:1706.03762",
        scaled_sinu_pos_emb=True,
    ),
    _set("sum-embeds", "Added features", "embedding/tokens", "", call=_with(sum_embeds=_floats(0, 24))),
    _set(
        "prepend-embeds",
        "Prefix features (PaLI)",
        "embedding/prefixed",
        "arXiv:2209.06794",
        call=_with(prepend_embeds=_floats(5, 24)),
    ),
    _set(
        "prepend-embeds-excised",
        call=_with(prepend_embeds=_floats(5, 24), excise_prepend_embeds=lambda ids: True),
        feature="Prefix left out of the answer",
        part="embedding/prefixed",
    ),
    _set(
        "attn-bias",
        "Score bias given by the caller",
        "mixer/multi_head",
        "",
        call=_with(attn_bias=_bias),
    ),
    _set("memory-tokens", "Memory tokens (registers)", "stack/registers", "arXiv:2006.11527", num_memory_tokens=3),
    _set("memory-tokens-rotary", num_memory_tokens=2, layers={"rotary_pos_emb": True}),
    _set("memory-tokens-encoder", num_memory_tokens=3, stack="Encoder", call=_with(mask=_mask)),
    _set("memory-tokens-prepended", num_memory_tokens=2, emb_dim=16, call=_with(prepend_embeds=_floats(3, 16))),
    _set(
        "memory-tokens-interspersed",
        "Interspersed memory tokens",
        "stack/interspersed",
        "arXiv:2006.11527",
        num_memory_tokens=2,
        memory_tokens_interspersed_every=4,
    ),
    _set(
        "memory-tokens-interspersed-rotary",
        num_memory_tokens=1,
        memory_tokens_interspersed_every=5,
        layers={"rotary_pos_emb": True, "attn_kv_heads": 2},
    ),
    _set(
        "cls-token",
        "Class token",
        "stack/registers.keep",
        "arXiv:1810.04805",
        use_cls_token=True,
        stack="Encoder",
    ),
    _set(
        "cls-tokens",
        use_cls_token=True,
        num_cls_tokens=3,
        stack="Encoder",
        call=_with(mask=_mask),
        feature="Several class tokens",
        part="stack/registers.keep",
        paper="arXiv:1810.04805",
    ),
    _set("cls-token-memory", use_cls_token=True, num_memory_tokens=2, stack="Encoder", layers={"rotary_pos_emb": True}),
    _set(
        "average-pool",
        "Mean pooling",
        "head/pooled",
        "",
        average_pool_embed=True,
        stack="Encoder",
        call=_with(mask=_mask),
    ),
    _set("average-pool-logits", average_pool_embed=True, logits_dim=7, stack="Encoder"),
    _set(
        "attn-pool",
        "Attention pooling",
        "head/attention_pool",
        "arXiv:1810.00825",
        attn_pool=True,
        stack="Encoder",
        call=_with(mask=_mask),
    ),
    _set(
        "attn-pool-tokens",
        attn_pool=True,
        num_pooled_tokens=3,
        dim_pooled_tokens=16,
        stack="Encoder",
        feature="Several pooled tokens",
        part="head/attention_pool.queries",
        paper="arXiv:1810.00825",
    ),
    _set(
        "attn-pool-depth",
        attn_pool=True,
        attn_pool_depth=2,
        dim_pooled_tokens=16,
        stack="Encoder",
        feature="Deep attention pooling",
        part="head/attention_pool.body",
        paper="arXiv:1810.00825",
    ),
    _set("attn-pool-causal", attn_pool=True, num_pooled_tokens=2, same=True),
    _set("logits-dim", "Logits width", "head/lm.vocab_size", "", logits_dim=7),
    _set(
        "return-only-embed",
        "Model without a head",
        "model/transformer.head",
        "",
        return_only_embed=True,
        decodes=True,
    ),
    _set("num-output-heads", "Several output heads", "head/joined", "", num_output_heads=3),
    _set(
        "squeeze-out-last-dim",
        "One number for each token",
        "head/squeezed",
        "",
        logits_dim=1,
        squeeze_out_last_dim=True,
        decodes=False,
        why_not=NUMBER,
    ),
    _set("squeeze-several", logits_dim=1, num_output_heads=2, squeeze_out_last_dim=True),
    _set(
        "mixture-of-softmax",
        "Mixture of softmaxes",
        "head/mixture",
        "arXiv:1711.03953",
        mixture_of_softmax=True,
    ),
    _set("mixture-of-softmax-k", mixture_of_softmax=True, mixture_of_softmax_k=2, sigsoftmax_logits=True),
    _set("mixture-tied", versions=NEW, mixture_of_softmax=True, mixture_of_softmax_k=3, tie_embedding=True),
    _set("sigsoftmax", "Sigsoftmax", "head/sigsoftmax", "arXiv:1805.10829", sigsoftmax_logits=True),
    _set("sigsoftmax-pooled", sigsoftmax_logits=True, average_pool_embed=True, stack="Encoder"),
    _set(
        "continuous-pred-head",
        "Next-embedding head",
        "head/next_embedding",
        "",
        add_continuous_pred_head=True,
        call=_with(return_next_embed_pred=lambda ids: True),
    ),
    _set("continuous-pred-head-alone", add_continuous_pred_head=True, same=True),
    _set(
        "recycling",
        "Recycling (AlphaFold 2)",
        "stack/recycled",
        "https://doi.org/10.1038/s41586-021-03819-2",
        recycling=True,
        call=_with(recycle_steps=lambda ids: 3),
    ),
    _set(
        "recycling-once", recycling=True, train_max_recycle_steps=1, call=_with(recycle_steps=lambda ids: 1), same=True
    ),
    _set("recycling-memory", recycling=True, num_memory_tokens=2, call=_with(recycle_steps=lambda ids: 2)),
    _set(
        "looped",
        "Looped layers (Ouro)",
        "stack/looped",
        "arXiv:2510.25741",
        looped=True,
        max_looped_steps=2,  # four passes in upstream's float32 softmax add up to more than the tolerance
        layers=LOOPS,
    ),
    _set("looped-steps", looped=True, max_looped_steps=3, num_memory_tokens=1, layers=LOOPS),
    _set(
        "looped-fixed",
        looped=True,
        layers=LOOPS,
        call=_with(looped_steps=lambda ids: 2),
        feature="Fixed number of loops",
        part="stack/looped.passes",
        paper="arXiv:2510.25741",
    ),
    _set(
        "z-loss-weight",
        attn_z_loss_weight=0.5,
        same=True,
        feature="Attention z-loss weight",
        part="attention/softmax",
        paper="arXiv:2202.08906",
    ),
    _set(
        "input-not-include-cache",
        input_not_include_cache=True,
        same=True,
        feature="Cached calls with new tokens alone",
        part="model/transformer",
    ),
    _set(
        "everything-in-front",
        num_memory_tokens=2,
        emb_dim=16,
        post_emb_norm=True,
        emb_frac_gradient=0.5,
        mixture_of_softmax=True,
        sigsoftmax_logits=True,
        layers={"rotary_pos_emb": True, "attn_kv_heads": 2, "ff_glu": True},
    ),
]
