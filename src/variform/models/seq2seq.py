"""Encoder-decoder for sequence-to-sequence tasks."""

from __future__ import annotations

from variform.core.fields import Depth
from variform.core.registry import preset
from variform.core.spec import Shared, Spec
from variform.models.mixing import Attending, attending, begun
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.head.heads import LMHead
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition
from variform.stack.encoder_decoder import EncoderDecoder
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer


@preset
def seq2seq(
    *,
    vocab_size: int,
    dim: int,
    depth: Depth,
    heads: int,
    max_seq_len: int,
    source_vocab_size: int | None = None,
    source_max_seq_len: int | None = None,
    encoder_depth: Depth | None = None,
    mult: float = 4.0,
    dropout: float = 0.0,
    tie: bool = False,
    init_std: float | None = 0.02,
    attention: Attending = None,
) -> Spec:
    """An encoder-decoder (Vaswani et al. 2017, arXiv:1706.03762) in pre-norm form.

    Args:
        vocab_size: number of different target tokens.
        dim: features of the residual streams.
        depth: number of decoder layers.
        heads: number of attention heads; divides `dim`.
        max_seq_len: longest target.
        source_vocab_size: number of different source tokens; the target's by default.
        source_max_seq_len: longest source; the target's by default.
        encoder_depth: number of encoder layers; `depth` by default.
        mult: inner width of the MLPs as a multiple of `dim`.
        dropout: probability of zeroing an embedding or branch feature, in training.
        tie: one token embedding for source and target (their sizes must be equal).
        init_std: standard deviation of initial weights; None for torch's.
        attention: what mixes the tokens of either side: the name or the description of an attention or a mixer.
    """

    def step(body: Spec) -> Spec:
        return Sublayer.spec(body=body, dropout=dropout)

    source_vocab, source_len = source_vocab_size or vocab_size, source_max_seq_len or max_seq_len
    mlp = step(MLP.spec(mult=mult))
    own = step(attending(attention))
    encoder_layer = TransformerLayer.spec(sublayers=[own, mlp])
    decoder_layer = TransformerLayer.spec(sublayers=[own, step(CrossMultiHead.spec()), mlp])
    tokens = TokenEmbedding.spec(position=LearnedPosition.spec(), dropout=dropout)
    embedding = Shared("tokens", tokens) if tie else tokens
    norm = LayerNorm.spec()
    encoder = Transformer.spec(
        embedding=embedding,
        stacks=[LayerStack.spec(layers=begun([encoder_layer] * (encoder_depth or depth)), norm=norm)],
        max_seq_len=source_len,
        vocab_size=source_vocab,
    )
    decoder = Transformer.spec(
        embedding=embedding,
        stacks=[LayerStack.spec(layers=begun([decoder_layer] * depth), norm=norm)],
        head=LMHead.spec(),
        causal=True,
        max_seq_len=max_seq_len,
    )
    return EncoderDecoder.spec(
        encoder=encoder, decoder=decoder, dim=dim, heads=heads, vocab_size=vocab_size, init_std=init_std
    )
