"""Checks of losses that parts have beside the task's: those of routers, say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from variform.testing.case import Case
from variform.testing.numbers import gradients, same
from variform.testing.report import NotApplicable, check
from variform.testing.sequence import GRADIENT_FILL, poisoned


@check("losses")
def losses(case: Case) -> None:
    """Its losses are told on request, once a use, the same where layers are recomputed, and padding has no part."""
    if "losses" not in case.part.reads or case.part.kind == "model":
        raise NotApplicable("it has no losses of its own")
    case.need_sequence()
    x = case.inputs(2, 9).x
    model = case.model().train()
    out, told = model(x, losses=True)
    same(out, model(x), "the output where losses are asked for")
    assert told, "it reads the stream 'losses' and publishes none"
    for setting, what in ((case.setting(), "two layers with it"), (case.setting(shared=True), "a layer used twice")):
        for name, loss in case.model(setting).train()(x, losses=True)[1].items():
            assert loss.shape == (2,), f"{what} tell {name} {loss.numel()} times"
    again = case.model(case.setting(executor="checkpoint")).train()
    found, wanted = _gradients(again, x), _gradients(model, x)
    for name, value in wanted.items():
        same(found[name], value, f"{name} where layers are recomputed", 1e-9)
    if case.can.key_padding:
        valid = torch.arange(9).expand(2, 9) < 5
        model.eval()
        short = model(x[:, :5], losses=True)[1]
        for name, loss in model(poisoned(x, valid, GRADIENT_FILL), valid=valid, losses=True)[1].items():
            same(loss, short[name], f"{name} with padding")


def _gradients(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Losses, and the gradients of their sum with the output's."""
    out, told = model(x, losses=True)
    loss = out.square().sum() + sum(each.sum() for each in told.values())
    return {**told, **{f"the gradient of {name}": g for name, g in gradients(loss, model).items()}}
