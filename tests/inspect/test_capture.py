from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.inspect.cases import MODELS, with_attention
from variform.ops.attention.sdpa import SdpaBackend

LAYER = "stacks.0.layers.1"
ATTENTION = f"{LAYER}.sublayers.0.body.attention"


@contextmanager
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    calls: list[int] = []
    run = SdpaBackend.run

    def counted(self: SdpaBackend, call: object) -> Tensor:
        calls.append(1)
        return run(self, call)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SdpaBackend, "run", counted)
        yield calls


def test_maps_are_the_reference_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vf.build(MODELS["llama"](), dtype=torch.float64).eval()
    ids = torch.randint(0, 65, (2, 33))
    plain = model(ids)
    seen: dict[str, Tensor] = {}

    def note(part: object, args: tuple[Tensor, ...], out: Tensor) -> None:
        q, k, v, _ = args
        k = k.repeat_interleave(2, 1)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        future = torch.ones(33, 33).triu(1).bool()
        seen["weights"] = scores.masked_fill(future, -torch.inf).softmax(-1)
        seen["out"] = seen["weights"] @ v.repeat_interleave(2, 1)
        assert torch.allclose(out, seen["out"], atol=1e-10)

    hook = model.stacks[0].layers[1].sublayers[0].body.attention.register_forward_hook(note)
    with fused_calls(monkeypatch) as calls, vf.capture(model, LAYER) as maps:
        out = model(ids)
    hook.remove()
    assert list(maps) == [ATTENTION]
    (weights,) = maps[ATTENTION]
    assert torch.allclose(weights, seen["weights"], atol=1e-10)
    assert torch.allclose(out, plain, atol=1e-6)
    assert len(calls) == 3  # every layer still runs on the fused backend
    assert not model.stacks[0].layers[1]._forward_hooks


def test_wildcards_and_all() -> None:
    model = vf.build(MODELS["seq2seq"]()).eval()
    args, _ = model.example_inputs(2, 9)
    with vf.capture(model, "decoder.stacks.*.layers.*.sublayers.1") as maps:
        model(*args)
    assert list(maps) == [f"decoder.stacks.0.layers.{i}.sublayers.1.body.attention" for i in range(3)]
    with vf.capture(model) as maps:
        model(*args)
        model(*args)
    assert len(maps) == 9
    assert all(len(of) == 2 for of in maps.values())
    assert torch.allclose(maps["encoder.stacks.0.layers.0.sublayers.0.body.attention"][0].sum(-1), torch.ones(2, 4, 9))


def test_a_shared_layer_has_a_map_for_each_use() -> None:
    model = vf.build(MODELS["shared"]()).eval()
    with vf.capture(model, "stacks.0.layers.2") as maps:
        model(*model.example_inputs(1, 5)[0])
    assert [len(of) for of in maps.values()] == [3]


def test_decoding_steps() -> None:
    model = vf.build(MODELS["gpt"]()).eval()
    state = model.init_state(1, 8)
    with torch.no_grad(), vf.capture(model, LAYER) as maps:
        _, state = model(torch.zeros(1, 5, dtype=torch.long), state=state)
        model(torch.zeros(1, 1, dtype=torch.long), state=state)
    assert [tuple(of.shape) for of in maps[ATTENTION]] == [(1, 4, 5, 5), (1, 4, 1, 6)]


def test_gradients_flow_through_maps() -> None:
    model = vf.build(MODELS["gpt"]())
    with vf.capture(model, LAYER) as maps:
        model(*model.example_inputs(1, 5)[0])
    maps[ATTENTION][0].square().sum().backward()
    assert model.stacks[0].layers[1].sublayers[0].body.q.weight.grad is not None


def test_what_has_no_maps_is_refused() -> None:
    model = vf.build(with_attention("linear"))
    with pytest.raises(vf.ConfigError, match=r"'linear'.*has no weights"), vf.capture(model, LAYER):
        pass
    model = vf.build(MODELS["gpt"]())
    with pytest.raises(vf.ConfigError, match="there is no part"), vf.capture(model, "stacks.0.layers.9"):
        pass
    with (
        pytest.raises(vf.ConfigError, match="ran without an attention"),
        vf.capture(model, f"{LAYER}.sublayers.1"),
    ):
        model(*model.example_inputs(1, 5)[0])


def test_an_error_leaves_no_hooks_behind() -> None:
    model = vf.build(MODELS["gpt"]())
    with pytest.raises(vf.ShapeError), vf.capture(model):
        model(torch.zeros(1, 99, dtype=torch.long))
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
