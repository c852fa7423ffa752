"""Cross attention that normalises its context, with a norm of its own or the sublayer's."""

import torch

import variform as vf
from variform.core.spec import Shared
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.norm.norms import LayerNorm
from variform.stack.sublayer import Sublayer

DIM = 8


def test_context_is_normalised_by_the_shared_norm() -> None:
    norm = Shared("norm", LayerNorm.spec())
    step = vf.build(
        Sublayer.spec(norm=norm, body=CrossMultiHead.spec(context_norm=norm, heads=2)), dim=DIM, dim_context=DIM
    ).double()
    assert step.norm is step.body.context_norm
    torch.nn.init.normal_(step.norm.weight)
    x, context = torch.randn(2, 5, DIM, dtype=torch.float64), torch.randn(2, 3, DIM, dtype=torch.float64)
    plain = vf.build(CrossMultiHead.spec(heads=2), dim=DIM).double()
    plain.load_state_dict({name: t for name, t in step.body.state_dict().items() if "norm" not in name})
    expected = x + plain(step.norm(x), {"context": step.norm(context)})
    torch.testing.assert_close(step(x, {"context": context}), expected, rtol=0, atol=1e-12)


def test_a_context_of_another_width_has_a_norm_of_that_width() -> None:
    mixer = vf.build(CrossMultiHead.spec(heads=2, context_norm=LayerNorm.spec()), dim=DIM, dim_context=6)
    assert mixer.context_norm.weight.shape == (6,)
