"""Reversible blocks and sequences: the formula, its gradients, where arguments go, what is kept."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from variform.dialects.xformers.components import MultiHeadDispatch, PreNorm
from variform.dialects.xformers.components.attention import build_attention
from variform.dialects.xformers.components.reversible import Deterministic, ReversibleBlock, ReversibleSequence

DIM = 6


class Scaled(nn.Module):
    """tanh(W x) * gain + offset, with dropout."""

    def __init__(self, width: int = DIM) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor, gain: Any = 1.0, more: Any = None) -> Tensor:
        out = self.drop(torch.tanh(self.map(x))) * gain
        return out if more is None else out + more["offset"]


def pairs(depth: int = 3) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.ModuleList([Scaled(), Scaled()]) for _ in range(depth)).double()


def formula(x: Tensor, blocks: Any, f_args: dict[str, Any], g_args: dict[str, Any], axis: int = -1) -> Tensor:
    x1, x2 = x.chunk(2, dim=axis)
    for f, g in blocks:
        x1 = x1 + f(x2, **f_args)
        x2 = x2 + g(x1, **g_args)
    return torch.cat((x1, x2), dim=axis)


def outcome(run: Callable[[], Tensor], *sources: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    out = run()
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), sources)]


def same(got: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("route", [(True, False), (False, True), (True, True)])
def test_arguments_take_their_route_and_get_gradients(route: tuple[bool, bool]) -> None:
    blocks = pairs()
    sequence = ReversibleSequence(blocks)
    x = torch.randn(2, 5, 2 * DIM, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(DIM, dtype=torch.float64, requires_grad=True)
    offset = torch.rand(5, 1, dtype=torch.float64, requires_grad=True)
    kwargs: dict[str, Any] = {"gain": gain, "more": {"offset": offset}}
    sources = (x, gain, offset, *blocks.parameters())
    wanted = outcome(lambda: formula(x, blocks, *(kwargs if to else {} for to in route)), *sources)
    same(outcome(lambda: sequence(x, arg_route=route, **kwargs), *sources), wanted)
    default = outcome(lambda: sequence(x, **kwargs), *sources)
    assert torch.equal(default[0], wanted[0]) == (route == (True, False))


def test_the_signatures_are_upstreams() -> None:
    assert list(inspect.signature(ReversibleBlock).parameters) == ["f", "g", "split_dim"]
    forward = inspect.signature(ReversibleBlock.forward).parameters
    assert {name: forward[name].default for name in ("f_args", "g_args")} == {"f_args": {}, "g_args": {}}
    sequence = inspect.signature(ReversibleSequence.forward).parameters
    assert list(sequence) == ["self", "x", "arg_route", "kwargs"]
    assert sequence["arg_route"].default == (True, False)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_a_block_alone_splits_where_it_is_told(axis: int) -> None:
    f, g = pairs(1)[0].eval()
    block = ReversibleBlock(f, g, split_dim=axis)
    x = torch.randn(2, 4, 2 * DIM if axis == -1 else DIM, dtype=torch.float64, requires_grad=True)
    args = {"gain": 0.5}, {"more": {"offset": 2.0}}
    sources = (x, *block.parameters())
    same(outcome(lambda: block(x, *args), *sources), outcome(lambda: formula(x, [(f, g)], *args, axis), *sources))
    sequence = ReversibleSequence([ReversibleBlock(f, g, axis), ReversibleBlock(g, f, axis)])
    torch.testing.assert_close(sequence(x), formula(x, [(f, g), (g, f)], {}, {}, axis))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_several_forwards_with_dropout_before_the_backwards(order: tuple[int, int]) -> None:
    blocks = pairs()
    xs = [torch.randn(2, 5, 2 * DIM, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    results = []
    for run in (ReversibleSequence(blocks), lambda x: formula(x, blocks, {}, {})):
        torch.manual_seed(4)
        losses = [run(x).square().sum() for x in xs]
        sources = [*xs, *blocks.parameters()]
        for source in sources:
            source.grad = None
        for index in order:
            losses[index].backward()
        results.append([source.grad for source in sources])
    same(*results)


def kept(module: nn.Module, x: Tensor) -> int:
    sizes: dict[int, int] = {}
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    return sum(sizes.values())


def test_what_is_kept_does_not_depend_on_the_depth() -> None:
    x = torch.randn(2, 5, 2 * DIM, dtype=torch.float64, requires_grad=True)
    few, many = (kept(ReversibleSequence(pairs(depth)), x) for depth in (4, 32))
    assert many == few == x.untyped_storage().nbytes()


def test_attention_and_a_norm_as_f() -> None:
    """Wrapped inputs, and a mask as an argument of f alone."""
    torch.manual_seed(0)
    heads = MultiHeadDispatch(DIM, 2, build_attention({"name": "scaled_dot_product", "dropout": 0.1}))
    f, g = PreNorm(DIM, heads), PreNorm(DIM, nn.Linear(DIM, DIM))
    sequence = ReversibleSequence([(f, g)]).double()
    x = torch.randn(2, 5, 2 * DIM, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()

    def plainly() -> Tensor:
        x1, x2 = x.chunk(2, dim=-1)
        y1 = x1 + f(inputs=[x2], att_mask=mask)
        return torch.cat((y1, x2 + g(inputs=[y1])), dim=-1)

    sources = (x, *sequence.parameters())
    same(outcome(lambda: sequence(x, att_mask=mask), *sources), outcome(plainly, *sources))


def test_half_precision_is_carried_in_float32() -> None:
    blocks = pairs(24).eval()
    low = copy.deepcopy(blocks).bfloat16()
    x = torch.randn(2, 5, 2 * DIM, dtype=torch.bfloat16, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    got = outcome(lambda: ReversibleSequence(low)(x), x)
    wanted = outcome(lambda: formula(exact, blocks, {}, {}), exact)
    assert got[0].dtype == got[1].dtype == torch.bfloat16
    for a, b in zip(got, wanted, strict=True):
        assert (a.double() - b).norm() / b.norm() < 0.03


def test_a_deterministic_module_draws_again_what_it_drew() -> None:
    module = Deterministic(nn.Dropout(0.5))
    x = torch.ones(64)
    with pytest.raises(AssertionError, match="record_rng"):
        module(x, set_rng=True)
    first = module(x, record_rng=True)
    second = module(x)
    state = torch.get_rng_state()
    assert torch.equal(module(x, set_rng=True), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(second, first)


def test_mistakes_say_what_is_wanted() -> None:
    with pytest.raises(TypeError, match=r"blocks.1: a pair \(f, g\)"):
        ReversibleSequence([(nn.Identity(), nn.Identity()), nn.Identity()])
    with pytest.raises(AssertionError, match="one axis"):
        ReversibleSequence([ReversibleBlock(nn.Identity(), nn.Identity(), axis) for axis in (-1, 1)])
    sequence = ReversibleSequence(pairs())
    with pytest.raises(ValueError, match=r"\[2, 5\] is no pair of halves"):
        sequence(torch.randn(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="gives gain to neither f nor g"):
        sequence(torch.randn(2, 2 * DIM, dtype=torch.float64), arg_route=(False, False), gain=2.0)
    with pytest.raises(ValueError, match="must keep the shape"):
        ReversibleSequence([(nn.Linear(DIM, 1), nn.Identity())])(torch.randn(2, 2 * DIM))
    assert torch.equal(ReversibleSequence([])(torch.ones(3)), torch.ones(3))
