import functools
import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.ops.cases import assert_matches_reference, cast, error, qkv, run_with_gradients
from variform.errors import BackendError
from variform.ops.attention import Call, attention, candidates, metering, pattern
from variform.ops.masks import (
    Blocks,
    Causal,
    Dense,
    Documents,
    Everything,
    Global,
    KeyPadding,
    Mask,
    Padding,
    Segments,
    Window,
)
from variform.ops.scores import Alibi, DenseBias, SoftCap, alibi_slopes

sparse = functools.partial(attention, backend="sparse")


def scattered(*shape: int, density: float = 0.1) -> Tensor:
    return torch.rand(*shape) < density


MASKS: dict[str, Any] = {
    "shared": lambda n, m: Dense(scattered(n, m)),
    "per_row": lambda n, m: Dense(scattered(2, n, m), per="batch"),
    "per_head": lambda n, m: Dense(scattered(4, n, m), per="head"),
    "per_sample": lambda n, m: Dense(scattered(2, 4, n, m)),
    "nothing": lambda n, m: Dense(torch.zeros(n, m, dtype=torch.bool)),
    "all": lambda n, m: Dense(torch.ones(n, m, dtype=torch.bool)),
    "some_rows_empty": lambda n, m: Dense(scattered(n, m) & (torch.arange(n) % 3 > 0)[:, None]),
    "causal_too": lambda n, m: Dense(scattered(n, m, density=0.3)) & Causal(),
    "either": lambda n, m: Dense(scattered(n, m)) | Window(2),
    "blocks": lambda n, m: Blocks(scattered(-(-n // 4), -(-m // 4), density=0.3), 4),
    "by_position": lambda n, m: Dense(scattered(n + 9, m + 9), by="position"),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("sizes", [(65, 65), (33, 90)])
def test_values_and_gradients(name: str, sizes: tuple[int, int]) -> None:
    torch.manual_seed(sum(sizes))
    tensors = qkv(*sizes, kv_heads=2 if name == "shared" else 4, dim_v=4 if name == "per_head" else 8)
    assert_matches_reference(sparse, Call(**tensors, mask=MASKS[name](*sizes)))


def test_everything_on_top_of_a_mask() -> None:
    length = 70
    ids = (torch.arange(length) // 25).expand(2, -1)
    call = Call(
        **qkv(length),
        structure=Causal(),
        mask=Dense(scattered(4, length, length, density=0.4), per="head")
        & Documents(ids)
        & KeyPadding(torch.rand(2, length) > 0.1)
        & Padding(torch.tensor([70, 40]))
        & Segments(),
        q_segments=ids,
        k_segments=ids,
        k_valid=torch.arange(length) < torch.tensor([[length], [30]]),
        scores=(
            Alibi(alibi_slopes(4).double().requires_grad_()),
            DenseBias(torch.randn(2, 1, length, length, dtype=torch.float64, requires_grad=True)),
        ),
        scale=0.3,
    )
    assert_matches_reference(sparse, call)


def test_samples_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(**qkv(40, batch=3), mask=Dense(scattered(40, 40)), k_valid=torch.rand(3, 40) > 0.2)
    whole = run_with_gradients(sparse, call)
    for pairs in (1, 500, 900):
        monkeypatch.setattr("variform.ops.attention.sparse._CHUNK", pairs)
        for found, wanted in zip(run_with_gradients(sparse, call), whole, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


def test_equal_calls_give_equal_bits() -> None:
    tensors = {name: tensor.detach().float().requires_grad_() for name, tensor in qkv(600).items()}
    call = Call(**tensors, mask=Dense(scattered(600, 600)))
    for first, second in zip(run_with_gradients(sparse, call), run_with_gradients(sparse, call), strict=True):
        assert torch.equal(first, second)


def test_large_scores_do_not_overflow() -> None:
    tensors = {name: (tensor.detach() * 40).float().requires_grad_() for name, tensor in qkv(50).items()}
    assert all(
        torch.isfinite(t).all() for t in run_with_gradients(sparse, Call(**tensors, mask=Dense(scattered(50, 50))))
    )


def test_dropout_drops_and_keeps_the_mean() -> None:
    torch.manual_seed(1)
    q, k, v = (tensor.detach() for tensor in qkv(60, batch=1, heads=1, kv_heads=1).values())
    call = Call(q, k, v, mask=Dense(scattered(60, 60, density=0.3)), dropout=0.2)
    draws = torch.stack([sparse(call) for _ in range(2000)])
    assert draws.std(0).mean() > 0.01
    torch.testing.assert_close(draws.mean(0), sparse(replace(call, dropout=0.0)), atol=0.1, rtol=0)


def test_gradients_of_a_draw_of_dropout() -> None:
    q, k, v = qkv(20).values()
    mask = Dense(scattered(20, 20, density=0.4))

    def drawn(*tensors: Tensor) -> Tensor:
        torch.manual_seed(3)
        return sparse(Call(*tensors, mask=mask, dropout=0.4))

    assert torch.autograd.gradcheck(drawn, (q, k, v), fast_mode=True)


def test_second_derivatives_are_refused() -> None:
    q, k, v = qkv(20).values()
    (first,) = torch.autograd.grad(sparse(Call(q, k, v, mask=Dense(scattered(20, 20)))).sum(), q, create_graph=True)
    with pytest.raises(BackendError, match="second derivative"):
        first.sum().backward()


def test_chosen_where_few_pairs_are_left() -> None:
    tensors = {name: tensor.float() for name, tensor in qkv(1024, dim=64, dim_v=64).items()}
    chosen = candidates(Call(**tensors, mask=Dense(scattered(1024, 1024, density=0.05))))
    assert chosen[0].name == "sparse"
    assert "5% of the pairs are attended, which pays below" in chosen[0].why
    assert any(one.name == "block_sparse" and "100% of the blocks of 128" in one.why for one in chosen)
    many = candidates(Call(**tensors, mask=Dense(scattered(1024, 1024, density=0.4))))
    assert many[0].name == "sdpa"
    assert any(one.name == "sparse" and "40% of the pairs are attended, which pays below" in one.why for one in many)
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    mask = Dense(scattered(1024, 1024, density=0.16))
    assert candidates(Call(**tensors, mask=mask))[0].name == "sparse"
    assert candidates(Call(**half, mask=mask))[0].name == "sdpa"
    assert candidates(Call(**half, mask=mask, dropout=0.1))[0].name == "sparse"


@pytest.mark.parametrize("per", ["batch", "head"])
def test_a_mask_for_each_sample_costs_a_look_at_each(per: Any) -> None:
    tensors = {name: tensor.float() for name, tensor in qkv(600, dim=64, dim_v=64).items()}
    count = 2 if per == "batch" else 4
    for density, name in ((0.02, "sparse"), (0.2, "sdpa")):
        mask = Dense(scattered(count, 600, 600, density=density), per=per)
        assert candidates(Call(**tensors, mask=mask))[0].name == name


def test_dense_masks_with_tiles_are_gathered() -> None:
    tensors = {name: tensor.float() for name, tensor in qkv(1024).items()}
    for block in (16, 32, 64, 128):
        layout = torch.eye(1024 // block, dtype=torch.bool)
        layout[3, 1] = layout[0, 5] = True
        mask = layout.repeat_interleave(block, 0).repeat_interleave(block, 1)
        call = Call(**tensors, mask=Dense(mask))
        one = candidates(call)[0]
        assert one.name == "block_sparse"
        assert f"of the blocks of {max(block, 64)} are" in one.why or block < 64
        torch.testing.assert_close(attention(call), attention(call, "reference"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_the_tile_length_follows_the_visited_tiles(block: int) -> None:
    tensors = {name: tensor.float() for name, tensor in qkv(2048, batch=1, heads=2, kv_heads=2).items()}
    layout = torch.zeros(2048 // block, 2048 // block, dtype=torch.bool)
    layout[torch.arange(2048 // block), torch.randperm(2048 // block)] = True
    found = candidates(Call(**tensors, structure=Blocks(layout, block)))
    assert found[0].name in ("block_sparse", "sparse")
    told = next(one.why for one in found if one.name == "block_sparse")
    assert f"of the blocks of {block} are visited" in told


def test_windows_and_causality_are_recognised() -> None:
    length = 600
    tensors = {name: tensor.float() for name, tensor in qkv(length).items()}
    position = torch.arange(length)
    for symbol in (Causal(), Window(30), Window(0, 3), Everything()):
        dense = symbol.dense(position, position).expand(length, length).clone()
        found = pattern.pattern_of(Call(**tensors), Dense(dense))
        assert found is not None
        assert found.band == symbol
        dense[400, 400] = not dense[400, 400]
        changed = pattern.pattern_of(Call(**tensors), Dense(dense))
        assert changed is not None
        assert changed.band is None
    causal = Causal().dense(position, position)
    assert "a dense mask is built" not in candidates(Call(**tensors, mask=Dense(causal)))[0].why
    assert candidates(Call(**tensors, structure=Causal(), mask=Dense(causal[None, None])))[0].name == "sdpa"
    banded = Call(**tensors, mask=Dense(Window(20).dense(position, position)), k_valid=torch.rand(2, length) > 0.1)
    assert candidates(banded)[0].name == "block_sparse"
    torch.testing.assert_close(attention(banded), attention(banded, "reference"), rtol=0, atol=1e-5)


def test_what_was_found_is_remembered_until_the_mask_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Mask] = []
    look = pattern._look
    monkeypatch.setattr(pattern, "_look", lambda mask, *sizes: (looks.append(mask), look(mask, *sizes))[1])
    base, call = scattered(64, 64), Call(**qkv(64))
    for _ in range(3):
        sparse(replace(call, mask=Dense(base)))
        sparse(replace(call, mask=Dense(base[None, None])))
    assert len(looks) == 2
    base[0] = True
    assert_matches_reference(sparse, replace(call, mask=Dense(base)))
    assert len(looks) == 3
    sparse(replace(call, structure=Causal(), mask=Dense(base)))
    assert len(looks) == 4


def test_what_was_found_dies_with_the_mask() -> None:
    gc.collect()
    before, mask = len(pattern._KNOWN), scattered(64, 64)
    sparse(Call(**qkv(64), mask=Dense(mask)))
    assert len(pattern._KNOWN) == before + 1
    del mask
    gc.collect()
    assert len(pattern._KNOWN) == before


def test_masks_made_in_inference_mode_are_looked_at_each_time() -> None:
    with torch.inference_mode():
        mask = scattered(64, 64)
        call = Call(**{name: tensor.detach() for name, tensor in qkv(64).items()}, mask=Dense(mask))
        sparse(call)
        mask[:, 3] = True
        torch.testing.assert_close(sparse(call), attention(call, "reference"))


def test_inference_before_training() -> None:
    mask = Dense(scattered(64, 64))
    with torch.inference_mode():
        sparse(Call(**{name: tensor.detach() for name, tensor in qkv(64).items()}, mask=mask))
    assert_matches_reference(sparse, Call(**qkv(64), mask=mask))


def test_nothing_quadratic_is_kept() -> None:
    length, saved = 1024, 0
    sizes = {"batch": 1, "heads": 2, "kv_heads": 2, "dim": 64, "dim_v": 64}
    q, k, v = (tensor.float().detach().requires_grad_() for tensor in qkv(length, **sizes).values())

    def keep(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    mask = Dense(scattered(length, length, density=0.02))
    pairs = int(mask.tensor.count_nonzero())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(Call(q, k, v, mask=mask)).sum().backward()
    heads = 3 * q.numel() * 4  # q, k and v
    assert saved == heads + 2 * pairs * 4 + 2 * length * 4


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_costs_are_those_of_the_pairs(dropout: float) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mask = Dense(scattered(512, 512, density=0.02))
    counted: list[int] = []

    def kept(call: Call) -> int:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (saved.append(t.numel() * t.element_size()), t)[1], lambda t: t
        ):
            attention(call).sum()
        return sum(saved)

    real = {name: tensor.float().detach().requires_grad_() for name, tensor in qkv(512).items()}
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(tensor) for name, tensor in real.items()}
        call = Call(**fake, mask=mask, dropout=dropout)
        assert candidates(call)[0].name == "sparse"
        counted.append(kept(call))
        torch.autograd.grad(attention(call).sum(), call.q)
    assert counted == [kept(Call(**real, mask=mask, dropout=dropout))]
    seen: list[tuple[int, int]] = []
    with metering(lambda one, backend: seen.append(one.flops())):
        attention(Call(**real, mask=mask))
    assert seen == [(2 * 2 * 4 * int(mask.tensor.count_nonzero()) * 16, 2 * 2 * 4 * 512 * 512 * 16)]


def test_refuses_what_it_cannot_compute() -> None:
    tensors, mask = qkv(64), Dense(scattered(64, 64))
    for options in (
        {"structure": Window(3)},
        {"mask": mask, "scores": (SoftCap(2.0),)},
        {"mask": mask, "q_positions": torch.arange(64), "k_positions": torch.arange(64)},
        {"mask": mask, "device": "cuda"},
    ):
        with pytest.raises(BackendError, match="'sparse' refuses"):
            sparse(Call(**tensors, **options))  # type: ignore[arg-type]


def test_steps_aside_under_compile_and_transforms() -> None:
    mask = scattered(600, 600, density=0.02)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(Call(q, k, v, mask=Dense(mask)))

    tensors = [tensor.detach() for tensor in qkv(600).values()]
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), run(*tensors))
    (transformed,) = torch.func.grad(lambda q: run(q, *tensors[1:]).sum(), argnums=(0,))(tensors[0])
    leaf = tensors[0].clone().requires_grad_()
    torch.testing.assert_close(transformed, torch.autograd.grad(run(leaf, *tensors[1:]).sum(), leaf)[0])


def test_steps_aside_where_a_graph_is_written() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    mask = scattered(600, 600, density=0.02)
    tensors = [tensor.detach() for tensor in qkv(600).values()]
    graph = make_fx(lambda q, k, v: attention(Call(q, k, v, mask=Dense(mask))))(*tensors)
    changed = [tensor + 1 for tensor in tensors]
    torch.testing.assert_close(graph(*changed), attention(Call(*changed, mask=Dense(mask))))
    assert not any("sparse" in str(node.target) for node in graph.graph.nodes)


def test_masks_without_tensors_that_leave_few_pairs() -> None:
    tensors = {name: tensor.float() for name, tensor in qkv(1024, dim=64, dim_v=64).items()}
    for structure in (Global([5]), Window(4) | Global([0]), Causal() & Global([700])):
        call = Call(**tensors, structure=structure)
        assert candidates(call)[0].name == "sparse"
        torch.testing.assert_close(attention(call), attention(call, "reference"), rtol=0, atol=1e-5)


def test_the_default_device_plays_no_part() -> None:
    call = Call(**qkv(64), mask=Dense(scattered(64, 64)), k_valid=torch.rand(2, 64) > 0.3)
    with torch.device("meta"):
        out = sparse(call)
    torch.testing.assert_close(out, attention(call, "reference"))


def test_autocast_keeps_the_precision_of_its_inputs() -> None:
    q, k, v = (tensor.detach().float().requires_grad_() for tensor in qkv(64).values())
    call = Call(q, k, v, mask=Dense(scattered(64, 64)))
    with torch.autocast("cpu", torch.bfloat16):
        out = sparse(call)
        out.sum().backward()
    torch.testing.assert_close(out, sparse(call), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(12))
def test_random_calls(seed: int) -> None:
    torch.manual_seed(seed)
    heads, rows = (1, 3, 4)[seed % 3], (1, 2)[seed % 2]
    q_len, k_len = int(torch.randint(1, 150, ())), int(torch.randint(1, 150, ()))
    shape = (rows if seed % 4 < 2 else 1, heads if seed % 5 < 2 else 1, q_len, k_len)
    density = float(torch.rand(()) ** 3)
    call = Call(
        **qkv(q_len, k_len, batch=rows, heads=heads, kv_heads=1 if seed % 7 == 0 else heads),
        mask=Dense(scattered(*shape, density=density)),
        structure=Causal() if seed % 3 == 0 else Global([0, 3]) | Window(9, 2) if seed % 3 == 1 else None,
        k_valid=torch.rand(rows, k_len) > 0.2 if seed % 2 else None,
    )
    assert_matches_reference(sparse, call)
    assert_matches_reference(functools.partial(attention, backend="block_sparse"), call)
    assert_matches_reference(attention, call)


@pytest.mark.parametrize("seed", range(8))
def test_random_layouts_at_lengths_where_tiles_pay(seed: int) -> None:
    torch.manual_seed(seed)
    block, length = (16, 32, 48, 64, 128)[seed % 5], int(torch.randint(513, 700, ()))
    blocks = -(-length // block)
    layout = scattered(*((2,) if seed % 2 else ()), blocks, blocks, density=float(torch.rand(()) * 0.4))
    dtype = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
    tensors = {name: t.detach().to(dtype).requires_grad_() for name, t in qkv(length, heads=2, kv_heads=2).items()}
    call = Call(
        **tensors,
        structure=Blocks(layout, block) & Causal() if seed % 4 > 1 else Blocks(layout, block),
        mask=Dense(scattered(2, 1, length, length, density=0.7)) if seed % 3 == 0 else None,
        k_valid=torch.rand(2, length) > 0.2 if seed % 4 == 1 else None,
    )
    wanted = run_with_gradients(attention_of("reference"), cast(call, torch.float64))
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    for backend in ("auto", "sparse", "block_sparse"):
        assert error(run_with_gradients(attention_of(backend), call), wanted) < bound


def attention_of(backend: str) -> Any:
    return functools.partial(attention, backend=backend)


def test_the_fused_kernel_with_the_same_mask_agrees() -> None:
    q, k, v = (tensor.float() for tensor in qkv(1024, dim=64, dim_v=64).values())
    mask = scattered(1024, 1024, density=0.05)
    ours = attention(Call(q, k, v, mask=Dense(mask)))
    torch.testing.assert_close(
        ours, functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), rtol=0, atol=1e-5
    )
