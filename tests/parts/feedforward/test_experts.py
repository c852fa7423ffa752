"""Mixtures of experts against loops over tokens, their losses, and what may be asked of them."""

import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from variform.core.spec import Shared
from variform.ops.experts import load_balance, router_z
from variform.parts.feedforward.expert_choice import ExpertChoice
from variform.parts.feedforward.mixture_of_experts import MixtureOfExperts
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.stack import reversible
from variform.stack.encoder_decoder import EncoderDecoder
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

DIM = 6
MIXED = [MLP.spec(hidden=5), GLU.spec(hidden=4), MLP.spec(hidden=3, activation="relu"), MLP.spec(hidden=7)]


def built(spec: vf.Spec, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    part = vf.build(spec, dim=DIM).double()
    with torch.no_grad():
        part.router.weight.mul_(4)
    return part


def tokens(batch: int = 2, length: int = 7) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, length, DIM, dtype=torch.float64, requires_grad=True)


def agree(got: Tensor, wanted: Tensor, x: Tensor, part: nn.Module) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
    leaves = [x, *part.parameters()]
    both = [
        torch.autograd.grad((out * weights).sum(), leaves, retain_graph=True, allow_unused=True)
        for out in (got, wanted)
    ]
    for one, other in zip(*both, strict=True):
        assert one is not None  # experts that nobody visits have a gradient, too
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-9, atol=1e-12)


def by_hand(part: Any, x: Tensor, k: int, normalise: bool, taken: Any = lambda *_: True) -> Tensor:
    """Token by token; `taken(row, token, choice, expert)` says whether a visit takes place."""
    out = []
    for row in range(x.shape[0]):
        for step in range(x.shape[1]):
            token = x[row, step]
            chance = (part.router.weight @ token).softmax(0)
            best = sorted(range(len(chance)), key=lambda e: -float(chance.detach()[e]))[:k]
            total = sum(chance[e] for e in best) if normalise else 1.0
            y = torch.zeros(DIM, dtype=torch.float64)
            for choice, expert in enumerate(best):
                if taken(row, step, choice, expert):
                    y = y + chance[expert] / total * part.experts[expert](token.view(1, 1, -1), {}).view(-1)
            out.append(y)
    return torch.stack(out).view_as(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("k", "normalise"), [(1, None), (2, None), (2, False), (3, True), (4, None)])
def test_each_token_visits_its_best_experts(k: int, normalise: bool | None, training: bool) -> None:
    part = built(MixtureOfExperts.spec(experts=MIXED, k=k, normalise=normalise)).train(training)
    x = tokens()
    wanted = by_hand(part, x, k, k > 1 if normalise is None else normalise)
    agree(part(x, {}), wanted, x, part)


def test_switch_learns_its_router_through_the_weight() -> None:
    part = built(MixtureOfExperts.spec(experts=MIXED, k=1))
    (gradient,) = torch.autograd.grad(part(tokens(), {}).square().sum(), part.router.weight)
    assert bool(gradient.abs().sum(1).all())
    with pytest.raises(vf.ConfigError, match="normalise: the weight of a single expert would always be 1"):
        vf.resolve(MixtureOfExperts.spec(experts=MIXED, k=1, normalise=True), dim=DIM)


def test_experts_without_visitors_have_a_gradient_of_zero() -> None:
    part = built(MixtureOfExperts.spec(experts=MIXED, k=1))
    with torch.no_grad():
        part.router.weight[1:] = part.router.weight[:1]  # equal scores: the first is taken
    part(tokens(), {}).sum().backward()
    assert all(p.grad is not None for p in part.parameters())
    assert sum(bool(p.grad.any()) for p in part.experts.parameters()) == len(list(part.experts[0].parameters()))


def test_a_common_expert_sees_every_token() -> None:
    part = built(MixtureOfExperts.spec(experts=MIXED, common=MLP.spec(hidden=8)))
    x = tokens()
    agree(part(x, {}), by_hand(part, x, 2, True) + part.common(x, {}), x, part)


