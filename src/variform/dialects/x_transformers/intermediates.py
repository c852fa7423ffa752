"""What upstream's models return beside their answer: `LayerIntermediates`, recorded in a call that asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.stack.model import Transformer
from variform.stack.recurrent import LoopedStack, RecycledStack
from variform.stack.registers import RegisterStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

MIXERS = (MultiHead, CrossMultiHead, ProjectedAttention, ProjectedCrossAttention)
"""What upstream's attention becomes."""


@dataclass
class Intermediates:
    """One attention of a call. Its maps are computed when they are read, in plain operations; nothing is kept for them.

    Args:
        call: the attention request.
        layer_type: "a" for self-attention, "c" for cross attention.
        length: how many of the last queries are told of: the others are remembered tokens; None for all.
    """

    call: Call
    layer_type: str
    length: int | None = None

    def _told(self, maps: Tensor) -> Tensor:
        return maps if self.length is None else maps[:, :, -self.length :]

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
def recording(model: nn.Module, layers: nn.Module) -> Iterator[Recorder]:
    """Note down what a call of `model` makes within its stack `layers`; of stacks that run again, the last pass."""
    recorder = Recorder(model)
    with ExitStack() as hooks:
        hooks.callback(layers.register_forward_pre_hook(recorder.begin).remove)
        hooks.callback(layers.register_forward_hook(recorder.end).remove)
        parts = list(layers.modules())
        stack = next((part for part in parts if isinstance(part, LayerStack)), None)
        if stack is not None and stack.norm is not None:
            hooks.callback(stack.norm.register_forward_pre_hook(recorder.leaves).remove)
            recorder.ends_with_norm = True
        for part in parts:
            if isinstance(part, Sublayer):
                hooks.callback(part.register_forward_pre_hook(recorder.sublayer).remove)
            elif isinstance(part, MIXERS):
                hooks.callback(part.register_forward_pre_hook(recorder.attention).remove)
        if isinstance(model, Transformer):
            outer: Any = next(iter(model.stacks))
            while outer is not layers:
                if isinstance(outer, RegisterStack):
                    hooks.callback(outer.stack.register_forward_hook(recorder.registers(outer)).remove)
                outer = outer.stack
            if model.embedding is not None:
                hooks.callback(front_of(model).embedding.register_forward_hook(recorder.embedded).remove)
        with metering(recorder.call):
            yield recorder


class Recorder:
    """Collects what `LayerIntermediates` tells."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found = LayerIntermediates()
        self.passes: list[Tensor] = []
        self.kind = "a"
        self.ends_with_norm = False
        self.length = 0
        self.valid: Tensor | None = None

    def begin(self, stack: nn.Module, args: Any) -> None:
        """A pass begins anew."""
        self.length, self.valid = args[0].shape[1], args[1].get("valid")  # with what was added to the tokens
        self.found.hiddens, self.found.layer_hiddens, self.found.attn_intermediates = [], [], []

    def end(self, stack: nn.Module, args: Any, out: Any) -> None:
        """A pass has ended."""
        self.found.last_hidden = features(out)
        self.passes.append(features(out))
        if not self.ends_with_norm:
            self.found.layer_hiddens.append(features(out))

    def leaves(self, norm: nn.Module, args: Any) -> None:
        """The final norm is reached."""
        self.found.layer_hiddens.append(args[0])

    def sublayer(self, step: nn.Module, args: Any) -> None:
        """A residual step begins."""
        self.entering = args[0][:, -self.length :]  # attention alone is given remembered tokens too, in front
        self.found.layer_hiddens.append(self.entering)

    def attention(self, mixer: nn.Module, args: Any) -> None:
        """An attention begins."""
        self.kind = "c" if isinstance(mixer, (CrossMultiHead, ProjectedCrossAttention)) else "a"
        if self.kind == "a":
            self.found.hiddens.append(self.entering)

    def call(self, call: Call, backend: str) -> None:
        """An attention request."""
        self.found.attn_intermediates.append(Intermediates(call, self.kind, self.length))

    def registers(self, part: RegisterStack) -> Any:
        """A hook on what runs with added tokens."""

        def hook(stack: nn.Module, args: Any, out: Any) -> None:
            whole, count = features(out), part.count
            if part.keep == "added":
                self.found.last_layer_hiddens = whole[:, count:] if part.front else whole[:, :-count]
            else:
                self.found.memory_tokens = whole[:, :count] if part.front else whole[:, -count:]

        return hook

    def embedded(self, embedding: nn.Module, args: Any, out: Any) -> None:
        """The tokens are embedded."""
        assert isinstance(self.model, Transformer)
        self.found.initial_embeds = front_of(self.model).joined(features(out), args[1])


def front_of(model: Transformer) -> PrefixedEmbedding:
    """The part of the embedding that puts features in front."""
    assert model.embedding is not None
    return next(part for part in model.embedding.modules() if isinstance(part, PrefixedEmbedding))


def initial_embeds(model: Transformer, ids: Tensor, streams: Mapping[str, Any]) -> Tensor:
    """The embedded tokens with what stands before them, before dropout: [B, L] -> [B, P + L, emb_dim]."""
    front = front_of(model)
    return front.joined(features(front.embedding(ids, streams)), streams)


def features(out: Any) -> Tensor:
    """The features of what a part returned, without what it published."""
    x: Tensor = out[0] if isinstance(out, tuple) else out
    return x


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


def recycled_stack(model: Transformer) -> RecycledStack | None:
    """The part that recycles, if one does."""
    return next((part for part in model.stacks.modules() if isinstance(part, RecycledStack)), None)
