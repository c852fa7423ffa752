"""Stacks and residual steps of x-transformers' checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from variform.errors import ConfigError
from variform.ops.rotary import rotary_frequencies
from variform.parts.attention.rotated import RotatedAttention
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.kinds import Stack
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.position.bias import T5Bias
from variform.parts.position.dynamic import DynamicBias
from variform.parts.position.polar import PolarRotation
from variform.parts.position.rotary import RotaryRotation
from variform.parts.position.some_heads import SomeHeads
from variform.parts.residual.scaled import LayerScaleResidual, ScaledResidual, ScaledStreamResidual
from variform.parts.stream_ops.adaptive_branch import AdaptiveBranch
from variform.parts.stream_ops.branch import BranchStart, ScaledBranch
from variform.parts.stream_ops.context import ContextDropout
from variform.parts.stream_ops.key_condition import KeyCondition
from variform.parts.stream_ops.padding import ZeroPadding
from variform.parts.stream_ops.token_shift import TokenShift
from variform.stack.condition import ConditionedStack
from variform.stack.multi_stream import MultiStreamStack
from variform.stack.pool import LayerPool
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer
from variform.weights.entries import Entry, affine, constant, plain, reordered
from variform.weights.x_transformers.attention import MIXERS, attention_entries, tiled_heads
from variform.weights.x_transformers.history import BESIDE, history_entries
from variform.weights.x_transformers.pieces import feedforward_entries, linear_entries, no_counterpart, norm_entries
from variform.weights.x_transformers.residuals import branch_entries, residual_entries

UPSTREAM_STACKS = (LayerStack, MultiStreamStack, ConditionedStack)
"""Stacks that are one of upstream's."""


def stack_entries(stack: Stack, prefix: str, offset: float) -> Iterator[Entry]:
    """The entries of a stack: its steps, what it keeps once for all of them, its final norm."""
    if isinstance(stack, ConditionedStack):
        yield plain(f"{prefix}adaptive_mlp.0.weight", stack.map.weight)
        stack = stack.stack
    if isinstance(stack, MultiStreamStack):
        if stack.embedding is not None:
            yield plain(f"{prefix}stream_emb", stack.embedding)
        yield from norm_entries(f"{prefix}final_norm", stack.norm, offset)
        stack = stack.stack
    if not isinstance(stack, LayerStack):
        raise no_counterpart(stack)
    steps = list(dict.fromkeys(steps_of(stack)))
    mixers = [body for step in steps if isinstance(body := body_of(step), (MultiHead, ProjectedAttention))]
    yield from _positions(mixers, prefix)
    if not mixers:  # then cross attention alone is rotated, where the context's positions are told
        turned = (part.rotation for part in stack.modules() if isinstance(part, RotatedAttention))
        yield from _rotary(next(turned, None), prefix)
    factors = [_factor(step) for step in steps if not isinstance(body_of(step), (MLP, GLU))]
    yield from history_entries(stack, steps, prefix)
    for index, step in enumerate(steps):
        yield from _step(step, f"{prefix}layers.{index}.", offset, factors[0] if factors else 1.0)
    yield from norm_entries(f"{prefix}final_norm", stack.norm, offset)


def steps_of(part: nn.Module) -> Iterator[Sublayer]:
    """The residual steps as upstream numbers them: by their first run, or as a pool says."""
    if isinstance(part, Sublayer):
        yield part
    elif isinstance(part, LayerStack):
        layers = list(part.layers.in_order())
        for child in [layer for layer in layers if isinstance(layer, LayerPool)] or layers:
            yield from steps_of(child)
    elif isinstance(part, (TransformerLayer, LayerPool)):
        for child in (part.sublayers if isinstance(part, TransformerLayer) else part.layers).in_order():
            yield from steps_of(child)
    elif not isinstance(part, BESIDE):
        raise no_counterpart(part)


AROUND = (ZeroPadding, ScaledBranch, BranchStart, AdaptiveBranch, TokenShift, ContextDropout, KeyCondition)
"""Parts that stand around what does the work in a step."""


def body_of(step: Sublayer) -> nn.Module:
    """What does the work in a step, without the parts around it that have no weights."""
    body: nn.Module = step.body
    while isinstance(body, AROUND):
        body = body.body
    return body


def _positions(mixers: Sequence[MultiHead | ProjectedAttention], prefix: str) -> Iterator[Entry]:
    """What upstream keeps once for all layers: the angles of rotary positions, the table of a relative bias."""
    rotation: nn.Module | None = next((mixer.rotation for mixer in mixers if mixer.rotation is not None), None)
    if isinstance(rotation, PolarRotation):
        yield from _polar(rotation, mixers[0].heads, mixers[0].kv_heads, f"{prefix}polar_pos_emb.")
    else:
        yield from _rotary(rotation, prefix)
    yield from _dynamic(next((mixer for mixer in mixers if isinstance(mixer.position_bias, DynamicBias)), None), prefix)
    biased = next((mixer for mixer in mixers if isinstance(mixer.position_bias, T5Bias)), None)
    if biased is not None:
        assert isinstance(biased.position_bias, T5Bias)
        heads = tiled_heads(biased.heads, biased.kv_heads)
        factor = math.sqrt(biased.dim_head) / biased.position_bias.scale
        key = f"{prefix}rel_pos.relative_attention_bias.weight"
        yield reordered(key, biased.position_bias.table, heads, 1, factor=factor)


