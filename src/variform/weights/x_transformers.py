"""Weights from and to x-transformers (github.com/lucidrains/x-transformers): the same function, other tensors.

What differs: gains of norms are stored less one, value and gate of a GLU are one map, query heads of grouped-query
attention are tiled (query head i reads key head i mod kv_heads; here i // group), patches are (row, column, channel).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.part import Part
from variform.errors import ConfigError
from variform.ops.rotary import rotary_frequencies
from variform.parts.attention.memory import LearnedMemory
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.embedding.patches import PatchEmbedding
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.head.heads import ClassifierHead, LinearHead, LMHead, PoolHead, TiedLMHead
from variform.parts.head.joined import JoinedHead
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.norms import LayerNorm, RMSNorm, ScaleNorm
from variform.parts.position.absolute import LearnedPosition
from variform.parts.position.bias import T5Bias
from variform.parts.residual.scaled import LayerScaleResidual, ScaledResidual
from variform.parts.stream_ops.padding import ZeroPadding
from variform.stack.model import EncoderDecoder, Transformer
from variform.stack.registers import RegisterStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer
from variform.weights.entries import (
    Entry,
    affine,
    constant,
    joined,
    load_entries,
    plain,
    reordered,
    shaped,
    store_entries,
)


def load_x_transformers(
    model: nn.Module, tensors: Mapping[str, Tensor], *, prefix: str = "", unit_offset: bool | None = None
) -> None:
    """Fill a model with the weights of an x-transformers checkpoint of the same architecture.

    Args:
        model: a model or stack of the core, or a class of the x-transformers dialect.
        tensors: the checkpoint's `state_dict()`; nothing in the model changes unless all of it fits.
        prefix: what the keys begin with, "net." for that of an AutoregressiveWrapper.
        unit_offset: whether gains are stored less one; as the model says, else True.

    Raises:
        ConfigError: the structure has no counterpart, or keys or shapes differ; all problems at once.
    """
    load_entries(entries_of(model, prefix, unit_offset), tensors)


def to_x_transformers(model: nn.Module, *, prefix: str = "", unit_offset: bool | None = None) -> dict[str, Tensor]:
    """The inverse of `load_x_transformers`: a state dict that upstream's classes load strictly."""
    return store_entries(entries_of(model, prefix, unit_offset))


def entries_of(model: nn.Module, prefix: str = "", unit_offset: bool | None = None) -> list[Entry]:
    """How every tensor of the checkpoint of `model` is made up.

    A class of the dialect says what its keys are called where they differ (`upstream_keys`), and which other modules
    it holds under which beginnings of keys (`upstream_modules`).

    Raises:
        ConfigError: a part has no counterpart in x-transformers.
    """
    held: Mapping[str, nn.Module] = getattr(model, "upstream_modules", {})
    beside = [entry for key, part in held.items() for entry in _held(part, prefix + key, unit_offset)]
    if held and not hasattr(model, "native"):
        return beside
    offset = getattr(model, "unit_offset", True) if unit_offset is None else unit_offset
    native = getattr(model, "native", model)
    renamed: Mapping[str, str] = getattr(model, "upstream_keys", {})
    entries = [
        replace(entry, key=prefix + renamed.get(entry.key, entry.key)) for entry in _model(native, "", float(offset))
    ]
    covered = {id(param) for entry in entries for param in entry.params}
    left = [name for name, param in native.named_parameters() if id(param) not in covered]
    if left:
        raise ConfigError(f"x-transformers has no counterpart of {', '.join(left)}")
    return entries + beside


def _held(part: nn.Module, prefix: str, unit_offset: bool | None) -> list[Entry]:
    """The entries of a module that a class of the dialect holds; one that is no model goes by its own names."""
    if isinstance(part, Part) or hasattr(part, "native") or hasattr(part, "upstream_modules"):
        return entries_of(part, prefix, unit_offset)
    return [plain(prefix + name, tensor) for name, tensor in part.state_dict(keep_vars=True).items()]


