"""BERT: a bidirectional encoder with post-norm layers."""

from __future__ import annotations

from variform.core.fields import Depth
from variform.core.registry import preset
from variform.core.spec import Spec
from variform.models.mixing import Attending, attending, begun
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import MLP
from variform.parts.head.heads import ClassifierHead, LMHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer


@preset
def bert(
    *,
    vocab_size: int,
    dim: int,
    depth: Depth,
    heads: int,
    max_seq_len: int,
    classes: int | None = None,
    mult: float = 4.0,
    dropout: float = 0.0,
    init_std: float | None = 0.02,
    attention: Attending = None,
) -> Spec:
    """A BERT style encoder (Devlin et al. 2018, arXiv:1810.04805): post-norm, biases, learned positions.

    Args:
        vocab_size: number of different tokens.
        dim: features of the residual stream.
        depth: number of layers.
        heads: number of attention heads; divides `dim`.
        max_seq_len: longest sequence.
        classes: classify whole sequences by their first token; None gives logits over the vocabulary at each token.
        mult: inner width of the MLP as a multiple of `dim`.
        dropout: probability of zeroing an embedding, attention weight or branch feature, in training.
        init_std: standard deviation of initial weights; None for torch's.
        attention: what mixes the tokens: the name or the description of an attention or a mixer (`variform parts`).
    """
    mixer = attending(attention, dropout, bias=True, out_bias=True)
    norm = LayerNorm.spec(eps=1e-12)
    layer = TransformerLayer.spec(
        sublayers=[
            Sublayer.spec(body=mixer, norm=None, out_norm=norm, dropout=dropout),
            Sublayer.spec(body=MLP.spec(mult=mult), norm=None, out_norm=norm, dropout=dropout),
        ]
    )
    return Transformer.spec(
        dim=dim,
        heads=heads,
        causal=False,
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
        init_std=init_std,
        embedding=TokenEmbedding.spec(position=LearnedPosition.spec(), norm=norm, dropout=dropout),
        stacks=[LayerStack.spec(layers=begun([layer] * depth))],
        head=LMHead.spec(bias=True) if classes is None else ClassifierHead.spec(classes=classes, pool="first"),
    )
