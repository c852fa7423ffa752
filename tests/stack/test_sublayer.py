"""One residual step: every placement of norms is a filling of its slots."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.parts.feedforward.mlp import MLP
from variform.parts.kinds import FeedForward, Norm
from variform.parts.norm.norms import LayerNorm, RMSNorm
from variform.parts.residual.scaled import ScaledResidual
from variform.stack.sublayer import Sublayer, TransformerLayer

BODY = MLP.spec(hidden=6)
X = torch.randn(2, 5, 4, dtype=torch.float64)


def built(**slots: Any) -> Any:
    step = vf.build(Sublayer.spec(body=BODY, **slots), dim=4, depth=3).double()
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return step


def test_pre_norm() -> None:
    step = built()
    assert isinstance(step.norm, LayerNorm), "the default is pre-norm"
    torch.testing.assert_close(step(X, {}), X + step.body(step.norm(X), {}))


def test_post_norm() -> None:
    step = built(norm=None, out_norm="rms_norm")
    torch.testing.assert_close(step(X, {}), step.out_norm(X + step.body(X, {})))


def test_sandwich_norm() -> None:
    step = built(norm="rms_norm", branch_norm="layer_norm")
    torch.testing.assert_close(step(X, {}), X + step.branch_norm(step.body(step.norm(X), {})))


def test_deepnorm() -> None:
    step = built(norm=None, out_norm="layer_norm", residual={"part": "deepnorm", "alpha": 1.7})
    torch.testing.assert_close(step(X, {}), step.out_norm(1.7 * X + step.body(X, {})))


def test_no_norm_at_all() -> None:
    step = built(norm=None)
    torch.testing.assert_close(step(X, {}), X + step.body(X, {}))


def test_all_slots_at_once() -> None:
    step = built(
        norm="rms_norm", branch_norm="layer_norm", out_norm="scale_norm", residual=ScaledResidual.spec(alpha=0.5)
    )
    wanted = step.out_norm(0.5 * X + step.branch_norm(step.body(step.norm(X), {})))
    torch.testing.assert_close(step(X, {}), wanted)


def test_drop_path_drops_whole_rows_and_scales_the_rest() -> None:
    step = built(norm=None, drop_path=0.25).train()
    branch = step.body(X[:1], {})
    out = step(X[:1].expand(400, -1, -1), {}) - X[:1]
    dropped = (out == 0).flatten(1).all(1)
    torch.testing.assert_close(out[~dropped], (branch / 0.75).expand(int((~dropped).sum()), -1, -1))
    assert 60 < int(dropped.sum()) < 140  # 100 of 400 on average
    torch.testing.assert_close(step.eval()(X, {}), X + step.body(X, {}))


def test_dropout_zeroes_features_of_the_branch_alone() -> None:
    step = built(norm=None, dropout=0.5).train()
    branch, out = step.body(X, {}), step(X, {}) - X
    kept = out.abs() > 1e-12
    torch.testing.assert_close(out[kept], 2 * branch[kept])
    assert 0 < int(kept.sum()) < kept.numel()


@vf.register("adaptive_for_test", override=True)
class Adaptive(Norm):
    """Adds the condition."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        assert condition is not None
        return x + condition.unsqueeze(1)


@pytest.fixture(autouse=True)
def _clean() -> Any:
    vf.register("adaptive_for_test", override=True)(Adaptive)
    yield
    from variform.core.registry import unregister

    unregister("norm", "adaptive_for_test")


def test_every_norm_sees_the_condition() -> None:
    step = built(norm=Adaptive.spec(), branch_norm=Adaptive.spec(), out_norm=Adaptive.spec())
    condition = torch.randn(2, 4, dtype=torch.float64)
    c = condition.unsqueeze(1)
    torch.testing.assert_close(step(X, {"condition": condition}), X + step.body(X + c, {}) + c + c)


def test_what_a_body_publishes_passes_out() -> None:
    class Telling(FeedForward):
        def forward(self, x: Tensor, streams: Any) -> Any:
            return x, {"said": x.sum()}

    step = Sublayer(body=Telling(), norm=None)
    out, published = step(X, {})
    torch.testing.assert_close(out, 2 * X)
    assert torch.equal(published["said"], X.sum())


def test_a_layer_runs_its_steps_in_order() -> None:
    steps = [Sublayer.spec(body=BODY), Sublayer.spec(body=BODY, norm=RMSNorm.spec())]
    layer = vf.build(TransformerLayer.spec(sublayers=steps), dim=4).double()
    torch.testing.assert_close(layer(X, {}), layer.sublayers[1](layer.sublayers[0](X, {}), {}))


def test_a_layer_has_its_own_sizes() -> None:
    step = Sublayer.spec(body="multi_head")
    layer = vf.build(TransformerLayer.spec(sublayers=[step], heads=2), dim=8, heads=4)
    assert layer.sublayers[0].body.heads == 2
