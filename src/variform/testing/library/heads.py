"""Instances of heads."""

from __future__ import annotations

from variform.core.spec import Shared, Spec
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.head.heads import ClassifierHead, LinearHead, LMHead, PoolHead, TiedLMHead
from variform.parts.head.joined import JoinedHead
from variform.parts.head.pooled import AttentionPoolHead, PooledHead
from variform.parts.head.readouts import Readouts
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.testing.filling import minimal
from variform.testing.hosts import COMPANION, FEED, Setting, model_around
from variform.testing.samples import Sample, samples_for


def _tied(spec: Spec, setting: Setting) -> Spec:
    embedding = Shared("tokens", TokenEmbedding.spec())
    stack = LayerStack.spec(layers=[COMPANION], executor=setting.executor)
    return model_around(setting, [stack], embedding=embedding, head=spec.replace(embedding=embedding))


@samples_for(TiedLMHead)
def _tied_head() -> list[Sample]:
    return [Sample(minimal(TiedLMHead), host=_tied)]


@samples_for(ClassifierHead)
def _classifier() -> list[Sample]:
    return [Sample(ClassifierHead.spec(classes=3, pool=pool), pool) for pool in ("mean", "first", "last")]


@samples_for(PoolHead)
def _pool() -> list[Sample]:
    return [Sample(PoolHead.spec(pool=pool), pool) for pool in ("mean", "first", "last")]


@samples_for(LMHead)
def _lm() -> list[Sample]:
    return [Sample(LMHead.spec(bias=True))]


@samples_for(JoinedHead)
def _joined() -> list[Sample]:
    return [
        Sample(JoinedHead.spec(parts=["lm", LMHead.spec(vocab_size=3)])),
        Sample(JoinedHead.spec(parts=[LMHead.spec(bias=True), LinearHead.spec(outputs=3)]), "of two kinds"),
    ]


@samples_for(Readouts)
def _readouts() -> list[Sample]:
    return [Sample(Readouts.spec(main="lm"))]


@samples_for(PooledHead)
def _pooled() -> list[Sample]:
    inner = LMHead.spec(vocab_size=3)
    return [Sample(PooledHead.spec(head=inner, pool=pool), pool) for pool in ("mean", "first", "last")]


@samples_for(AttentionPoolHead)
def _attention_pool() -> list[Sample]:
    deep = LayerStack.spec(layers=[Sublayer.spec(body="cross_attention"), Sublayer.spec(body=FEED)])
    return [
        Sample(AttentionPoolHead.spec(body="cross_attention", queries=3)),
        Sample(AttentionPoolHead.spec(body=deep, dim_query=8, head=LMHead.spec(vocab_size=3)), "layers and a head"),
    ]