def _model(model: nn.Module, prefix: str, offset: float) -> Iterator[Entry]:
    if isinstance(model, EncoderDecoder):
        yield from _model(model.encoder, f"{prefix}encoder.", offset)
        yield from _model(model.decoder, f"{prefix}decoder.net.", offset)
    elif isinstance(model, LayerStack):
        yield from _stack(model, prefix, offset)
    elif isinstance(model, Transformer) and len(model.stacks) == 1 and model.embedding is not None:
        yield from _embedding(model.embedding, prefix)
        stack = next(model.stacks.in_order())
        if isinstance(stack, RegisterStack):
            yield plain(f"{prefix}{'memory' if stack.front else 'register'}_tokens", stack.tokens)
            stack = stack.stack
        if not isinstance(stack, LayerStack):
            raise _no_counterpart(stack)
        yield from _stack(stack, f"{prefix}attn_layers.", offset)
        yield from _head(model.head, prefix)
    else:
        raise _no_counterpart(model)


def _embedding(part: nn.Module, prefix: str) -> Iterator[Entry]:
    if isinstance(part, PrefixedEmbedding):
        yield from _embedding(part.embedding, prefix)
        return
    if isinstance(part, PlacedEmbedding):
        yield from _embedding(part.embedding, prefix)
        yield from _placed(part, prefix)
    elif isinstance(part, FeatureEmbedding) and part.class_token is None:
        if part.project is not None:
            yield from _linear(f"{prefix}project_in", part.project)
        yield from _placed(part, prefix)
    elif isinstance(part, TokenEmbedding) and part.factor == 1.0:
        yield plain(f"{prefix}token_emb.emb.weight", part.weight)
        yield from _placed(part, prefix)
    elif (
        isinstance(part, PatchEmbedding)
        and part.class_token is None
        and isinstance(part.position, LearnedPosition)
        and part.position.scale == 1.0
    ):
        yield shaped(f"{prefix}pos_embedding", part.position.weight, (1, *part.position.weight.shape))
        yield from _patches(part, f"{prefix}patch_to_embedding.")
        yield from _norm(f"{prefix}post_emb_norm", part.norm, 0.0)
    else:
        raise _no_counterpart(part)


def _placed(part: TokenEmbedding | FeatureEmbedding | PlacedEmbedding, prefix: str) -> Iterator[Entry]:
    if isinstance(part.position, LearnedPosition):
        weight = part.position.weight
        yield affine(f"{prefix}pos_emb.emb.weight", weight, factor=weight.shape[1] ** -0.5 / part.position.scale)
    elif part.position is not None:
        raise _no_counterpart(part.position)
    yield from _norm(f"{prefix}post_emb_norm", part.norm, 0.0)


def _patches(part: PatchEmbedding, prefix: str) -> Iterator[Entry]:
    """Upstream flattens a patch as (row, column, channel), the core as (channel, row, column)."""
    weight = part.project.weight
    dim, channels, size, _ = weight.shape
    pixels = torch.arange(channels * size * size).view(size, size, channels).permute(2, 0, 1).flatten().tolist()
    if isinstance(part.patch_norm, LayerNorm):
        yield reordered(f"{prefix}0.gamma", part.patch_norm.weight, pixels, 0)
    yield Entry(
        f"{prefix}1.weight",
        (weight,),
        lambda t: (t.view(dim, size, size, channels).permute(0, 3, 1, 2),),
        lambda ps: ps[0].permute(0, 2, 3, 1).reshape(dim, -1),
    )
    if part.project.bias is not None:
        yield plain(f"{prefix}1.bias", part.project.bias)
    yield from _norm(f"{prefix}2", part.token_norm, 0.0)


