import pytest
import torch
from torch import Tensor

import variform as vf
from variform.errors import ConfigError
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.residual.hyper import HyperConnection
from variform.stack.multi_stream import MultiStreamStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer
from variform.testing.case import perturb

STREAMS = 4


def perturbed(part: HyperConnection) -> HyperConnection:
    part = part.double()
    perturb(part, 0.5)
    return part


def plain(part: HyperConnection, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token, stream by stream: what the branch reads, and the new streams."""
    read, new = torch.zeros_like(branch), torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            streams = x[b, t]
            centred = streams - streams.mean(-1, keepdim=True)
            normed = part.gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            weights = part.mixing + part.mixing_scale * normed @ part.mixing_map
            read[b, t] = sum(weights[s, 0].sigmoid() * streams[s] for s in range(STREAMS))
            matrix = weights[:, 1:].exp()
            matrix = matrix / matrix.sum(0, keepdim=True)
            for _ in range(part.rounds):
                matrix = matrix / matrix.sum(1, keepdim=True)
                matrix = matrix / matrix.sum(0, keepdim=True)
            writing = part.writing + part.writing_scale * normed @ part.writing_map
            for s in range(STREAMS):
                mixed = sum(matrix[r, s] * streams[r] for r in range(STREAMS))
                new[b, t, s] = mixed + 2 * writing[s].sigmoid() * branch[b, t]
    return read, new


def test_equals_the_formula() -> None:
    torch.manual_seed(0)
    part = perturbed(HyperConnection(dim=6, residual_streams=STREAMS, rounds=7))
    x = torch.randn(2, 3, STREAMS, 6, dtype=torch.float64, requires_grad=True)
    branch = torch.randn(2, 3, 6, dtype=torch.float64)
    (read,), mixed, gains = part.open(x)
    expected_read, expected = plain(part, x, branch)
    torch.testing.assert_close(read, expected_read)
    torch.testing.assert_close(part(mixed, branch, gains=gains), expected)
    torch.testing.assert_close(part(x, branch), expected)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * direction).sum(), [x, *part.parameters()])
    found = torch.autograd.grad((part(x, branch) * direction).sum() + 0 * read.sum(), [x, *part.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_streams_begin_apart_and_written_with_one() -> None:
    part = HyperConnection(dim=16, residual_streams=STREAMS, home=6).double()
    x, branch = torch.randn(1, 2, STREAMS, 16, dtype=torch.float64), torch.randn(1, 2, 16, dtype=torch.float64)
    y = part(x, branch)
    assert (y - x - branch.unsqueeze(2)).abs().max() < 0.6
    assert part.mixing[2, 0] == 1.0
    assert part.mixing[:, 0].sum() == 1.0


def model(depth: int = 6, legacy: bool = False) -> torch.nn.Module:
    layers = []
    for layer in range(depth):
        steps = [
            Sublayer.spec(
                body=body, residual=HyperConnection.spec(home=2 * layer + place, input_views=views, legacy=legacy)
            )
            for place, (body, views) in enumerate(((MultiHead.spec(), 3), (MLP.spec(), 1)))
        ]
        layers.append(TransformerLayer.spec(sublayers=steps))
    stack = LayerStack.spec(layers=layers)
    whole: torch.nn.Module = vf.build(MultiStreamStack.spec(stack=stack, residual_streams=STREAMS), dim=16, heads=2)
    return whole.double()


def test_the_norm_is_bounded_and_every_parameter_learns() -> None:
    """x-transformers' streams grow S times a sublayer, and its mixture has no gradient."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    found = {}
    for legacy in (False, True):
        whole = model(legacy=legacy)
        y = whole(x, {})
        found[legacy] = float(y.detach().norm() / x.norm())
        y.square().sum().backward()
        for name, parameter in whole.named_parameters():
            assert parameter.grad is not None
            if name.endswith("mixing"):
                mixture = parameter.grad[:, -STREAMS:].norm() / parameter.grad.norm()
                assert mixture == 0 if legacy else mixture > 1e-4, name
            elif not legacy:
                assert parameter.grad.any(), name
    assert found[False] < 3 * STREAMS
    assert found[True] > 1e6


def test_views_reach_queries_keys_and_values() -> None:
    torch.manual_seed(0)
    spec = Sublayer.spec(body=MultiHead.spec(), norm="rms_norm", residual=HyperConnection.spec(input_views=3))
    step = vf.build(spec, dim=8, heads=2, residual_streams=3).double()
    perturb(step, 0.3)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    (queries, keys, values), mixed, gains = step.residual.open(x)
    assert (queries - keys).abs().max() > 0.01
    body = step.body
    heads = lambda w, of: w(step.norm(of)).unflatten(-1, (2, 4)).transpose(1, 2)  # noqa: E731
    weights = (heads(body.q, queries) @ heads(body.k, keys).mT / 2.0).softmax(-1)
    attended = (weights @ heads(body.v, values)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(step(x, {}), mixed + gains.unsqueeze(-1) * body.out(attended).unsqueeze(2))


def test_views_need_a_body_that_reads_them() -> None:
    spec = Sublayer.spec(body=MLP.spec(), residual=HyperConnection.spec(input_views=3))
    with pytest.raises(ConfigError, match="reads its queries, keys and values off one input"):
        vf.build(spec, dim=8, heads=2, residual_streams=3)
