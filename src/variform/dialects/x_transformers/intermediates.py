"""What upstream's models return beside their answer: `LayerIntermediates`, recorded in a call that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.cache import Cache
from variform.dialects.x_transformers.errors import InputError
from variform.ops.attention.call import Call
from variform.ops.attention.meter import metering
from variform.ops.attention.reference import reference_scores, reference_weights
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.kinds import Streams
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.stack.model import Transformer
from variform.stack.recurrent import LoopedStack
from variform.stack.registers import RegisterStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.weights.x_transformers import tiled_heads

MIXERS = (MultiHead, CrossMultiHead, ProjectedAttention, ProjectedCrossAttention)
"""What upstream's attention becomes."""


@dataclass
class Intermediates:
    """One attention of a call. Its maps are computed when they are read, in plain operations; nothing is kept for them.

    Heads stand as upstream counts them: query head i reads key head i mod kv_heads.

    Args:
        call: the attention request.
        layer_type: "a" for self-attention, "c" for cross attention.
        length: how many of the last queries are told of: the others are remembered tokens; None for all.
    """

    call: Call
    layer_type: str
    length: int | None = None

    def _told(self, maps: Tensor) -> Tensor:
        maps = maps if self.length is None else maps[:, :, -self.length :]
        heads, kv_heads = self.call.q.shape[1], self.call.k.shape[1]
        if kv_heads in (1, heads):
            return maps
        return maps[:, torch.tensor(tiled_heads(heads, kv_heads), device=maps.device).argsort()]

    @property
    def pre_softmax_attn(self) -> Tensor:
        """The scores before the softmax, [B, H, Lq, Lk]; -inf where a query may not attend."""
        return self._told(reference_scores(self.call, self.call.full_mask()))

    @property
    def log_sum(self) -> Tensor:
        """The logarithm of what the softmax divides by, a sink's share included, [B, H, Lq]."""
        scores, weights = self.pre_softmax_attn, self.call.weights
        return (scores if weights is None else weights.rivals(scores)).logsumexp(-1)

    @property
    def post_softmax_attn(self) -> Tensor:
        """The weights before dropout, [B, H, Lq, Lk]."""
        return self._told(reference_weights(self.call))

    @property
    def log_probs(self) -> Tensor:
        """The logarithm of the probability of the key with the largest weight, [B, H, Lq]: of drawn ones (Gumbel)."""
        scores = self.pre_softmax_attn
        scores = scores.masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0)
        chosen = self.post_softmax_attn.argmax(-1, keepdim=True)
        return scores.log_softmax(-1).gather(-1, chosen).squeeze(-1)

    @property
    def qk_similarities(self) -> Tensor:
        """Scaled products of queries and keys, [B, H, Lq, Lk]."""
        return self._told((self.call.q @ self.call.expanded()[0].transpose(-1, -2)) * self.call.softmax_scale)

    @property
    def values(self) -> Tensor:
        """[B, Hk, Lk, Dv]."""
        return self.call.v


@dataclass
class LayerIntermediates:
    """What a call has made on its way, by upstream's names; None where there is none.

    Args:
        hiddens: what entered each self-attention, before its norm.
        last_hidden: after the final norm.
        attn_intermediates: of each attention.
        layer_hiddens: what entered each sublayer, and what left the last, before the final norm.
        attn_z_loss: where it was asked for.
        mems: what a next segment attends to, where it was asked for.
        last_layer_hiddens: a vector a token, before pooling.
        initial_embeds: embedded tokens with what stands before them, before dropout.
        attn_pooled_tokens: of pooling by attention.
        memory_tokens: what became of the memory tokens.
        logit_entropies: in nats, where they were asked for; of several heads, one each.
        logits: the tokens' logits, where the answer is pooled.
        exit_logits: of the gate of a looped model, [B, L, 1] a pass.
        all_pred_logits: its logits, [B, L, V] a pass.
        exit_indices: the pass that each answer is of.
        cache: what goes on from here: `model(x, cache=intermediates)`.
    """

    hiddens: list[Tensor] = field(default_factory=list)
    last_hidden: Tensor | None = None
    attn_intermediates: list[Intermediates] = field(default_factory=list)
    layer_hiddens: list[Tensor] = field(default_factory=list)
    attn_z_loss: Tensor | None = None
    mems: list[Tensor] | None = None
    last_layer_hiddens: Tensor | None = None
    initial_embeds: Tensor | None = None
    attn_pooled_tokens: Tensor | None = None
    memory_tokens: Tensor | None = None
    logit_entropies: Tensor | tuple[Tensor, ...] | None = None
    logits: Any = None
    exit_logits: list[Tensor] | None = None
    all_pred_logits: list[Any] | None = None
    exit_indices: Tensor | None = None
    cache: Cache | None = None

    @property
    def cache_length(self) -> int:
        """How many tokens were read so far."""
        return 0 if self.cache is None else self.cache.length