def test_a_capacity_drops_late_and_second_choices() -> None:
    part = built(MixtureOfExperts.spec(experts=MIXED, k=2, capacity=0.6))
    x = tokens(length=9)
    limit = math.ceil(0.6 * 2 * 9 / 4)
    chance = (x @ part.router.weight.T).softmax(-1)
    order = chance.argsort(-1, descending=True)
    kept = set()
    for row in range(2):
        full = [0] * 4
        for choice in range(2):
            for step in range(9):
                expert = int(order[row, step, choice])
                full[expert] += 1
                if full[expert] <= limit:
                    kept.add((row, step, choice, expert))
    assert 0 < len(kept) < 36
    agree(part(x, {}), by_hand(part, x, 2, True, lambda *visit: visit in kept), x, part)


@pytest.mark.parametrize("capacity", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("training", [True, False])
def test_experts_choose_the_tokens_that_want_them_most(capacity: float, training: bool) -> None:
    part = built(ExpertChoice.spec(experts=MIXED, capacity=capacity, common=MLP.spec(hidden=8))).train(training)
    x = tokens()
    chance = (x @ part.router.weight.T).softmax(-1)
    wanted = part.common(x, {})
    for row in range(2):
        for expert in range(4):
            best = sorted(range(7), key=lambda t: -float(chance.detach()[row, t, expert]))[
                : math.ceil(capacity * 7 / 4)
            ]
            for step in best:
                y = part.experts[expert](x[row, step].view(1, 1, -1), {}).view(-1) * chance[row, step, expert]
                wanted = wanted + torch.zeros_like(wanted).index_put((torch.tensor(row), torch.tensor(step)), y)
    agree(part(x, {}), wanted, x, part)


@pytest.mark.parametrize(
    "spec", [MixtureOfExperts.spec(experts=MIXED, jitter=0.5), ExpertChoice.spec(experts=MIXED, jitter=0.5)]
)
def test_jitter_disturbs_the_router_in_training_alone(spec: vf.Spec) -> None:
    part, x = built(spec), tokens()
    plain = vf.build(spec.replace(jitter=0.0), dim=DIM).double()
    plain.load_state_dict(part.state_dict())
    assert not torch.equal(part(x, {}), part(x, {}))
    assert torch.equal(part.eval()(x, {}), plain.eval()(x, {}))


def test_the_router_is_exact_in_half_precision() -> None:
    part = built(MixtureOfExperts.spec(experts=[MLP.spec(hidden=4)] * 4)).to(torch.bfloat16)
    x = tokens(4, 64).detach().to(torch.bfloat16)
    told: Any = part(x, {"losses": ()})[1]["losses"]
    wide = x.float() @ part.router.weight.float().T
    torch.testing.assert_close(dict(told)["router_z"], wide.logsumexp(-1).square().mean())
    with torch.autocast("cpu", torch.bfloat16):
        told = part.float()(x.float(), {"losses": ()})[1]["losses"]
    torch.testing.assert_close(dict(told)["router_z"], wide.logsumexp(-1).square().mean())


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"k": 5}, "k", "there are 4 experts"),
        ({"experts": []}, "experts", "there is none"),
        ({"experts": [ExpertChoice.spec(experts=MIXED)]}, "experts.0", "does not treat each token on its own"),
        ({"common": ExpertChoice.spec(experts=MIXED)}, "common", "does not treat each token on its own"),
    ],
)
def test_a_mistake_names_its_place(change: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(vf.ConfigError, match=message) as caught:
        vf.resolve(MixtureOfExperts.spec(**{"experts": MIXED, **change}), dim=DIM)
    assert path in [problem.path for problem in caught.value.problems]


def test_experts_cannot_take_a_token_twice() -> None:
    with pytest.raises(vf.ConfigError, match="capacity: 4 experts cannot take a token more than 4 times"):
        vf.resolve(ExpertChoice.spec(experts=MIXED, capacity=5.0), dim=DIM)


@pytest.mark.parametrize("spec", [ExpertChoice.spec(experts=MIXED), MixtureOfExperts.spec(experts=MIXED, capacity=1.0)])
def test_competition_has_no_causal_form_and_takes_no_documents(spec: vf.Spec) -> None:
    with pytest.raises(vf.ConfigError, match=r"has no causal form.*causal: .*mixture_of_experts"):
        vf.resolve(model(spec, causal=True))
    part = built(spec)
    for name in ("segments", "mask"):
        with pytest.raises(vf.ShapeError, match=f"compete for experts, which cannot honour '{name}'"):
            part(tokens(), {name: torch.zeros(2, 7)})


# ---- losses ----


def model(feed: Any, depth: int = 2, **more: Any) -> vf.Spec:
    layers = [Sublayer.spec(body=MultiHead.spec()), *[Sublayer.spec(body=feed)] * depth]
    executor = more.pop("executor", "plain")
    stack = LayerStack.spec(layers=layers, executor=executor)
    return Transformer.spec(embedding=None, stacks=[stack], dim=DIM, heads=2, **more)


MOE = MixtureOfExperts.spec(experts=[MLP.spec(hidden=4)] * 4)


def test_the_load_balance_loss_is_that_of_the_paper() -> None:
    chance = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
    index = chance.topk(1).indices
    shares, means = torch.tensor([2 / 3, 0, 1 / 3], dtype=torch.float64), chance.mean(0)
    torch.testing.assert_close(load_balance(chance, index, None), 3 * (shares * means).sum())
    even = torch.full((4, 4), 0.25, dtype=torch.float64)
    assert float(load_balance(even, torch.arange(4).view(4, 1), None)) == pytest.approx(1.0)
    valid = torch.tensor([True, True, False])
    padded = torch.where(valid.unsqueeze(-1), index, 3)
    torch.testing.assert_close(load_balance(chance, padded, valid), load_balance(chance[:2], index[:2], None))


def test_the_z_loss_is_that_of_the_paper() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.5, -3.0]], dtype=torch.float64)
    by_hand = sum(math.log(sum(math.exp(z) for z in row)) ** 2 for row in logits.tolist()) / 2
    assert float(router_z(logits, None)) == pytest.approx(by_hand)
    torch.testing.assert_close(router_z(logits, torch.tensor([True, False])), router_z(logits[:1], None))


