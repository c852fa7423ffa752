import torch

from tests.ops.cases import build, qkv
from variform.ops.attention import Call, attention, inside_attention, metering, standing_in
from variform.ops.masks import Causal, Dense, Window


def test_sink_sees_every_call_once() -> None:
    seen: list[tuple[Call, str]] = []
    inside: list[bool] = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            inside.append(inside_attention())
            return func(*args, **(kwargs or {}))

    call = build("soft_cap", 7)
    with metering(lambda call, backend: seen.append((call, backend))), Spy():
        attention(call)
        attention(call, backend="reference")
        assert not inside_attention()
    attention(call)
    assert seen == [(call, "auto"), (call, "reference")]
    assert all(inside)
    assert inside


def test_flops_count_visited_pairs() -> None:
    tensors = qkv(10, batch=3, heads=4, kv_heads=2, dim=8, dim_v=6)
    per_pair = 2 * 3 * 4 * (8 + 6)
    assert Call(**tensors).flops() == (per_pair * 100, per_pair * 100)
    assert Call(**tensors, structure=Causal()).flops() == (per_pair * 55, per_pair * 100)
    assert Call(**tensors, structure=Causal() & Window(1)).flops() == (per_pair * 19, per_pair * 100)
    half = Dense(torch.eye(10, dtype=torch.bool))
    assert Call(**tensors, mask=half).flops()[0] == per_pair * 10


def test_pairs_of_a_chunk_take_the_last_queries() -> None:
    tensors = qkv(1, 32)
    call = Call(**tensors, structure=Causal(), q_positions=torch.tensor([[4], [31]]))
    assert call.visited_pairs() == 32
    call = Call(**tensors, structure=Causal() & Window(7), q_positions=torch.tensor([[4], [31]]))
    assert call.visited_pairs() == 8


def test_flops_on_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = Dense(torch.eye(64, dtype=torch.bool))
    with FakeTensorMode():
        heads = torch.empty(1, 1, 64, 8)
        fake = Dense(torch.empty(64, 64, dtype=torch.bool))
        assert Call(heads, heads, heads, structure=Causal(), mask=fake).visited_pairs() == 64 * 65 // 2
        assert Call(heads, heads, heads, mask=real).visited_pairs() == 64
        assert Call(heads, heads, heads, structure=(Causal() & Window(3)) | ~Causal()).visited_pairs() > 0


def test_standing_in_targets_another_device() -> None:
    seen: list[Call] = []
    call = build("soft_cap", 7)
    with metering(lambda call, backend: seen.append(call)), standing_in("cuda"):
        out = attention(call, backend="sdpa")  # refuses a soft cap; the report says so, and the run goes on
    assert seen[0].target == "cuda"
    assert torch.equal(out, attention(call, backend="reference"))
    assert call.target == "cpu"
