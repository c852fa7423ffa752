"""Builds a model of x-transformers and ours from the same keywords, gives both the same weights, compares them.

Everything runs in float64. Upstream's parameters are perturbed first, so that gains of one and zero branches count.
Upstream keeps rotary angles in float32 and computes its softmax there whatever the model's dtype; both are done in
float64, so that the formulas and not their rounding are compared.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform.dialects.x_transformers as ours
from tests.parity.x_transformers.option_set import VERSIONS
from variform.weights.x_transformers import entries_of, load_x_transformers, to_x_transformers

upstream: Any = pytest.importorskip("x_transformers", reason="x-transformers is not installed (extra dev)")

VERSION = importlib.metadata.version("x-transformers")
"""The release on the path: the newest, or the one that `test_releases.py` puts before it."""

TOLERANCE = 1e-6
Build = Callable[[Any], nn.Module]
Run = Callable[[nn.Module], Tensor]


def unlike(why: str, raises: type[Exception] | tuple[type[Exception], ...] = AssertionError) -> pytest.MarkDecorator:
    """Marks what the earlier release fails at, so that a comparison with it has to fail, and in this way.

    Args:
        why: what that release does.
        raises: what it fails with; AssertionError where it computes something else.
    """
    reason = f"x-transformers {VERSIONS[0]}: {why}"
    return pytest.mark.xfail(VERSIONS[0] == VERSION, reason=reason, raises=raises, strict=True)


def pair(build: Build, prefix: str = "", dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Upstream's model and ours, `build(module)` of either package, with the same perturbed weights."""
    torch.manual_seed(0)
    theirs = build(upstream).to(dtype).eval()
    for name, param in theirs.named_parameters():
        param.data += torch.randn_like(param) * (0.02 if "token_emb" in name else 0.1)
        if name.endswith("to_v_head_gate.bias"):  # gates that begin wide open would hide what they do
            param.data -= 9.0
    in_its_dtype(theirs)
    for module in theirs.modules():
        if type(module).__name__ == "RotaryEmbedding":
            exact_angles(module)
        softmax = getattr(module, "attn_fn", None)
        if isinstance(softmax, partial) and softmax.keywords.get("dtype") is torch.float32:
            module.attn_fn = partial(softmax.func, **{**softmax.keywords, "dtype": dtype})
    mine = build(ours).to(dtype).eval()
    load_x_transformers(mine, theirs.state_dict(), prefix=prefix)
    return theirs, mine


def in_its_dtype(model: nn.Module) -> None:
    """Hand distances to upstream's network in the dtype of its weights: it makes them in float32."""
    for module in model.modules():
        if type(module).__name__ == "DynamicPositionBias":
            first: Any = module.mlp[0]  # type: ignore[index, union-attr]
            first.register_forward_pre_hook(lambda part, given: (given[0].to(part[0].weight.dtype),))


def exact_angles(rotary: Any) -> None:
    """Put angles in float64 in the place of those that were computed in float32."""
    rounded = rotary.inv_freq
    if rounded.numel() < 2:
        return
    for dim in (2 * rounded.numel(), 2 * rounded.numel() - 1):  # an odd number of features is turned as one more
        base = float(rounded[1]) ** (-dim / 2)  # inv_freq[1] = base ** (-2 / dim)
        near = min((10000.0 * r ** (dim / (dim - 2)) for r in (1.0, 1.5, 2.0, 4.0)), key=lambda b: abs(b - base))
        exact = near ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        if torch.allclose(exact.to(rounded.dtype), rounded, rtol=1e-5):
            rotary.inv_freq = exact.to(rounded.dtype)
            return
    raise AssertionError("angles of another base than those that are known here")


def agree(
    theirs: nn.Module,
    mine: nn.Module,
    run: Run,
    prefix: str = "",
    keep: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Outputs and the gradients of all parameters are equal to 1e-6; so are the weights written back.

    Args:
        theirs, mine: the two models.
        run: calls either.
        prefix: what the keys of upstream's state dict begin with.
        keep: [B, L] bool, which outputs count; all by default.
        tolerance: another one, for float32.
    """
    expected, found = run(theirs), run(mine)
    assert found.shape == expected.shape
    torch.manual_seed(1)
    direction = torch.randn_like(expected)
    if keep is not None:
        direction, expected, found = direction[keep], expected[keep], found[keep]
    assert expected.std() > 1e-3, "nothing to compare"
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    (expected * direction).sum().backward()
    (found * direction).sum().backward()
    compare_gradients(theirs, mine, prefix, tolerance)
    written = to_x_transformers(mine, prefix=prefix)
    assert set(written) == set(theirs.state_dict())
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(
            written[key].double(),
            tensor.double(),
            rtol=1e-6,
            atol=1e-6 if tensor.dtype == torch.float32 else 1e-12,
            msg=key,
        )
    theirs.load_state_dict(written)


def compare_gradients(theirs: nn.Module, mine: nn.Module, prefix: str = "", tolerance: float = TOLERANCE) -> None:
    """Gradients of upstream's parameters, and ours pulled back through the conversion of weights."""
    params = dict(theirs.named_parameters(remove_duplicate=False))
    pulled: dict[int, Tensor] = {}
    for entry in entries_of(mine, prefix):
        if not entry.params or entry.key not in params:  # a buffer
            continue
        leaf = params[entry.key].detach().clone().requires_grad_()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in entry.params]
        (pulled[id(params[entry.key])],) = torch.autograd.grad(list(entry.load(leaf)), leaf, grads)
    for name, param in params.items():
        expected = torch.zeros_like(param) if param.grad is None else param.grad
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(pulled[id(param)] / scale, expected / scale, rtol=0, atol=tolerance, msg=name)