def _rotary(rotation: nn.Module | None, prefix: str) -> Iterator[Entry]:
    rotation = rotation.rotation if isinstance(rotation, SomeHeads) else rotation
    if rotation is None:
        return
    if not isinstance(rotation, RotaryRotation):
        raise no_counterpart(rotation)
    spec: Any = rotation.spec
    if spec["layout"] != "interleaved":
        raise no_counterpart(rotation)
    angles = rotary_frequencies(spec["rotary_dim"] or spec["dim_head"], spec["base"], spec["ntk"])
    yield constant(f"{prefix}rotary_pos_emb.inv_freq", angles.float(), "rotary angles")
    if rotation.xpos is not None:
        dim = rotation.dim
        fading = (torch.arange(0, dim, 2) + 0.4 * dim) / (1.4 * dim)
        yield constant(f"{prefix}rotary_pos_emb.scale", fading, "the fading of pairs")


def _polar(rotation: PolarRotation, heads: int, kv_heads: int, prefix: str) -> Iterator[Entry]:
    if rotation.phase.shape[0] != heads:
        raise ConfigError("x-transformers has a phase for each query head, and these are of fewer key heads")
    if rotation.of_queries:
        yield reordered(f"{prefix}learned_bias", rotation.phase, tiled_heads(heads, kv_heads), 0)
    else:
        yield plain(f"{prefix}learned_bias", rotation.phase)
    dim = rotation.phase.shape[2]
    angles = rotation.base ** -(torch.arange(dim, dtype=torch.float64) / dim)
    yield constant(f"{prefix}inv_freq", angles.float(), "polar angles")


def _dynamic(mixer: MultiHead | ProjectedAttention | None, prefix: str) -> Iterator[Entry]:
    """The network of a bias by distance; its outputs are in upstream's order of heads."""
    bias = None if mixer is None else mixer.position_bias
    if mixer is None or not isinstance(bias, DynamicBias):
        return
    for place, layer in enumerate(bias.maps):
        assert isinstance(layer, nn.Linear)
        yield from linear_entries(f"{prefix}rel_pos.mlp.{place}.0", layer)
    for place, norm in enumerate(bias.norms):
        key = f"{prefix}rel_pos.mlp.{place}.1."
        for name, tensor in norm.named_parameters():
            yield plain(key + (name if place else "gamma"), tensor)
    heads = tiled_heads(mixer.heads, mixer.kv_heads)
    out = f"{prefix}rel_pos.mlp.{len(bias.maps)}."
    yield reordered(f"{out}weight", bias.out.weight, heads, 0)
    yield reordered(f"{out}bias", bias.out.bias, heads, 0)


def _factor(step: Sublayer) -> float:
    """The constant factor on a branch."""
    return step.residual.beta if isinstance(step.residual, (ScaledResidual, ScaledStreamResidual)) else 1.0


def _step(step: Sublayer, prefix: str, offset: float, common: float) -> Iterator[Entry]:
    """One residual step; `common` is the factor on the branches of all steps (a macaron feedforward has one more)."""
    for place, norm in enumerate((step.norm, step.branch_norm, step.out_norm)):
        yield from norm_entries(f"{prefix}0.{place}", norm, offset)
    inner = f"{prefix}1."
    if isinstance(step.residual, LayerScaleResidual):
        yield affine(f"{inner}gamma", step.residual.gamma, offset=offset)
        inner += "fn."
    else:
        yield from residual_entries(step.residual, f"{prefix}2.")
    # Upstream wraps a branch once for each factor.
    inner += "fn." * ((_factor(step) != common) + (common != 1.0))
    body: nn.Module = step.body
    while isinstance(body, AROUND):
        if isinstance(body, ScaledBranch):
            yield from branch_entries(body, inner, offset)
            inner += "fn." * (body.gain is not None or body.factor != 1.0)
        elif isinstance(body, AdaptiveBranch):
            yield plain(f"{inner}to_gamma.weight", body.weight)
            yield plain(f"{inner}to_gamma.bias", body.bias)
            inner += "fn."
        inner += "fn." * isinstance(body, TokenShift)
        body = body.body
    if isinstance(body, MIXERS):
        yield from attention_entries(body, inner)
    elif isinstance(body, (MLP, GLU)):
        yield from feedforward_entries(body, f"{inner}ff.")
    else:
        raise no_counterpart(body)