@pytest.mark.parametrize("executor", ["plain", "checkpoint"])
def test_a_caller_gets_the_losses_of_each_use(executor: str) -> None:
    torch.manual_seed(0)
    shared = vf.build(model(Shared("moe", MOE), executor=executor)).double().train()
    apart = vf.build(model(MOE)).double().train()
    own = dict(shared.named_parameters())
    with torch.no_grad():  # the two layers of `apart` hold what the one of `shared` holds
        for name, parameter in apart.named_parameters():
            parameter.copy_(own.get(name, own.get(name.replace("layers.2", "layers.1"))))
    x = tokens()
    found = []
    for built_model in (shared, apart):
        out, losses = built_model(x, losses=True)
        torch.testing.assert_close(out, built_model(x))
        assert {name: tuple(t.shape) for name, t in losses.items()} == {"load_balance": (2,), "router_z": (2,)}
        loss = out.square().sum() + losses["load_balance"].sum() + 0.5 * losses["router_z"].sum()
        router = [p for name, p in built_model.named_parameters() if "router" in name]
        gradients = torch.autograd.grad(loss, router)
        found.append((losses, gradients))
    for name in ("load_balance", "router_z"):
        torch.testing.assert_close(found[0][0][name], found[1][0][name])
    assert len(found[0][1]) == 1
    torch.testing.assert_close(found[0][1][0], found[1][1][0] + found[1][1][1])


def test_losses_are_told_on_request_alone() -> None:
    torch.manual_seed(0)
    with_experts, without = vf.build(model(MOE)), vf.build(model(MLP.spec(hidden=4)))
    x = tokens().detach().float()
    assert isinstance(with_experts(x), Tensor)
    assert without(x, losses=True)[1] == {}
    chosen = vf.build(model(ExpertChoice.spec(experts=[MLP.spec(hidden=4)] * 4)))
    assert set(chosen(x, losses=True)[1]) == {"router_z"}
    causal = vf.build(model(MOE, causal=True))
    with pytest.raises(vf.ShapeError, match="losses belong to whole sequences"):
        causal(x, state=causal.init_state(2, 9), losses=True)


