"""Blocks of modules for common layers: functions that return lists of module dicts, to be put together and changed.

Sizes may be numbers, or expressions over the sizes that a program names. Each block writes further streams on its way
(`queries`, `keys`, `values`, `attn_dots`, `residual`, ...), which must not be in use.
"""

from __future__ import annotations

from typing import Any

Module = dict[str, Any]
Size = int | str


def ffn_block(
    dim: Size,
    input_name: str = "x",
    output_name: str = "x",
    ff_mult: Size = 4,
    drop_prob: float = 0,
    inner_norm: bool = False,
    init_final_bias: float | bool = False,
) -> list[Module]:
    """W2 gelu(W1 x + b1) + b2, with dropout and a norm before W2 if asked for.

    Args:
        dim: features out; there are `dim * ff_mult` in between.
        input_name: the stream it reads.
        output_name: the stream it writes.
        ff_mult: how many times wider the middle is.
        drop_prob: of dropout after the activation.
        inner_norm: layer norm before W2, as in NormFormer (arXiv:2110.09456).
        init_final_bias: initial value of b2; drawn as torch does when False.
    """
    block = [_module("linear", input_name, output_name, output_dim=_product(dim, ff_mult))]
    block.append(_module("activation", output_name))
    if drop_prob:
        block.append(_module("dropout", output_name, prob=drop_prob))
    if inner_norm:
        block.append(_norm(output_name))
    bias: dict[str, Any] = {} if init_final_bias is False else {"init_bias": init_final_bias}
    return [*block, _module("linear", output_name, output_dim=dim, **bias)]


def attention_block(
    num_heads: Size,
    input_name: str = "x",
    output_name: str = "x",
    use_attn_offset: bool = True,
    offset_name: str = "attn_offset",
    scale_heads: bool = False,
    mix: bool = True,
) -> list[Module]:
    """Multi-head self-attention; what is masked comes with the offset.

    Args:
        num_heads: number of heads.
        input_name: the stream it reads.
        output_name: the stream it writes.
        use_attn_offset: add the stream `offset_name` to the scores.
        offset_name: the offset, [1 or B, num_heads, L, L].
        scale_heads: a learned factor a head, as in NormFormer (arXiv:2110.09456).
        mix: a linear map at the end.
    """
    sides = ("queries", "keys", "values")
    block = [_module("linear", input_name, side) for side in sides]
    block += [_module("make_heads", side, num_heads=num_heads) for side in sides]
    dots = {"input_name_queries": "queries", "input_name_keys": "keys", "output_name": "attn_dots"}
    block.append({"type": "mha_dots", **dots})
    if use_attn_offset:
        names = {"input_name_attn_dots": "attn_dots", "input_name_attn_offset": offset_name}
        block.append({"type": "attention_offset", **names, "output_name": "attn_dots"})
    names = {"input_name_values": "values", "input_name_attn_dots": "attn_dots", "output_name": output_name}
    block.append({"type": "mha_sum", **names})
    if scale_heads:
        block.append(_module("scale_dim", output_name, dim_to_scale=1))
    block.append(_module("merge_heads", output_name))
    return [*block, _module("linear", output_name)] if mix else block


def transformer_block(
    num_heads: Size,
    dim: Size,
    input_name: str = "x",
    output_name: str = "x",
    ff_mult: Size = 4,
    use_attn_offset: bool = True,
    offset_name: str = "attn_offset",
    drop_prob: float = 0,
) -> list[Module]:
    """A pre-norm layer: y = x + attention(norm(x)), then y + ffn(norm(y)).

    Args:
        num_heads: number of heads.
        dim: features.
        input_name: the stream it reads.
        output_name: the stream it writes.
        ff_mult: see `ffn_block`.
        use_attn_offset: see `attention_block`.
        offset_name: see `attention_block`.
        drop_prob: see `ffn_block`.
    """
    offset: dict[str, Any] = {"use_attn_offset": use_attn_offset, "offset_name": offset_name}
    return [
        *_branch_off(input_name, output_name),
        *attention_block(num_heads, output_name, output_name, **offset),
        _merge(output_name, "residual", output_name),
        *_branch_off(output_name, output_name),
        *ffn_block(dim, output_name, output_name, ff_mult, drop_prob),
        _merge(output_name, "residual", output_name),
    ]


def get_transformer_block(
    num_heads: Size,
    dim: Size,
    main_stream: str = "x",
    ff_mult: Size = 4,
    use_attn_offset: bool = True,
    offset_name: str = "attn_offset",
    drop_prob: float = 0,
) -> list[Module]:
    """`transformer_block` from one stream to itself, under its earlier name."""
    return transformer_block(num_heads, dim, main_stream, main_stream, ff_mult, use_attn_offset, offset_name, drop_prob)


