"""GPT: a causal language model with learned positions and pre-norm layers."""

from __future__ import annotations

from variform.core.fields import Depth
from variform.core.registry import preset
from variform.core.spec import Spec
from variform.models.decoder import language_model, pre_norm_layer
from variform.models.mixing import Attending, attending
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition


@preset
def gpt(
    *,
    vocab_size: int,
    dim: int,
    depth: Depth,
    heads: int,
    max_seq_len: int,
    kv_heads: int | None = None,
    mult: float = 4.0,
    dropout: float = 0.0,
    bias: bool = False,
    tie: bool = False,
    init_std: float | None = 0.02,
    attention: Attending = None,
) -> Spec:
    """A GPT-2 style decoder (Radford et al. 2019): pre-norm layers of attention and MLP, learned positions.

    Args:
        vocab_size: number of different tokens.
        dim: features of the residual stream.
        depth: number of layers.
        heads: number of attention heads; divides `dim`.
        max_seq_len: longest sequence.
        kv_heads: key and value heads, a divisor of `heads`; as many by default.
        mult: inner width of the MLP as a multiple of `dim`.
        dropout: probability of zeroing an embedding, attention weight or branch feature, in training.
        bias: learn offsets in the linear maps and norms.
        tie: use the token embedding as the output head.
        init_std: standard deviation of initial weights, residual writes scaled down with depth; None for torch's.
        attention: what mixes the tokens: the name or the description of an attention or a mixer (`variform parts`).
    """
    norm = LayerNorm.spec(bias=bias)
    mixer = attending(attention, dropout, kv_heads=kv_heads, bias=bias, out_bias=bias)
    layer = pre_norm_layer([mixer, MLP.spec(mult=mult, bias=bias)], norm, dropout)
    return language_model(
        TokenEmbedding.spec(position=LearnedPosition.spec(), dropout=dropout),
        [layer] * depth,
        norm,
        tie=tie,
        dim=dim,
        heads=heads,
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
        init_std=init_std,
    )
