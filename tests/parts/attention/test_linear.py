"""cosFormer: its formula, positions, and models that hold it; and linear attention in a decoder."""

import math

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.parts.attention.decoders import generates_as_uncached, learns
from variform.parts.attention.linear import CosformerAttention
from variform.parts.kinds import Sides


def written_out(
    q: Tensor, k: Tensor, v: Tensor, longest: int, allowed: Tensor, places: tuple[Tensor, Tensor]
) -> Tensor:
    distances = (places[0][..., :, None] - places[1][..., None, :]).double()
    weights = q.relu() @ k.relu().mT * (math.pi / 2 / longest * distances).cos()
    weights = weights.masked_fill(~allowed, 0)
    total = weights.sum(-1, keepdim=True)
    return weights @ v / total.masked_fill(total == 0, 1)


def inputs(length: int, keys: int) -> list[Tensor]:
    return [torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (length, keys, keys)]


@pytest.mark.parametrize(("length", "keys", "causal"), [(7, 7, True), (150, 150, True), (33, 33, False), (5, 9, False)])
def test_cosformer_equals_its_formula(length: int, keys: int, causal: bool) -> None:
    given = inputs(length, keys)
    part = CosformerAttention(max_seq_len=160, causal=causal)
    allowed = torch.ones(length, keys, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    wanted = written_out(*given, 160, allowed, (torch.arange(length), torch.arange(keys)))  # type: ignore[arg-type]
    found = part(*given, Sides())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    weights = torch.randn_like(wanted)
    grads = [torch.autograd.grad((out * weights).sum(), given) for out in (found, wanted)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_cosformer_counts_positions_over_real_tokens() -> None:
    q, k, v = inputs(6, 6)
    part = CosformerAttention(max_seq_len=8, causal=False)
    real = torch.tensor([[False, True, True, False, True, True], [True] * 6])
    out = part(q, k, v, Sides(k_valid=real))
    fewer = part(q[:1], k[:1, :, real[0]], v[:1, :, real[0]], Sides())
    torch.testing.assert_close(out[:1], fewer)
    places = torch.tensor([[0, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5]])
    given = part(q, k, v, Sides(q_positions=places, k_positions=places))
    everywhere = torch.ones(6, 6, dtype=torch.bool)
    torch.testing.assert_close(given, written_out(q, k, v, 8, everywhere, (places[:, None], places[:, None])))


def test_the_longest_sequence_takes_effect() -> None:
    q, k, v = inputs(6, 6)
    near, far = (CosformerAttention(max_seq_len=n, causal=True)(q, k, v, Sides()) for n in (6, 600))
    assert not torch.allclose(near, far, atol=1e-3)  # type: ignore[arg-type]
    with pytest.raises(vf.ShapeError, match="max_seq_len=5"):
        CosformerAttention(max_seq_len=5, causal=True)(q, k, v, Sides())


def test_cross_attention_knows_where_a_decoded_query_stands() -> None:
    spec = vf.models.seq2seq(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=24)
    changes = {"decoder.stacks.0.layers.*.sublayers.1.body.attention": "cosformer"}
    model = vf.build(vf.override(spec, changes)).double().eval()
    source, target = torch.randint(0, 11, (2, 7)), torch.randint(0, 11, (2, 9))
    with torch.no_grad():
        whole = model(source, target)
        state = model.init_state(2, 9, source=source)
        outs = []
        for start, end in ((0, 4), (4, 5), (5, 9)):
            out, state = model(None, target[:, start:end], state=state)
            outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "cosformer"])
def test_a_decoder_generates_as_it_computes_and_learns(name: str) -> None:
    generates_as_uncached(name)
    generates_as_uncached(name, kv_heads=2)
    learns(name)
