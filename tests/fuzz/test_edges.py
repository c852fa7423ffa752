"""Sizes and numbers at the edge: one of everything, half precision, huge scores, rings that go round, empty rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf

VOCAB = 11


def _model(dtype: torch.dtype = torch.float64, seed: int = 0, **more: Any) -> Any:
    """A causal model of one mixer and one MLP; `attention`, `mixer` and other fields may be given."""
    attention, mixer = more.pop("attention", "softmax"), more.pop("mixer", {})
    steps = [{"part": "multi_head", "attention": attention, **mixer}, "mlp"]
    layer = {"part": "layer", "sublayers": [{"part": "sublayer", "body": body} for body in steps]}
    data = {"part": "transformer", "dim": 8, "heads": 2, "causal": True, "vocab_size": VOCAB, "head": "lm", **more}
    data |= {"embedding": more.get("embedding", "embedding/tokens"), "stacks": [{"part": "stack", "layers": [layer]}]}
    torch.manual_seed(seed)
    model = vf.build(data, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def _ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


ROTARY = {"rotation": {"part": "rotary"}}
ALIBI = {"position_bias": "alibi"}
T5 = {"position_bias": {"part": "t5", "buckets": 4, "max_distance": 8}}

SHAPES: dict[str, dict[str, Any]] = {
    "one head": {"heads": 1},
    "heads of one feature": {"heads": 8},
    "heads of odd size": {"mixer": {"dim_head": 3}},
    "one key head": {"heads": 4, "mixer": {"kv_heads": 1}},
    "one key head and rotation": {"heads": 4, "mixer": {"kv_heads": 1, **ROTARY}},
    "a model of one feature": {"dim": 1, "heads": 1},
    "alibi with heads that are no power of two": {"heads": 3, "mixer": {"dim_head": 4, **ALIBI}},
    "t5": {"mixer": T5},
    "no limit of length": {"mixer": ROTARY},
    "window of one": {"attention": {"part": "local", "window": 1}},
    "window beyond any length": {"attention": {"part": "local", "window": 10**6}},
    "window and rotation": {"attention": {"part": "local", "window": 3}, "mixer": ROTARY},
    "window and alibi, grouped": {
        "heads": 4,
        "attention": {"part": "local", "window": 3},
        "mixer": {"kv_heads": 2, **ALIBI},
    },
    "linear, grouped": {"heads": 4, "attention": "linear", "mixer": {"kv_heads": 2}},
    "linear, heads of one feature": {"heads": 8, "attention": "linear"},
    "memory": {"attention": {"part": "softmax", "memory": {"part": "learned", "count": 1}}},
}


@pytest.mark.parametrize("what", SHAPES)
def test_small_sizes_decode_as_they_run(what: str) -> None:
    model = _model(**SHAPES[what])
    for batch, length in ((1, 1), (1, 7), (3, 1), (2, 9)):
        ids = _ids(batch, length)
        with torch.no_grad():
            whole = model(ids)
            assert bool(torch.isfinite(whole).all())
            for bucket in (0, 4):
                state, outs = model.init_state(batch, length, bucket=bucket), []
                for place in range(length):
                    out, state = model(ids[:, place : place + 1], state=state)
                    outs.append(out)
                torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bucket", [0, 16])
@pytest.mark.parametrize("window", [1, 2, 5, 16])
def test_a_ring_goes_round_many_times(window: int, bucket: int) -> None:
    model = _model(attention={"part": "local", "window": window}, mixer=ROTARY)
    ids = _ids(2, 150)
    chunks = [1, 40, 1, 1, 3, 17, window, window + 1, 2, 1]
    chunks += [150 - sum(chunks)]
    with torch.no_grad():
        whole, state, start, outs = model(ids), model.init_state(2, 150, bucket=bucket), 0, []
        for size in chunks:
            out, state = model(ids[:, start : start + size], state=state)
            outs.append(out)
            start += size
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("attention", ["softmax", {"part": "local", "window": 3}, "linear"])
def test_rows_that_never_receive_a_token(attention: Any) -> None:
    model, ids = _model(attention=attention), _ids(3, 6)
    valid = torch.tensor([True, False, True])[:, None].expand(3, 2)
    with torch.no_grad():
        whole, state, outs = model(ids), model.init_state(3, 6), []
        for start in range(0, 6, 2):
            out, state = model(ids[:, start : start + 2], valid=valid, state=state)
            assert bool(torch.isfinite(out).all())
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 1)[[0, 2]], whole[[0, 2]], rtol=0, atol=1e-10)
        late, _ = model(ids[:, :2], valid=~valid, state=model.init_state(3, 6))
        torch.testing.assert_close(late[1], whole[1, :2], rtol=0, atol=1e-10)


@pytest.mark.parametrize("place", [None, "learned"])
def test_a_full_row_waits_for_the_others(place: str | None) -> None:
    embedding = {"part": "embedding/tokens", "position": place}
    model, ids = _model(max_seq_len=4, embedding=embedding, mixer=ROTARY), _ids(2, 4)
    with torch.no_grad():
        whole, state = model(ids), model.init_state(2)
        _, state = model(ids, valid=torch.tensor([[True] * 4, [True, False, False, False]]), state=state)
        for start in (1, 2, 3):
            step = ids[:, start : start + 1]
            out, state = model(step, valid=torch.tensor([[False], [True]]), state=state)
            torch.testing.assert_close(out[1, 0], whole[1, start], rtol=0, atol=1e-10)


@pytest.mark.parametrize("attention", ["softmax", {"part": "local", "window": 3}, "linear"])
@pytest.mark.parametrize("mixer", [{}, ALIBI, T5, ROTARY], ids=["plain", "alibi", "t5", "rotary"])
def test_nothing_to_attend_to_gives_finite_gradients(attention: Any, mixer: dict[str, Any]) -> None:
    if attention == "linear" and "position_bias" in mixer:
        pytest.skip("linear attention has no scores")
    model, ids = _model(attention=attention, mixer=mixer), _ids(2, 5)
    for valid in (torch.zeros(2, 5, dtype=torch.bool), torch.tensor([[False] * 5, [False, True, False, True, False]])):
        model.zero_grad()
        out = model(ids, valid=valid)
        assert bool(torch.isfinite(out).all())
        out.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixer", [{}, ALIBI, T5, {**ROTARY, "kv_heads": 1}], ids=["plain", "alibi", "t5", "rotary"])
def test_huge_scores_stay_finite(mixer: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    model = _model(dtype, attention={"part": "softmax", "backend": backend, "scale": 300.0}, mixer=mixer)
    out = model(_ids(2, 9), valid=torch.tensor([[False] * 2 + [True] * 7, [True] * 9]))
    assert bool(torch.isfinite(out).all())
    out.float().square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@pytest.mark.parametrize("attention", ["softmax", {"part": "local", "window": 3}, "linear"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixer", [{}, ALIBI, ROTARY], ids=["plain", "alibi", "rotary"])
def test_half_precision_is_near_float64(mixer: dict[str, Any], dtype: torch.dtype, attention: Any) -> None:
    if attention == "linear" and "position_bias" in mixer:
        pytest.skip("linear attention has no scores")
    model, wide = _model(dtype, attention=attention, mixer=mixer), _model(attention=attention, mixer=mixer)
    wide.load_state_dict(model.state_dict())
    ids = _ids(2, 33)
    with torch.no_grad():
        wanted, got, state, outs = wide(ids), model(ids), model.init_state(2, 33), []
        for start in range(0, 33, 3):
            out, state = model(ids[:, start : start + 3], state=state)
            outs.append(out)
    bound = 40 * torch.finfo(dtype).eps * float(wanted.abs().max())
    assert float((got.double() - wanted).abs().max()) < bound
    assert float((torch.cat(outs, 1).double() - wanted).abs().max()) < bound


def test_prefix_and_tokens_may_be_longer_together_than_the_longest_sequence() -> None:
    model = _model(max_seq_len=6, embedding={"part": "prefixed", "embedding": "embedding/tokens"}, mixer=ROTARY)
    free = _model(embedding={"part": "prefixed", "embedding": "embedding/tokens"}, mixer=ROTARY)
    prefix = torch.randn(2, 4, 8, dtype=torch.float64)
    for streams in ({}, {"valid": torch.ones(2, 6, dtype=torch.bool)}, {"positions": torch.arange(6)}):
        wanted = free(_ids(2, 6), prefix=prefix, **streams)
        torch.testing.assert_close(model(_ids(2, 6), prefix=prefix, **streams), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_an_answer_about_a_sequence_is_no_decode_step(pool: str) -> None:
    model = _model(head={"part": "classifier", "classes": 3, "pool": pool})
    with pytest.raises(vf.ConfigError, match=r"classifier.*no decode state"):
        model.init_state(1, 4)


def test_sizes_that_do_not_meet_are_refused_before_anything_is_built() -> None:
    for field, wrong in (
        ("embedding", {"part": "embedding/tokens", "dim": 6}),
        ("head", {"part": "lm", "dim": 6}),
        ("mixer", {"dim": 6}),
        ("mixer", {"position_bias": {"part": "alibi", "heads": 3}}),
        ("mixer", {"rotation": {"part": "rotary", "dim_head": 2}}),
        ("mixer", {"q_norm": {"part": "layer_norm", "dim": 3}}),
    ):
        with pytest.raises(vf.ConfigError, match="what reaches it has"):
            _model(**{field: wrong})
