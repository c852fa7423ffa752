"""Attentions of the library in vision transformers of timm (github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.build import build
from variform.errors import ConfigError, ShapeError
from variform.interop.replacing import SLOT, Heads, Report, Where, With, choose, line_of
from variform.ops.masks import Causal, Dense, Mask, from_additive
from variform.ops.scores import DenseBias, ScoreMod
from variform.parts.attention.shifted_windows import ShiftedWindowAttention
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.bias import WindowBias
from variform.stack.sublayer import Sublayer, TransformerLayer

CHILDREN = ("qkv", "attn_drop", "proj", "proj_drop")
OPTIONAL = ("q_norm", "k_norm", "norm", "gate")


class TimmAttention(nn.Module):
    """An attention in the place of timm's, with timm's own projections: `qkv, attn_drop, proj, proj_drop`.

    Norms on queries, keys or outputs, and a gate, are kept where the module it stands in for has them.

    Shapes:
        x: [B, N, dim] -> [B, N, dim]

    Args:
        module: timm's attention; its children become this module's own, under their names.
        heads: what computes between them.
    """

    def __init__(self, module: Any, heads: Heads) -> None:
        super().__init__()
        for name in (*CHILDREN, *OPTIONAL):
            child = getattr(module, name, None)
            if child is not None:
                self.add_module(name, child)
        self.num_heads: int = module.num_heads
        self.add_module(SLOT, heads)
        self.train(module.training)

    def forward(self, x: Tensor, attn_mask: Tensor | Mask | None = None, is_causal: bool = False) -> Tensor:
        """Attend over the tokens.

        Args:
            x: the tokens.
            attn_mask: bool, True = may attend, or floats that are added to the scores; or a mask of the library.
            is_causal: token i attends to tokens <= i.
        """
        heads: Heads = getattr(self, SLOT)
        attention: Any = heads.attention
        drop: Any = self.attn_drop
        if hasattr(attention, "dropout"):
            attention.dropout = float(drop.p)  # a rate that was changed on timm's module
        mask, scores = read_mask(attn_mask)
        if is_causal:
            mask = Causal() if mask is None else mask & Causal()
        return around_heads(self, x, lambda q, k, v: heads(q, k, v, mask=mask, scores=scores))


def around_heads(module: Any, x: Tensor, heads: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """What timm's attention does around the heads, by the projections, norms and gate that the module holds.

    Shapes:
        x: [B, N, dim] -> [B, N, dim]
    """
    batch, length, _ = x.shape
    q, k, v = module.qkv(x).reshape(batch, length, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    y = heads(_through(module, "q_norm", q), _through(module, "k_norm", k), v)
    y = _through(module, "norm", y.transpose(1, 2).reshape(batch, length, -1))
    gate = getattr(module, "gate", None)
    if gate is not None:
        y = y * gate(x).sigmoid()
    return module.proj_drop(module.proj(y))  # type: ignore[no-any-return]


def read_mask(mask: Tensor | Mask | None) -> tuple[Mask | None, tuple[ScoreMod, ...]]:
    """timm's convention: bool is True = may attend, floats are added to the scores.

    Shapes:
        [N, N], or [B|1, heads|1, N, N]

    Raises:
        ShapeError: another dtype.
    """
    if mask is None or isinstance(mask, Mask):
        return mask, ()
    if not mask.dtype.is_floating_point and mask.dtype.itemsize != 1:
        raise ShapeError(f"attn_mask is bool or floats that are added to the scores, not {mask.dtype}")
    if mask.is_floating_point():
        if not mask.requires_grad and bool(((mask == 0) | (mask == float("-inf"))).all()):
            return from_additive(mask), ()
        return None, (DenseBias(mask),)
    return Dense(mask.bool()), ()


def replace_attention(model: nn.Module, *, where: Where = "*", with_: With = "softmax", **facts: Any) -> Report:
    """Replace attentions of a timm model in place; all their weights stay, under their names.

    Args:
        model: any module that holds timm attentions (VisionTransformer and its relatives).
        where: which of them, by path (`blocks.0.attn`, `blocks.[2-5].attn`) or a function of path and module.
        with_: the name or the spec of an attention, or a mask (True = may attend) for softmax attention.
        **facts: what an attention takes from its surroundings and the model does not tell (`max_seq_len`); the
            number of tokens is taken from the model's position embedding where it has one.

    Raises:
        ConfigError: a pattern fits nothing; an attention with a relative position bias, which would be lost; the new
            attention does not fit.
    """
    found = {path: module for path, module in model.named_modules() if _is_attention(module)}
    paths = choose(found, where, "timm's (children qkv, attn_drop, proj, proj_drop)")
    tokens = getattr(model, "pos_embed", None)
    if isinstance(tokens, Tensor) and tokens.dim() == 3:
        facts = {"max_seq_len": tokens.shape[1] + getattr(model, "num_prefix_tokens", 0), **facts}
    made = {path: _replacement(path, found[path], with_, facts) for path in paths}  # all or nothing
    for path, new in made.items():
        _put(model, path, new)
    lines = tuple(line_of(path, type(found[path]).__name__, new) for path, new in made.items())
    return Report(lines, tuple(path for path in found if path not in made))


def swin_layer(block: Any) -> TransformerLayer:
    """A layer of the library that computes what a Swin block of timm computes, with the block's weights copied.

    Its spec, `layer.spec`, says what it is made of: the attention `shifted_windows` and the bias `window`.

    Shapes:
        block: [B, rows, columns, dim]; the layer: [B, rows * columns, dim]

    Args:
        block: timm's `SwinTransformerBlock`.

    Raises:
        ConfigError: windows that are no squares or do not tile the grid, norms or activations of another kind.
    """
    attn, mlp, grid = block.attn, block.mlp, tuple(block.input_resolution)
    _refuse_unlike(block)
    window, shift = block.window_size[0], block.shift_size[0]
    drops = [float(getattr(path, "drop_prob", 0.0) or 0.0) for path in (block.drop_path1, block.drop_path2)]
    rates = [float(drop.p) for drop in (attn.proj_drop, mlp.drop2)]
    mixer = MultiHead.spec(
        dim_head=attn.qkv.out_features // 3 // attn.num_heads,
        bias=attn.qkv.bias is not None,
        out_bias=True,
        attention=ShiftedWindowAttention.spec(grid=grid, window=window, shift=shift, dropout=float(attn.attn_drop.p)),
        position_bias=WindowBias.spec(columns=grid[1], window=(window, window)),
    )
    feedforward = MLP.spec(hidden=mlp.fc1.out_features, dropout=float(mlp.drop1.p))
    norms = [LayerNorm.spec(eps=norm.eps) for norm in (block.norm1, block.norm2)]
    sublayers = [
        Sublayer.spec(body=body, norm=norm, dropout=rate, drop_path=drop)
        for body, norm, rate, drop in zip((mixer, feedforward), norms, rates, drops, strict=True)
    ]
    weight: Tensor = attn.qkv.weight
    layer: TransformerLayer = build(TransformerLayer.spec(sublayers=sublayers), dim=block.dim, heads=attn.num_heads)
    layer.to(weight.device, weight.dtype).train(block.training)
    layer.load_state_dict(_swin_weights(block))
    return layer


def _swin_weights(block: Any) -> dict[str, Tensor]:
    """A Swin block's parameters under the names of `swin_layer`."""
    attn = block.attn
    found: dict[str, Tensor] = {}
    for index, norm in enumerate((block.norm1, block.norm2)):
        found |= _named(f"sublayers.{index}.norm", norm)
    body = "sublayers.0.body"
    for name, value in attn.qkv.named_parameters():
        for part, chunk in zip("qkv", torch.chunk(value.detach(), 3), strict=True):
            found[f"{body}.{part}.{name}"] = chunk
    found |= _named(f"{body}.out", attn.proj)
    found[f"{body}.position_bias.table"] = attn.relative_position_bias_table.detach()
    return found | _named("sublayers.1.body.up", block.mlp.fc1) | _named("sublayers.1.body.down", block.mlp.fc2)


