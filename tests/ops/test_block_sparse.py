import functools

import pytest
import torch
from torch import Tensor

from tests.ops.cases import assert_matches_reference, qkv
from variform.ops.attention import Call, attention, candidates
from variform.ops.attention.plan import execution_block, make_plan
from variform.ops.masks import Blocks, Causal, Coarse, Dense, Documents, Global, KeyPadding, Mask, Segments, Window
from variform.ops.scores import Alibi, alibi_slopes


def _layout(*shape: int) -> Tensor:
    return torch.rand(*shape) < 0.2


STRUCTURES: dict[str, Mask] = {
    "window": Causal() & Window(20),
    "both_sides": Window(70, 40),
    "longformer": (Window(16, 16) | Global([0, 1, 300])) & Causal(),
    "blocks": Blocks(_layout(10, 10), 64),
    "blocks_heads": Blocks(_layout(4, 10, 10), 64),
    "blocks_fine": Blocks(_layout(75, 75), 8) & Causal(),
    "empty": Blocks(torch.zeros(10, 10, dtype=torch.bool), 64),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("length", [577, 512])
def test_long_sequences(name: str, length: int) -> None:
    call = Call(**qkv(length, batch=2, heads=4, kv_heads=2, dim_v=4), structure=STRUCTURES[name])
    assert_matches_reference(functools.partial(attention, backend="block_sparse"), call)


def test_everything_on_top_of_a_structure() -> None:
    length = 600
    ids = (torch.arange(length) // 90).expand(2, -1)
    call = Call(
        **qkv(length),
        structure=Causal() & Window(100),
        mask=Dense(torch.rand(4, length, length) > 0.2, per="head")
        & Documents(ids)
        & KeyPadding(torch.rand(2, length) > 0.1),
        q_segments=ids,
        k_segments=ids,
        k_valid=torch.arange(length) < torch.tensor([[length], [300]]),
        scores=(Alibi(alibi_slopes(4).double().requires_grad_()),),
        scale=0.3,
    )
    assert_matches_reference(functools.partial(attention, backend="block_sparse"), call)


def test_chosen_where_few_blocks_are_visited() -> None:
    tensors = qkv(1024)
    chosen = candidates(Call(**tensors, structure=Causal() & Window(64)))[0]
    assert chosen.name == "block_sparse"
    assert "of the blocks" in chosen.why
    assert candidates(Call(**tensors, mask=Window(64, 64)))[0].name == "block_sparse"
    for options in (
        {"structure": Causal()},
        {"structure": Causal() & Window(1000)},
        {"structure": Causal() & Segments(), "q_segments": torch.zeros(1024), "k_segments": torch.zeros(1024)},
        {"structure": Window(64), "q_positions": torch.arange(1024)},
    ):
        assert candidates(Call(**tensors, **options))[0].name == "sdpa"  # type: ignore[arg-type]
    assert candidates(Call(**qkv(256), structure=Window(8)))[0].name == "sdpa"


def test_dropout_drops_and_keeps_the_mean() -> None:
    torch.manual_seed(1)
    q, k, v = (tensor.detach() for tensor in qkv(512, batch=1, heads=1, kv_heads=1).values())
    call = Call(q, k, v, structure=Window(32), dropout=0.2)
    draws = torch.stack([attention(call, backend="block_sparse") for _ in range(200)])
    plain = attention(Call(q, k, v, structure=Window(32)), backend="block_sparse")
    assert draws.std(0).mean() > 0.01
    torch.testing.assert_close(draws.mean(0), plain, atol=0.15, rtol=0)


def test_a_layout_changed_in_place_is_seen() -> None:
    layout = torch.eye(8, dtype=torch.bool)
    call = Call(**qkv(512), structure=Blocks(layout, 64))
    attention(call, backend="block_sparse")
    layout[0, 5] = True
    assert_matches_reference(functools.partial(attention, backend="block_sparse"), call)


def test_inference_before_training() -> None:
    with torch.inference_mode():
        blocks = Blocks(torch.eye(9, dtype=torch.bool), 64)
    for structure in (Causal() & Window(21), blocks):
        call = Call(**qkv(530), structure=structure)
        with torch.inference_mode():
            attention(call, backend="block_sparse")
        assert_matches_reference(functools.partial(attention, backend="block_sparse"), call)


def test_plan_groups_rows_by_count() -> None:
    plan = make_plan(Causal() & Window(64), 512, 512, 64)
    assert [(group.count, len(group.rows)) for group in plan.groups] == [(1, 1), (2, 7)]
    assert plan.density == pytest.approx(15 / 64)
    assert not plan.exact
    assert make_plan(Blocks(torch.eye(8, dtype=torch.bool), 64), 512, 512, 64).exact
    assert execution_block(Blocks(torch.eye(8, dtype=torch.bool), 64) & Causal()) == 64
    assert execution_block(Causal() & Window(500)) == 128
    assert execution_block(Causal() & Coarse(Window(1), 64)) == 64


def test_runs_on_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = Blocks(torch.eye(8, dtype=torch.bool), 64)
    with FakeTensorMode():
        heads = torch.empty(2, 4, 512, 16, requires_grad=True)
        for structure in (Causal() & Window(64), real, real & Causal()):
            call = Call(heads, heads, heads, structure=structure)
            assert candidates(call)[0].name == "block_sparse"
            out = attention(call)
            assert out.shape == (2, 4, 512, 16)
            torch.autograd.grad(out.sum(), heads)


def test_steps_aside_under_compile() -> None:
    structure = Causal() & Window(32)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(Call(q, k, v, structure=structure))

    tensors = [tensor.detach() for tensor in qkv(600).values()]
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), run(*tensors))