def _head(head: nn.Module | None, prefix: str) -> Iterator[Entry]:
    if isinstance(head, LMHead):
        yield from _linear(f"{prefix}to_logits", head.project)
    elif isinstance(head, LinearHead):
        yield from _linear(f"{prefix}project_out", head.project)
    elif isinstance(head, JoinedHead):
        for index, part in enumerate(head.parts):
            for entry in _head(part, ""):
                own = entry.key.rpartition(".")[2]
                yield replace(entry, key=f"{prefix}to_logits.{index}.{own}")
    elif isinstance(head, ClassifierHead):
        yield plain(f"{prefix}mlp_head.weight", head.project.weight)
        if head.project.bias is not None:
            yield plain(f"{prefix}mlp_head.bias", head.project.bias)
    elif head is not None and not isinstance(head, (TiedLMHead, PoolHead)):
        raise _no_counterpart(head)


def _stack(stack: LayerStack, prefix: str, offset: float) -> Iterator[Entry]:
    steps = list(dict.fromkeys(_steps(stack)))
    mixers = [body for step in steps if isinstance(body := _body(step), MultiHead)]
    yield from _positions(mixers, prefix)
    factors = [_factor(step) for step in steps if not isinstance(_body(step), (MLP, GLU))]
    for index, step in enumerate(steps):
        yield from _step(step, f"{prefix}layers.{index}.", offset, factors[0] if factors else 1.0)
    yield from _norm(f"{prefix}final_norm", stack.norm, offset)


def _steps(part: nn.Module) -> Iterator[Sublayer]:
    """The residual steps in the order in which they run; upstream numbers them by their first run."""
    if isinstance(part, Sublayer):
        yield part
    elif isinstance(part, (LayerStack, TransformerLayer)):
        for child in (part.layers if isinstance(part, LayerStack) else part.sublayers).in_order():
            yield from _steps(child)
    else:
        raise _no_counterpart(part)


def _body(step: Sublayer) -> nn.Module:
    body: nn.Module = step.body
    return body.body if isinstance(body, ZeroPadding) else body


def _positions(mixers: list[MultiHead], prefix: str) -> Iterator[Entry]:
    """What upstream keeps once for all layers: the angles of rotary positions, the table of a relative bias."""
    rotation = next((mixer.rotation for mixer in mixers if mixer.rotation is not None), None)
    if rotation is not None:
        spec: Any = rotation.spec
        if spec["layout"] != "interleaved":
            raise _no_counterpart(rotation)
        angles = rotary_frequencies(spec["rotary_dim"] or spec["dim_head"], spec["base"], spec["ntk"])
        yield constant(f"{prefix}rotary_pos_emb.inv_freq", angles.float(), "rotary angles")
    biased = next((mixer for mixer in mixers if isinstance(mixer.position_bias, T5Bias)), None)
    if biased is not None:
        assert isinstance(biased.position_bias, T5Bias)
        heads = tiled_heads(biased.heads, biased.kv_heads)
        factor = math.sqrt(biased.dim_head) / biased.position_bias.scale
        key = f"{prefix}rel_pos.relative_attention_bias.weight"
        yield reordered(key, biased.position_bias.table, heads, 1, factor=factor)


def _factor(step: Sublayer) -> float:
    """The constant factor on a branch."""
    return step.residual.beta if isinstance(step.residual, ScaledResidual) else 1.0


def _step(step: Sublayer, prefix: str, offset: float, common: float) -> Iterator[Entry]:
    """One residual step; `common` is the factor on the branches of all steps (a macaron feedforward has one more)."""
    for place, norm in enumerate((step.norm, step.branch_norm, step.out_norm)):
        yield from _norm(f"{prefix}0.{place}", norm, offset)
    inner = f"{prefix}1."
    if isinstance(step.residual, LayerScaleResidual):
        yield affine(f"{inner}gamma", step.residual.gamma, offset=offset)
        inner += "fn."
    elif step.residual is not None and not isinstance(step.residual, ScaledResidual):
        raise _no_counterpart(step.residual)
    # Upstream wraps a branch once for each factor.
    inner += "fn." * ((_factor(step) != common) + (common != 1.0))
    body = _body(step)
    if isinstance(body, (MultiHead, CrossMultiHead)):
        yield from _attention(body, inner)
    elif isinstance(body, (MLP, GLU)):
        yield from _feedforward(body, f"{inner}ff.")
    else:
        raise _no_counterpart(body)


