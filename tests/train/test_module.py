"""The optimiser's groups and schedule, and what each step of the module does."""

import math

import pytest
import torch

import variform as vf
from variform.parts.feedforward.mixture_of_experts import MixtureOfExperts
from variform.parts.feedforward.mlp import MLP
from variform.train.module import LanguageModule, decay_groups, rate, total
from variform.train.sections import TrainSection


def test_schedule() -> None:
    section = TrainSection(steps=100, warmup=10, final_lr=0.1)
    rates = [rate(step, section) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0 == max(rates)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rate(99, TrainSection(steps=100, warmup=10, schedule="constant")) == 1.0
    assert rate(0, TrainSection(steps=100, warmup=0)) == 1.0


def test_vectors_do_not_decay_and_shared_weights_count_once() -> None:
    model = vf.build(vf.models.gpt(vocab_size=9, dim=8, depth=1, heads=2, max_seq_len=5, bias=True, tie=True))
    model.embedding.position.weight.requires_grad_(False)
    groups = decay_groups(model.parameters(), 0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    found = [p for group in groups for p in group["params"]]
    assert {id(p) for p in found} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(found) == len({id(p) for p in found})
    assert all(p.dim() >= 2 for p in groups[0]["params"])
    assert all(p.dim() == 1 for p in groups[1]["params"])


def experts(k: int = 2) -> vf.Spec:
    spec = vf.models.gpt(vocab_size=9, dim=8, depth=2, heads=2, max_seq_len=5)
    feed = MixtureOfExperts.spec(experts=[MLP.spec(hidden=4)] * 4, k=k)
    return vf.override(spec, {"stacks.0.layers.*.sublayers.1.body": feed})


def test_losses_of_parts_are_added_with_their_weights() -> None:
    torch.manual_seed(0)
    model = vf.build(experts())
    ids = torch.randint(0, 9, (3, 6))
    batch = ids[:, :-1], ids[:, 1:]
    _, told = model(batch[0], losses=True)
    found = LanguageModule(model, TrainSection()).training_step(batch, 0)
    further = 0.01 * told["load_balance"].sum() + 0.001 * told["router_z"].sum()
    torch.testing.assert_close(found["loss"], found["cross_entropy"] + further)
    found = LanguageModule(model, TrainSection(losses={"load_balance": 0.5})).training_step(batch, 0)
    further = 0.5 * told["load_balance"].sum() + 0.001 * told["router_z"].sum()
    torch.testing.assert_close(found["loss"], found["cross_entropy"] + further)
    own = {"mine": torch.tensor([1.0, 2.0])}
    assert float(total(torch.tensor(4.0), own, {})) == 7
    assert float(total(torch.tensor(4.0), own, {"mine": 0.5})) == 5.5
    with pytest.raises(vf.ConfigError, match=r"train\.losses: no part has a loss 'balance'"):
        LanguageModule(model, TrainSection(losses={"balance": 0.5})).training_step(batch, 0)
    plain = vf.build(vf.models.gpt(vocab_size=9, dim=8, depth=1, heads=2, max_seq_len=5))
    with pytest.raises(vf.ConfigError, match=r"train\.losses: no part of the model has a loss of its own"):
        LanguageModule(plain, TrainSection(losses={"router_z": 0.5}))


def test_loss_is_the_mean_cross_entropy() -> None:
    model = vf.build(vf.models.gpt(vocab_size=9, dim=8, depth=1, heads=2, max_seq_len=5))
    module = LanguageModule(model, TrainSection())
    ids = torch.randint(0, 9, (3, 6))
    found = module.training_step((ids[:, :-1], ids[:, 1:]), 0)
    chances = model(ids[:, :-1]).log_softmax(-1)
    by_hand = -torch.stack([chances[b, i, ids[b, i + 1]] for b in range(3) for i in range(5)]).mean()
    for name in ("loss", "cross_entropy"):
        torch.testing.assert_close(found[name], by_hand)
    assert found["loss"].item() == pytest.approx(math.log(9), rel=0.1)
