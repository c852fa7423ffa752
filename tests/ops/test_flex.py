import pytest
import torch

from tests.ops.cases import CASES, build, cast, error, qkv
from variform.errors import BackendError
from variform.ops.attention import Call, attention, candidates, reference
from variform.ops.masks import Causal, Window
from variform.ops.scores import Behind, DenseBias, SoftCap


def _detached(call: Call, dtype: torch.dtype) -> Call:
    with torch.no_grad():
        call = cast(call, dtype)
        for tensor in (call.q, call.k, call.v):
            tensor.requires_grad_(False)
        for modifier in call.scores:
            for value in vars(modifier).values():
                if isinstance(value, torch.Tensor):
                    value.requires_grad_(False)
    return call


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "no backward"),
        ({"dropout": 0.1}, "dropout"),
        ({"device": "mps"}, "mps"),
        ({"device": "cuda"}, "at least 16"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    tensors = {name: tensor.detach().float().requires_grad_() for name, tensor in qkv(5).items()}
    with pytest.raises(BackendError, match=message):
        attention(Call(**tensors, **change), backend="flex")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="float64"):
        attention(Call(**qkv(5)), backend="flex")


def test_chosen_for_training_on_cuda_where_blocks_are_skipped() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        heads = torch.empty(1, 2, 4096, 64, requires_grad=True)
        segments = torch.empty(1, 4096, dtype=torch.int64)

        def chosen(**options: object) -> str:
            return candidates(Call(heads, heads, heads, device="cuda", **options))[0].name  # type: ignore[arg-type]

        assert chosen(structure=Causal() & Window(256)) == "flex"
        assert chosen(structure=Causal(), q_segments=segments, k_segments=segments) == "flex"
        assert chosen(structure=Causal(), scores=(SoftCap(30.0),)) == "flex"
        assert chosen(structure=Causal()) == "sdpa"
        assert chosen() == "sdpa"
        with torch.no_grad():
            assert chosen(structure=Causal() & Window(256)) == "sdpa"
        out = attention(
            Call(heads, heads[:, :1], heads[:, :1], device="cuda", structure=Causal(), scores=(SoftCap(30.0),))
        )
        assert out.shape == heads.shape


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in CASES] + [(name, torch.bfloat16) for name in ("causal", "alibi", "empty_rows")],
)
def test_matches_reference_on_cpu(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    call = _detached(build(name, 65), dtype)
    with torch.no_grad():
        found = attention(call, backend="flex")
        wanted = reference(_detached(call, torch.float64))
        own = error([reference(call)], [wanted])
    assert error([found], [wanted]) < (1e-5 if dtype == torch.float32 else 2 * own + 1e-3)


def test_a_bias_behind_others_asks_for_a_backward_too() -> None:
    heads = torch.randn(1, 2, 4, 8)
    bias = DenseBias(torch.zeros(4, 3, requires_grad=True))
    moved = bias.behind(1, torch.arange(4), torch.arange(3))
    assert isinstance(moved, Behind)
    with pytest.raises(BackendError, match="no backward"):
        attention(Call(heads, heads, heads, scores=(moved,)), backend="flex")