@contextmanager
def recording(layers: nn.Module) -> Iterator[Recorder]:
    """Note down what a call makes within its stack `layers`, and before it; of stacks that run again, the last pass.

    The call is given the recorder as the stream `watch`.
    """
    recorder = Recorder(layers)
    with metering(recorder.call):
        yield recorder
    recorder.listens = False


class Recorder:
    """Collects what `LayerIntermediates` tells: a `Watch`.

    Args:
        layers: the stack whose layers are meant.
    """

    def __init__(self, layers: nn.Module) -> None:
        self.layers = layers
        inner = next((part for part in layers.modules() if isinstance(part, LayerStack)), None)
        self.norm = None if inner is None else inner.norm
        self.found = LayerIntermediates()
        self.passes: list[Tensor] = []
        self.entering: Tensor | None = None
        self.kind = "a"
        self.length = 0
        self.valid: Tensor | None = None
        self.within = False
        self.listens = True
        """False when the call is over: layers that are computed again in the backward pass are not told twice."""

    def enters(self, part: nn.Module, x: Tensor, streams: Streams) -> None:
        """A pass, a residual step or an attention begins, or the final norm is reached."""
        if not self.listens:
            return
        if part is self.layers:
            self.within = True
            self.length, self.valid = x.shape[1], streams.get("valid")  # with what was added to the tokens
            self.found.hiddens, self.found.layer_hiddens, self.found.attn_intermediates = [], [], []
        elif not self.within:
            return
        elif part is self.norm:
            self.found.layer_hiddens.append(x)
        elif isinstance(part, Sublayer):
            self.entering = x[:, -self.length :]  # attention alone is given remembered tokens too, in front
            self.found.layer_hiddens.append(self.entering)
        elif isinstance(part, (CrossMultiHead, ProjectedCrossAttention)):
            self.kind = "c"
        elif isinstance(part, MIXERS):
            self.kind = "a"
            if self.entering is not None:
                self.found.hiddens.append(self.entering)

    def leaves(self, part: nn.Module, x: Tensor) -> None:
        """A pass ends, or the tokens are embedded."""
        if not self.listens:
            return
        if part is self.layers:
            self.within = False
            self.found.last_hidden = x
            self.passes.append(x)
            if self.norm is None:
                self.found.layer_hiddens.append(x)
        elif isinstance(part, PrefixedEmbedding):
            self.found.initial_embeds = x
        elif isinstance(part, RegisterStack) and not self.within:
            count = part.count
            if part.keep == "added":
                self.found.last_layer_hiddens = x[:, count:] if part.front else x[:, :-count]
            else:
                self.found.memory_tokens = x[:, :count] if part.front else x[:, -count:]

    def call(self, call: Call, backend: str) -> None:
        """An attention request."""
        if self.within and self.listens:
            self.found.attn_intermediates.append(Intermediates(call, self.kind, self.length))


def attention_z_loss(attentions: list[Intermediates], valid: Tensor | None, weight: float) -> Tensor:
    """The z-loss on attention scores (ST-MoE, Zoph et al. 2022, arXiv:2202.08906): w mean_bi sum_h (sum_l lse S_l)^2.

    lse is the logarithm of a query's sum of exponentials. Padding, and queries that may attend to nothing, do not
    count.

    Shapes:
        valid: [B, L] -> a scalar; L is the layers': memory tokens are real ones

    Args:
        attentions: of the layers.
        valid: False at padding.
        weight: factor.

    Raises:
        InputError: there is no attention with scores.
    """
    total: Tensor | None = None
    for one in attentions:
        sums = one.log_sum
        sums = sums.masked_fill(sums == -torch.inf, 0.0)
        total = sums if total is None else total + sums
    if total is None:
        raise InputError("there are no scores for an attention z-loss: no layer here has softmax attention")
    loss = total.square().sum(1)
    if valid is None:
        return loss.mean() * weight
    return loss.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1) * weight


def looped_stack(model: Transformer) -> LoopedStack | None:
    """The part that loops, if one does."""
    return next((part for part in model.stacks.modules() if isinstance(part, LoopedStack)), None)