def test_reversible_layers_tell_their_losses_with_gradients() -> None:
    """Those of plain autograd, from two forward passes."""
    results = []
    for plainly in (False, True):
        torch.manual_seed(0)
        part = vf.build(model(MOE, executor="reversible")).double().train()
        x = tokens().requires_grad_()
        reverse = reversible._in_turn if plainly else reversible._reversed
        with mock.patch.object(reversible, "_reversed", reverse):
            outs = [part(x, losses=True) for _ in range(2)]
        assert all(set(losses) == {"load_balance", "router_z"} for _, losses in outs)
        told = [3 * losses["load_balance"].sum() + losses["router_z"].square().sum() for _, losses in outs]
        loss = sum(y.square().sum() for y, _ in outs) + sum(told)
        results.append([*outs[0][1].values(), *torch.autograd.grad(loss, [x, *part.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_padding_has_no_part_in_the_losses() -> None:
    torch.manual_seed(0)
    part = vf.build(model(MOE)).double().eval()
    x = tokens(1, 5)
    padded = torch.cat((x, torch.full((1, 3, DIM), 1e3, dtype=torch.float64)), 1)
    valid = torch.arange(8).view(1, -1) < 5
    wanted, got = part(x, losses=True)[1], part(padded, valid=valid, losses=True)[1]
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name])


def test_an_encoder_decoder_tells_the_losses_of_both_sides() -> None:
    decoder = model(MOE, depth=1, causal=True)
    layers = [*decoder["stacks"][0]["layers"], Sublayer.spec(body={"part": "cross_attention"})]
    decoder = decoder.replace(stacks=[LayerStack.spec(layers=layers)])
    both = vf.build(EncoderDecoder.spec(encoder=model(MOE), decoder=decoder, dim=DIM, heads=2)).double()
    out, losses = both(tokens(), tokens(2, 4), losses=True)
    torch.testing.assert_close(out, both(tokens(), tokens(2, 4)))
    torch.testing.assert_close(losses["router_z"][:2], both.encoder(tokens(), losses=True)[1]["router_z"])
    assert losses["load_balance"].shape == (3,)


def test_images_have_losses_too() -> None:
    spec = vf.models.vit(image_size=4, patch_size=2, dim=8, depth=2, heads=2, classes=3)
    chosen = ExpertChoice.spec(experts=[MLP.spec(hidden=4)] * 2)
    built_model = vf.build(vf.override(spec, {"stacks.0.layers.*.sublayers.1.body": chosen}))
    out, losses = built_model(torch.randn(2, 3, 4, 4), losses=True)
    assert out.shape == (2, 3)
    assert losses["router_z"].shape == (2,)


def test_losses_compile_whole() -> None:
    torch.manual_seed(0)
    part = vf.build(model(MOE, causal=True)).train()
    x = tokens().detach().float()
    compiled = torch.compile(part, fullgraph=True, backend="aot_eager")
    found = []
    for run in (part, compiled):
        out, losses = run(x, losses=True)
        loss = out.square().sum() + sum(t.sum() for t in losses.values())
        found.append((loss, torch.autograd.grad(loss, list(part.parameters()))))
    torch.testing.assert_close(found[1][0], found[0][0])
    for got, wanted in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# ---- cost ----


def test_only_visited_experts_cost() -> None:
    feed = MLP.spec(hidden=24)
    costs = [vf.describe(MixtureOfExperts.spec(experts=[feed] * n, k=2), 2, 8, dim=DIM).flops for n in (4, 16)]
    one, router = vf.describe(feed, 2, 8, dim=DIM).flops, 2 * 16 * DIM
    assert costs == [2 * one + 4 * router, 2 * one + 16 * router]
    half = vf.describe(MixtureOfExperts.spec(experts=[feed] * 4, k=2, capacity=0.5), 2, 8, dim=DIM).flops
    assert half == one + 4 * router
    formulas = vf.costs(model(MOE, max_seq_len=64)).total
    assert None not in (formulas.flops.expression, formulas.activation_bytes.expression)
    chosen = vf.describe(ExpertChoice.spec(experts=[feed] * 4, capacity=1.0), 2, 8, dim=DIM).flops
    assert chosen == one + 4 * router
