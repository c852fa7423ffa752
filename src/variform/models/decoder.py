"""What the causal language models among the presets have in common."""

from __future__ import annotations

from collections.abc import Sequence

from variform.core.spec import Shared, Spec
from variform.models.mixing import begun
from variform.parts.head.heads import LMHead, TiedLMHead
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer


def pre_norm_layer(bodies: Sequence[Spec], norm: Spec, dropout: float) -> Spec:
    """A layer of residual steps, each with the norm before its body."""
    return TransformerLayer.spec(sublayers=[Sublayer.spec(body=body, norm=norm, dropout=dropout) for body in bodies])


def language_model(tokens: Spec, layers: Sequence[Spec], norm: Spec, *, tie: bool, **facts: object) -> Spec:
    """Token embedding, one causal stack with a final norm, and a head, which is the embedding's own when tied.

    Args:
        tokens: the embedding.
        layers: the stack's.
        norm: after the last layer.
        tie: share the embedding with the head.
        **facts: the model's own fields (`dim`, `heads`, ...).
    """
    embedding = Shared("tokens", tokens) if tie else tokens
    return Transformer.spec(
        **facts,
        causal=True,
        embedding=embedding,
        stacks=[LayerStack.spec(layers=begun(layers), norm=norm)],
        head=TiedLMHead.spec(embedding=embedding) if tie else LMHead.spec(),
    )
