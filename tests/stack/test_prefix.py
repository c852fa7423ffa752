"""Features in front are read into a decode state with the first chunk."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf

LENGTH, AHEAD = 9, 4


def model(stack: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    layers = [
        {"part": "sublayer", "body": {"part": "multi_head", "rotation": {"part": "rotary", "max_seq_len": None}}}
    ] * 2
    inner = {"part": "stack", "layers": layers}
    tokens = {"part": "tokens", **({"position": "learned"} if options.get("max_seq_len", LENGTH) else {})}
    spec = {
        "part": "transformer",
        "embedding": {"part": "prefixed", "embedding": tokens},
        "stacks": [inner if stack is None else {**stack, "stack": inner}],
        "head": "lm",
        **{"dim": 16, "heads": 4, "causal": True, "vocab_size": 11, "max_seq_len": LENGTH},
        **options,
    }
    built = vf.build(spec).double().eval()
    with torch.no_grad():
        for param in built.parameters():
            param += 0.1 * torch.randn_like(param)
    return built


def ids(rows: int = 3) -> Tensor:
    return torch.randint(0, 11, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def front(rows: int = 3) -> Tensor:
    return torch.randn(rows, AHEAD, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


VALID = torch.tensor([[True] * 4, [True, True, False, False], [False, True, True, True]])
AROUND = {
    "plain": None,
    "registers": {"part": "registers", "count": 2},
    "interspersed": {"part": "interspersed", "count": 1, "every": 3},
    "recycled": {"part": "recycled", "passes": 2},
    "looped": {"part": "looped", "passes": 2, "exit": 0.6},
}


@pytest.mark.parametrize("around", list(AROUND))
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_chunks_behind_a_prefix(around: str, padded: bool, grad: bool) -> None:
    built = model(AROUND[around])
    given: dict[str, Any] = {"prefix": front(), **({"prefix_valid": VALID} if padded else {})}
    with torch.set_grad_enabled(grad):
        whole = built(ids(), **given)[:, AHEAD:]
        state, outs, start = built.init_state(3, LENGTH, ahead=AHEAD), [], 0
        for count in (3, 1, 1, 4):
            out, state = built(ids()[:, start : start + count], state=state, **({} if start else given))
            outs.append(out if start else out[:, AHEAD:])
            start += count
        torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)


@torch.no_grad()
def test_positions_are_of_the_tokens_alone() -> None:
    built = model()
    positions = torch.tensor([0, 2, 3, 4, 8])
    whole = built(ids()[:, :5], prefix=front(), positions=positions)[:, AHEAD:]
    state = built.init_state(3, 5, ahead=AHEAD)
    first, state = built(ids()[:, :3], state=state, prefix=front(), positions=positions[:3])
    second, _ = built(ids()[:, 3:5], state=state, positions=positions[3:])
    torch.testing.assert_close(torch.cat((first[:, AHEAD:], second), 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("around", list(AROUND))
def test_generation(around: str) -> None:
    built = model(AROUND[around])
    prompts = [ids()[0, :4], ids()[1, :1], ids()[2, :3]]
    given = {"prefix": front(), "prefix_valid": VALID}
    found = vf.generate(built, prompts, 5, greedy=True, **given)
    assert torch.equal(found, vf.generate(built, prompts, 5, greedy=True, use_cache=False, **given))
    for row, prompt in enumerate(prompts):
        alone = {name: x[row : row + 1] for name, x in given.items()}
        assert torch.equal(found[row], vf.generate(built, prompt, 5, greedy=True, **alone))


def test_a_prefix_does_not_use_up_the_length() -> None:
    built = model()
    tokens = vf.generate(built, ids()[:, :5], LENGTH - 4, greedy=True, prefix=front())
    assert tokens.shape == (3, 5)
    with pytest.raises(vf.ShapeError, match="max_seq_len is 9"):
        vf.generate(built, ids()[:, :5], LENGTH - 3, greedy=True, prefix=front())


@pytest.mark.parametrize("longest", [LENGTH, None], ids=["absolute", "relative"])
def test_a_window_moves_over_the_tokens_behind_a_prefix(longest: int | None) -> None:
    built = model(max_seq_len=longest)
    given: dict[str, Any] = {"prefix": front(), "greedy": True, "window": 6}
    found = vf.generate(built, ids(), 12, **given)
    assert torch.equal(vf.generate(built, ids(), 12, use_cache=False, **given), found)
    whole = ids()
    for _ in range(12):
        whole = torch.cat((whole, built(whole[:, -6:], prefix=front())[:, -1:].argmax(-1)), 1)
    assert torch.equal(found, whole[:, LENGTH:])