def _attention(mixer: MultiHead | CrossMultiHead, prefix: str) -> Iterator[Entry]:
    heads, size = tiled_heads(mixer.heads, mixer.kv_heads), mixer.dim_head
    yield reordered(f"{prefix}to_q.weight", mixer.q.weight, heads, 0, size)
    yield plain(f"{prefix}to_k.weight", mixer.k.weight)
    yield plain(f"{prefix}to_v.weight", mixer.v.weight)
    yield reordered(f"{prefix}to_out.weight", mixer.out.weight, heads, 1, size)
    memory = getattr(mixer.attention, "memory", None)
    if isinstance(memory, LearnedMemory):
        yield plain(f"{prefix}mem_k", memory.keys)
        yield plain(f"{prefix}mem_v", memory.values)
    # A factor on the product of q and k: their norms are l2 norms with gains, else RMS norms.
    cosine = getattr(mixer.attention, "scale", None) is not None
    if cosine and mixer.q_norm is None:
        raise _no_counterpart(mixer.attention)
    names = ("qk_norm_q_scale", "qk_norm_k_scale") if cosine else ("q_rmsnorm.gamma", "k_rmsnorm.gamma")
    for name, norm, order in zip(names, (mixer.q_norm, mixer.k_norm), (heads, range(mixer.kv_heads)), strict=True):
        if isinstance(norm, RMSNorm) and norm.weight is not None:
            factor, offset = (size**-0.25, 0.0) if cosine else (1.0, 1.0)
            yield reordered(prefix + name, norm.weight, list(order), 0, factor=factor, offset=offset)


def _feedforward(part: MLP | GLU, prefix: str) -> Iterator[Entry]:
    down = 2 if part.norm is None else 3
    if isinstance(part, GLU):
        yield joined(f"{prefix}0.proj.weight", (part.up.weight, part.gate.weight))
        if "bias" in dict(part.up.named_parameters()):
            yield joined(f"{prefix}0.proj.bias", (part.up.bias, part.gate.bias))
        else:  # upstream's gated map always has offsets
            yield constant(f"{prefix}0.proj.bias", part.up.weight.new_zeros(2 * part.up.out_features), "offsets")
    else:
        yield from _linear(f"{prefix}0.0", part.up)
    yield from _norm(f"{prefix}1", part.norm, 0.0)
    yield from _linear(f"{prefix}{down}", part.down)


def _linear(key: str, linear: nn.Linear) -> Iterator[Entry]:
    yield plain(f"{key}.weight", linear.weight)
    if linear.bias is not None:
        yield plain(f"{key}.bias", linear.bias)


def _norm(key: str, norm: nn.Module | None, offset: float) -> Iterator[Entry]:
    if norm is None or (isinstance(norm, RMSNorm) and norm.weight is None):
        return
    # Upstream's LayerNorm has torch's eps and no offset, its other norms divide by the length of x itself.
    if isinstance(norm, LayerNorm) and norm.bias is None and norm.eps == 1e-5:
        yield affine(f"{key}.gamma", norm.weight, offset=offset)
    elif isinstance(norm, RMSNorm) and norm.weight is not None and norm.eps <= 1e-12:
        yield affine(f"{key}.g", norm.weight, offset=offset)
    elif isinstance(norm, ScaleNorm) and norm.eps <= 1e-6:
        yield affine(f"{key}.g", norm.scale, factor=math.sqrt(norm.dim), offset=offset)
    else:
        raise _no_counterpart(norm)


def tiled_heads(heads: int, kv_heads: int) -> list[int]:
    """For each query head here, the upstream head that it is."""
    group = heads // kv_heads
    return [member * kv_heads + key_head for key_head in range(kv_heads) for member in range(group)]


def _no_counterpart(part: nn.Module) -> ConfigError:
    name = f"{part.kind} {part.name!r}" if isinstance(part, Part) else type(part).__name__
    return ConfigError(f"x-transformers has no counterpart of this {name}, as it is configured here")