def normformer_block(
    num_heads: Size,
    dim: Size,
    input_name: str = "x",
    output_name: str = "x",
    ff_mult: Size = 4,
    use_attn_offset: bool = True,
    offset_name: str = "attn_offset",
    drop_prob: float = 0,
    use_weighted_residual: bool = True,
) -> list[Module]:
    """The pre-norm layer of NormFormer (Shleifer et al. 2021, arXiv:2110.09456).

    y = x + norm(attention(norm(x))) with scaled heads, then r * y + ffn(norm(y)) with a norm within the feedforward.

    Args:
        num_heads: number of heads.
        dim: features.
        input_name: the stream it reads.
        output_name: the stream it writes.
        ff_mult: see `ffn_block`.
        use_attn_offset: see `attention_block`.
        offset_name: see `attention_block`.
        drop_prob: see `ffn_block`.
        use_weighted_residual: learn r, one factor a feature; else it is 1.
    """
    offset: dict[str, Any] = {"use_attn_offset": use_attn_offset, "offset_name": offset_name}
    return [
        *_branch_off(input_name, output_name),
        *attention_block(num_heads, output_name, output_name, scale_heads=True, **offset),
        _norm(output_name),
        _merge(output_name, "residual", output_name),
        *_branch_off(output_name, output_name),
        *ffn_block(dim, output_name, output_name, ff_mult, drop_prob, inner_norm=True),
        *([_module("scale_dim", "residual", dim_to_scale=2)] if use_weighted_residual else []),
        _merge(output_name, "residual", output_name),
    ]


def copygate_block(
    num_heads: Size,
    dim: Size,
    input_name: str = "x",
    output_name: str = "x",
    ff_mult_data: Size = 4,
    ff_mult_gate: Size = 1,
    use_attn_offset: bool = True,
    offset_name: str = "attn_offset",
    drop_prob: float = 0,
) -> list[Module]:
    """A layer that copies or changes each feature (Csordas et al. 2021, arXiv:2110.07732).

    a = norm(x + attention(x)), g = sigmoid(ffn(a)), y = g * norm(ffn(a)) + (1 - g) * x

    The 1 is a stream of its own, `one`: declare it as an input of shape [1] and give `torch.ones(1)`.

    Args:
        num_heads: number of heads.
        dim: features.
        input_name: the stream it reads.
        output_name: the stream it writes.
        ff_mult_data: `ff_mult` of the feedforward for the data.
        ff_mult_gate: `ff_mult` of the one for the gate, whose last bias starts at -3: mostly copying.
        use_attn_offset: see `attention_block`.
        offset_name: see `attention_block`.
        drop_prob: see `ffn_block`.
    """
    offset: dict[str, Any] = {"use_attn_offset": use_attn_offset, "offset_name": offset_name}
    return [
        _module("make_stream", input_name, "block_input"),
        *attention_block(num_heads, input_name, "a", **offset),
        _merge("a", "block_input", "a"),
        _norm("a"),
        *ffn_block(dim, "a", "h_hat", ff_mult_data, drop_prob),
        _norm("h_hat"),
        *ffn_block(dim, "a", "g", ff_mult_gate, drop_prob, init_final_bias=-3),
        _module("activation", "g", activation_function="sigmoid"),
        _merge("g", "h_hat", "first_term", "multiply"),
        _merge("one", "g", "one_minus_g", "subtract"),
        _merge("one_minus_g", "block_input", "second_term", "multiply"),
        _merge("first_term", "second_term", output_name),
    ]


def _module(kind: str, input_name: str, output_name: str | None = None, **settings: Any) -> Module:
    """A module from one stream to another; to the same one by default."""
    return {"type": kind, "input_name": input_name, "output_name": output_name or input_name, **settings}


def _norm(input_name: str, output_name: str | None = None) -> Module:
    return _module("norm", input_name, output_name, norm_type="layer_norm")


def _branch_off(input_name: str, output_name: str) -> list[Module]:
    """Keep a stream as the residual, and normalise it."""
    return [_module("make_stream", input_name, "residual"), _norm(input_name, output_name)]


def _merge(first: str, second: str, output_name: str, how: str = "add") -> Module:
    names = {"input_name_1": first, "input_name_2": second, "output_name": output_name}
    return {"type": "merge_streams", **names, "merge_type": how}


def _product(dim: Size, factor: Size) -> Size:
    return dim * factor if isinstance(dim, int) and isinstance(factor, int) else f"({dim})*({factor})"