def _named(path: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{path}.{name}": value.detach() for name, value in module.named_parameters()}


def _refuse_unlike(block: Any) -> None:
    window, shift, grid = tuple(block.window_size), tuple(block.shift_size), tuple(block.input_resolution)
    if len(set(window)) > 1 or len(set(shift)) > 1:
        raise ConfigError(f"the block's windows of {window}, moved by {shift}, are no squares")
    if any(size % window[0] for size in grid):
        raise ConfigError(f"the block fills its grid of {grid} up to windows of {window}, which a layer does not")
    act = block.mlp.act
    if not isinstance(act, nn.GELU) or act.approximate != "none":
        raise ConfigError(f"the block's activation is {type(act).__name__}, not an exact GELU")
    for norm in (block.norm1, block.norm2):
        if not isinstance(norm, nn.LayerNorm) or len(list(norm.parameters())) < 2:
            raise ConfigError(f"the block's norm is {type(norm).__name__}, not a LayerNorm with weight and bias")


def _replacement(path: str, module: Any, with_: With, facts: dict[str, Any]) -> TimmAttention:
    if getattr(module, "relative_position_bias_table", None) is not None or hasattr(module, "rel_pos"):
        message = f"{type(module).__name__} has a relative position bias, which a replacement would lose"
        raise ConfigError(message, path=path, hint="leave it out of where=")
    inner = module.qkv.out_features // 3
    sizes = {"heads": module.num_heads, "kv_heads": module.num_heads, "dim_head": inner // module.num_heads}
    weight: Tensor = module.qkv.weight
    heads = Heads(with_, float(module.attn_drop.p), **{**sizes, "dim": module.qkv.in_features, **facts})
    return TimmAttention(module, heads.to(weight.device, weight.dtype))


def _is_attention(module: Any) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Module) for name in CHILDREN) and hasattr(module, "num_heads")


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module


def _through(module: nn.Module, name: str, x: Tensor) -> Tensor:
    child: Any = getattr(module, name, None)
    return x if child is None else child(x)
