"""Llama: a causal language model with rotary positions, RMSNorm and SwiGLU."""

from __future__ import annotations

from variform.core.fields import Depth
from variform.core.registry import preset
from variform.core.spec import Spec
from variform.errors import ConfigError
from variform.models.decoder import language_model, pre_norm_layer
from variform.models.mixing import Attending, attending
from variform.parts.attention.softmax import LocalAttention
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import GLU
from variform.parts.norm.norms import RMSNorm
from variform.parts.position.rotary import RotaryRotation


@preset
def llama(
    *,
    vocab_size: int,
    dim: int,
    depth: Depth,
    heads: int,
    max_seq_len: int | None = None,
    kv_heads: int | None = None,
    window: int | None = None,
    hidden: int | None = None,
    rope_base: float = 10000.0,
    rope_layout: str = "half",
    eps: float = 1e-6,
    dropout: float = 0.0,
    tie: bool = False,
    init_std: float | None = 0.02,
    attention: Attending = None,
) -> Spec:
    """A Llama style decoder (Touvron et al. 2023, arXiv:2302.13971).

    Args:
        vocab_size: number of different tokens.
        dim: features of the residual stream.
        depth: number of layers.
        heads: number of attention heads; divides `dim`.
        max_seq_len: longest sequence; None for no limit.
        kv_heads: key and value heads, a divisor of `heads`; as many by default.
        window: each token attends to this many tokens, itself included (Mistral, Jiang et al. 2023,
            arXiv:2310.06825); to all before it when None.
        hidden: inner width of the SwiGLU; by default 8/3 dim, rounded up to a multiple of 64.
        rope_base: base of the rotary wavelengths.
        rope_layout: "half" as in Llama checkpoints, or "interleaved".
        eps: of the norms.
        dropout: probability of zeroing an embedding or branch feature, in training.
        tie: use the token embedding as the output head.
        init_std: standard deviation of initial weights; None for torch's.
        attention: what mixes the tokens: the name or the description of an attention or a mixer (`variform parts`).
    """
    norm = RMSNorm.spec(eps=eps)
    inner = hidden or -(-8 * dim // (3 * 64)) * 64
    if window is not None and attention is not None:
        raise ConfigError("is a sliding window of softmax attention: give attention or window", path="window")
    chosen = attention if window is None else LocalAttention.spec(window=window)
    rotation = RotaryRotation.spec(base=rope_base, layout=rope_layout)
    mixer = attending(chosen, kv_heads=kv_heads, rotation=rotation)
    layer = pre_norm_layer([mixer, GLU.spec(hidden=inner)], norm, dropout)
    return language_model(
        TokenEmbedding.spec(dropout=dropout),
        [layer] * depth,
        norm,
        tie=tie,
        dim=dim,
        heads=heads,
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
        init_std=init_std,
    )
