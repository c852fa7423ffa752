from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.residual.mean_split import MeanSplitResidual
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.testing.case import perturb


def plain(part: MeanSplitResidual, x: Tensor, branch: Tensor, valid: Tensor, segments: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            reach = range(t + 1) if part.causal else range(x.shape[1])
            seen = [s for s in reach if valid[b, s] and segments[b, s] == segments[b, t]]
            if not seen:
                continue
            mean_x, mean_f = x[b, seen].mean(0), branch[b, seen].mean(0)
            alpha = part.alpha if part.alpha_map is None else part.alpha_map @ mean_f + part.alpha
            beta = part.beta if part.beta_map is None else part.beta_map @ mean_f + part.beta
            y[b, t] = x[b, t] + beta * (branch[b, t] - mean_f) + alpha * (mean_f - mean_x)
    return y


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_the_formula(causal: bool, learned: bool, packed: bool) -> None:
    torch.manual_seed(0)
    part = MeanSplitResidual(dim=4, learned=learned, causal=causal).double()
    perturb(part, 0.5)
    x, branch = (torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True) for _ in "xf")
    valid = torch.tensor([[True] * 7, [False, True, True, True, False, True, True]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 1]])
    streams: dict[str, Any] = {"valid": valid, **({"segments": segments} if packed else {})}
    found = part(x, branch, streams)
    expected = plain(part, x, branch, valid, segments if packed else torch.zeros_like(segments))
    torch.testing.assert_close(found[valid], expected[valid])
    direction = torch.randn(2, 7, 4, dtype=torch.float64) * valid.unsqueeze(-1)
    inputs = [x, branch, *part.parameters()]
    wanted = torch.autograd.grad((expected * direction).sum(), inputs)
    for a, b in zip(torch.autograd.grad((found * direction).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(a, b)


def model() -> Any:
    steps = [
        Sublayer.spec(body=body, residual=MeanSplitResidual.spec(learned=True))
        for body in (MultiHead.spec(), MLP.spec())
    ]
    stacks = [LayerStack.spec(layers=steps)]
    spec = Transformer.spec(dim=8, heads=2, causal=True, embedding=None, stacks=stacks, max_seq_len=32)
    built = vf.build(spec).double().eval()
    perturb(built, 0.3)
    return built


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_ragged_chunks_decode_to_the_same(packed: bool) -> None:
    torch.manual_seed(0)
    whole, x = model(), torch.randn(2, 9, 8, dtype=torch.float64)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1, 1]])
    more: dict[str, Any] = {"segments": segments} if packed else {}
    expected = whole(x, **more)
    state, taken, parts = whole.init_state(2, 9), [0, 0], [[], []]
    for counts in ([3, 0], [1, 4], [0, 5], [5, 0]):
        width = max(counts)
        chunk, valid = torch.full((2, width, 8), float("nan")).double(), torch.zeros(2, width, dtype=torch.bool)
        ids = torch.zeros(2, width, dtype=torch.long)
        for row, count in enumerate(counts):
            chunk[row, :count] = x[row, taken[row] : taken[row] + count]
            ids[row, :count] = segments[row, taken[row] : taken[row] + count]
            valid[row, :count] = True
            taken[row] += count
        out, state = whole(chunk, valid=valid, state=state, **({"segments": ids} if packed else {}))
        for row, count in enumerate(counts):
            parts[row].append(out[row, :count])
    for row in range(2):
        torch.testing.assert_close(torch.cat(parts[row]), expected[row], rtol=0, atol=1e-10)


def test_a_mask_of_pairs_is_refused() -> None:
    with pytest.raises(ShapeError, match="cannot honour the stream 'mask'"):
        model()(torch.randn(1, 3, 8).double(), mask=torch.ones(3, 3, dtype=torch.bool))


def test_a_mean_of_the_future_in_a_causal_model_is_refused() -> None:
    step = Sublayer.spec(body=MLP.spec(), residual=MeanSplitResidual.spec(causal=False))
    with pytest.raises(ConfigError, match="causal"):
        vf.build(LayerStack.spec(layers=[step], causal=True), dim=8)
