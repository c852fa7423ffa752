"""Multi-head attention against its formula and torch's own module."""

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from variform.errors import ShapeError
from variform.ops.masks import Causal
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def as_torch(part: nn.Module, dim: int, heads: int, dim_context: int | None = None) -> nn.MultiheadAttention:
    """torch's module with the same weights."""
    other = nn.MultiheadAttention(dim, heads, kdim=dim_context, vdim=dim_context, batch_first=True).double()
    state = other.state_dict()
    q, k, v, out = part.q, part.k, part.v, part.out
    if dim_context is None:
        state["in_proj_weight"] = torch.cat((q.weight, k.weight, v.weight))
    else:
        state |= {"q_proj_weight": q.weight, "k_proj_weight": k.weight, "v_proj_weight": v.weight}
    state["in_proj_bias"] = torch.cat((q.bias, k.bias, v.bias))
    state["out_proj.weight"], state["out_proj.bias"] = out.weight, out.bias
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("causal", [True, False])
def test_it_equals_torchs_module(causal: bool) -> None:
    part = vf.build(MultiHead.spec(bias=True, out_bias=True), dim=12, heads=3, causal=causal).double()
    part.q.bias.data.normal_()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    valid = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    hidden = ~torch.ones(7, 7, dtype=torch.bool).tril() if causal else None
    wanted, _ = as_torch(part, 12, 3)(x, x, x, key_padding_mask=~valid, attn_mask=hidden)
    torch.testing.assert_close(part(x, {"valid": valid}), wanted, **EXACT)


def test_cross_attention_equals_torchs_module() -> None:
    part = vf.build(CrossMultiHead.spec(bias=True, out_bias=True), dim=12, heads=3, dim_context=5).double()
    x, context = torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    valid = torch.tensor([[True] * 4, [True, False, True, False]])
    wanted, _ = as_torch(part, 12, 3, 5)(x, context, context, key_padding_mask=~valid)
    torch.testing.assert_close(part(x, {"context": context, "context_mask": valid}), wanted, **EXACT)


def test_grouped_heads_share_keys_and_values() -> None:
    part = vf.build(MultiHead.spec(kv_heads=2, dim_head=5), dim=12, heads=6).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    q = (x @ part.q.weight.T).view(2, 7, 6, 5)
    k, v = ((x @ w.T).view(2, 7, 2, 5) for w in (part.k.weight, part.v.weight))
    heads = []
    for head in range(6):
        weights = torch.softmax(q[:, :, head] @ k[:, :, head // 3].mT / 5**0.5, -1)
        heads.append(weights @ v[:, :, head // 3])
    torch.testing.assert_close(part(x, {}), torch.cat(heads, -1) @ part.out.weight.T, **EXACT)


def test_norms_and_rotation_work_on_each_head() -> None:
    part = vf.build(MultiHead.spec(q_norm="rms_norm", k_norm="scale_norm"), dim=12, heads=3, causal=True).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = ((x @ w.T).view(2, 5, 3, 4).transpose(1, 2) for w in (part.q.weight, part.k.weight, part.v.weight))
    q, k = part.q_norm(q), part.k_norm(k)
    scores = (q @ k.mT / 2).masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
    wanted = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ part.out.weight.T
    torch.testing.assert_close(part(x, {}), wanted, **EXACT)


def test_a_mask_on_a_bidirectional_part_equals_the_causal_one() -> None:
    built: list[Tensor] = []
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    for causal, streams in ((True, {}), (False, {"mask": Causal()})):
        torch.manual_seed(0)
        built.append(vf.build(MultiHead.spec(), dim=12, heads=3, causal=causal).double()(x, streams))
    torch.testing.assert_close(built[0], built[1], **EXACT)


def test_initial_scales() -> None:
    part = vf.build(MultiHead.spec(), dim=64, heads=4, init_std=0.02, writes=4)
    assert part.q.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert part.out.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_what_an_attention_cannot_honour_is_refused() -> None:
    part = vf.build(MultiHead.spec(attention="linear"), dim=8, heads=2)
    with pytest.raises(ShapeError, match="'linear' cannot honour the stream 'mask'"):
        part(torch.randn(1, 3, 8), {"mask": Causal()})
    with pytest.raises(vf.ConfigError, match="no scores that a bias could change"):
        vf.build(MultiHead.spec(attention="linear", position_bias="alibi"), dim=8, heads=2)


def test_cross_attention_needs_a_context_that_fits() -> None:
    part = vf.build(CrossMultiHead.spec(), dim=8, heads=2)
    with pytest.raises(ShapeError, match="needs the stream 'context'"):
        part(torch.randn(1, 3, 8), {})
    with pytest.raises(vf.ConfigError, match="'local' cannot attend to another sequence"):
        vf.build(CrossMultiHead.spec(attention={"part": "local", "window": 3}), dim=8, heads=2)


def test_causal_cross_attention_is_aligned_and_needs_equal_lengths() -> None:
    part = vf.build(CrossMultiHead.spec(attention={"part": "softmax", "causal": True}), dim=8, heads=2).double()
    x, context = torch.randn(1, 5, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    out = part(x, {"context": context})
    for length in range(1, 6):
        short = part(x[:, :length], {"context": context[:, :length]})
        torch.testing.assert_close(out[:, :length], short, **EXACT)
    with pytest.raises(ShapeError, match="needs equal lengths, not 5 queries and 4 context tokens"):
        part(x, {"context": context[:, :4]})
