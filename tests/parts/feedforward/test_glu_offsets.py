import pytest

from variform.parts.feedforward.mlp import GLU


@pytest.mark.parametrize(("bias", "out_bias", "expected"), [(True, None, 3), (True, False, 2), (False, True, 1)])
def test_offsets_inside_and_outside(bias: bool, out_bias: bool | None, expected: int) -> None:
    glu = GLU(dim=4, bias=bias, out_bias=out_bias, init_std=None, writes=None)
    assert sum(name.endswith("bias") for name, _ in glu.named_parameters()) == expected
    assert (glu.down.bias is not None) == (bias if out_bias is None else out_bias)
