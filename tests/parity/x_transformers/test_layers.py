"""Option sets of `Encoder` and `Decoder` inside a `TransformerWrapper`, against the installed x-transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair

BASE: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 4, "attn_dim_head": 8}
DECODERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dim-head-64": {"attn_dim_head": 64},
    "flash": {"attn_flash": True},
    "rotary": {"rotary_pos_emb": True},
    "rotary-all": {"rotary_pos_emb": True, "rotary_emb_dim": 8},
    "rotary-interpolated": {"rotary_pos_emb": True, "rotary_interpolation_factor": 2.0},
    "rotary-rescaled": {"rotary_pos_emb": True, "rotary_emb_dim": 8, "rotary_base_rescale_factor": 4.0},
    "rotary-and-absolute": {"rotary_pos_emb": True, "disable_abs_pos_emb": False},
    "no-absolute": {"disable_abs_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "alibi-some-heads": {"alibi_pos_bias": True, "alibi_num_heads": 3},
    "alibi-odd-heads": {"alibi_pos_bias": True, "heads": 6},
    "alibi-grouped": {"alibi_pos_bias": True, "attn_kv_heads": 2},
    "t5": {"rel_pos_bias": True},
    "t5-few-buckets": {"rel_pos_bias": True, "rel_pos_num_buckets": 8, "rel_pos_max_distance": 9},
    "t5-grouped": {"rel_pos_bias": True, "attn_kv_heads": 2},
    "grouped": {"attn_kv_heads": 2},
    "grouped-rotary": {"attn_kv_heads": 2, "rotary_pos_emb": True, "heads": 6},
    "one-key-head": {"attn_one_kv_head": True},
    "grouped-by-layer": {"attn_kv_heads": (1, 2)},
    "one-head": {"heads": 1, "attn_project_out": True},
    "rmsnorm": {"use_rmsnorm": True},
    "simple-rmsnorm": {"use_simple_rmsnorm": True},
    "scalenorm": {"use_scalenorm": True},
    "no-unit-offset": {"norm_add_unit_offset": False},
    "rmsnorm-no-unit-offset": {"use_rmsnorm": True, "norm_add_unit_offset": False},
    "post-norm": {"pre_norm": False},
    "pre-and-post-norm": {"pre_and_post_norm": True},
    "no-final-norm": {"pre_norm_has_final_norm": False},
    "sandwich-norm": {"sandwich_norm": True},
    "sandwich-rmsnorm": {"sandwich_norm": True, "use_rmsnorm": True},
    "macaron": {"macaron": True},
    "scaled-residual": {"scale_residual_constant": 1.5},
    "scaled-branch": {"depth_scale_residual": 0.7},
    "macaron-scaled": {"macaron": True, "depth_scale_residual": 0.7, "scale_residual_constant": 1.5},
    "layerscale": {"use_layerscale": True, "layerscale_init_value": 0.3},
    "layerscale-no-offset": {"use_layerscale": True, "norm_add_unit_offset": False},
    "tied-layers": {"weight_tie_layers": True, "depth": 3},
    "tied-layers-t5": {"weight_tie_layers": True, "depth": 3, "rel_pos_bias": True},
    "custom-layers": {"custom_layers": ("a", "f", "f", "a", "f"), "depth": None},
    "execution-order": {
        "custom_layers": ("a", "f", "a", "f"),
        "layers_execute_order": (0, 1, 0, 1, 2, 3),
        "depth": None,
    },
    "repeated-blocks": {"layers_execute_order": (0, 1, 0, 1, 2, 3, 2, 3)},
    "sandwich-order": {"sandwich_coef": 1, "depth": 3},
    "par": {"par_ratio": 4, "depth": 4},
    "only-attention": {"only_attn": True},
    "glu": {"ff_glu": True},
    "swiglu": {"ff_glu": True, "ff_swish": True},
    "swish": {"ff_swish": True},
    "relu-squared": {"ff_relu_squared": True},
    "no-bias": {"ff_no_bias": True},
    "glu-no-bias": {"ff_glu": True, "ff_no_bias": True},
    "ff-norm": {"ff_post_act_ln": True},
    "glu-norm": {"ff_glu": True, "ff_post_act_ln": True},
    "ff-mult": {"ff_mult": 2.5},
    "ff-mult-by-layer": {"ff_mult": (2, 3)},
    "qk-norm": {"attn_qk_norm": True},
    "qk-norm-scale": {"attn_qk_norm": True, "attn_qk_norm_scale": 4},
    "qk-norm-dim-scale": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "qk-norm-dim-scale-grouped": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_kv_heads": 2},
    "qk-rmsnorm": {"attn_qk_rmsnorm": True},
    "qk-rmsnorm-grouped-rotary": {"attn_qk_rmsnorm": True, "attn_kv_heads": 2, "rotary_pos_emb": True},
    "k-rmsnorm": {"attn_k_rmsnorm": True},
    "memory": {"attn_num_mem_kv": 3},
    "memory-grouped": {"attn_num_mem_kv": 3, "attn_kv_heads": 2},
    "memory-alibi": {"attn_num_mem_kv": 3, "alibi_pos_bias": True},
    "memory-t5": {"attn_num_mem_kv": 3, "rel_pos_bias": True},
    "memory-rotary": {"attn_num_mem_kv": 3, "rotary_pos_emb": True},
    "memory-qk-norm": {"attn_num_mem_kv": 3, "attn_qk_norm": True},
    "memory-qk-rmsnorm": {"attn_num_mem_kv": 3, "attn_qk_rmsnorm": True},
    "window": {"attn_max_attend_past": 3},
    "window-of-one": {"attn_max_attend_past": 0, "rotary_pos_emb": True},
    "dropouts": {"attn_dropout": 0.1, "ff_dropout": 0.1, "layer_dropout": 0.1, "attn_sublayer_dropout": 0.1},
    "many": {
        "use_rmsnorm": True,
        "rotary_pos_emb": True,
        "attn_kv_heads": 2,
        "ff_glu": True,
        "ff_swish": True,
        "ff_no_bias": True,
        "attn_qk_norm": True,
        "sandwich_norm": True,
    },
}
ENCODERS = [
    "plain",
    "flash",
    "rotary",
    "alibi",
    "alibi-grouped",
    "t5",
    "t5-few-buckets",
    "grouped",
    "rmsnorm",
    "scalenorm",
    "post-norm",
    "sandwich-norm",
    "macaron",
    "layerscale",
    "tied-layers",
    "glu",
    "qk-norm",
    "qk-rmsnorm",
    "memory",
    "memory-alibi",
    "memory-t5",
    "many",
]


def wrapped(stack: str, options: dict[str, Any], **model: Any) -> Any:
    """A builder of a small language model."""

    def build(package: Any) -> nn.Module:
        layers = getattr(package, stack)(**{**BASE, **options})
        model_: nn.Module = package.TransformerWrapper(num_tokens=37, max_seq_len=20, attn_layers=layers, **model)
        return model_

    return build


def tokens(batch: int = 2, length: int = 13) -> Tensor:
    return torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name: str) -> None:
    theirs, mine = pair(wrapped("Decoder", DECODERS[name]))
    agree(theirs, mine, lambda model: model(tokens()))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_with_a_mask(name: str) -> None:
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[0, 9:], mask[1, :4] = False, False
    theirs, mine = pair(wrapped("Encoder", DECODERS[name]))
    agree(theirs, mine, lambda model: model(tokens(), mask=mask))


def test_decoder_with_a_mask_on_the_right() -> None:
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[0, 9:] = False
    theirs, mine = pair(wrapped("Decoder", {}))
    agree(theirs, mine, lambda model: model(tokens(), mask=mask))


@pytest.mark.parametrize("shape", [(13, 13), (4, 13, 13), (2, 4, 13, 13)])
@pytest.mark.parametrize("stack", ["Encoder", "Decoder"])
def test_attention_mask(stack: str, shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.6
    mask = mask | torch.eye(13, dtype=torch.bool)
    theirs, mine = pair(wrapped(stack, {}))
    agree(theirs, mine, lambda model: model(tokens(), attn_mask=mask))


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
def test_rows_that_begin_later(options: dict[str, Any]) -> None:
    start = torch.tensor([0, 5])
    begun = torch.arange(13) >= start.unsqueeze(1)  # what stands before is padding
    # In float32: upstream's softmax gives NaN to a row without keys in float64, and NaN spreads.
    theirs, mine = pair(wrapped("Decoder", options), dtype=torch.float32)
    agree(theirs, mine, lambda model: model(tokens(), seq_start_pos=start), keep=begun, tolerance=1e-5)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
@pytest.mark.parametrize("stack", ["Encoder", "Decoder"])
def test_given_positions(stack: str, options: dict[str, Any]) -> None:
    pos = torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 17])
    theirs, mine = pair(wrapped(stack, options))
    agree(theirs, mine, lambda model: model(tokens(), pos=pos))


def test_hidden_keys() -> None:
    kept = torch.rand(2, 13, generator=torch.Generator().manual_seed(5)) < 0.6
    kept[:, 0] = True
    theirs, mine = pair(wrapped("Decoder", {}))
    agree(theirs, mine, lambda model: model(tokens(), self_attn_kv_mask=kept))


def test_longer_than_the_buckets_of_a_relative_bias() -> None:
    theirs, mine = pair(wrapped("Encoder", {"rel_pos_bias": True}))
    ids = tokens(1, 171)
    agree(theirs, mine, lambda model: model(ids))
