"""Contrastive decoding: the formula, cached as uncached, ragged batches, mistakes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.generate.test_loop import gpt, prompts
from variform.errors import ConfigError, ShapeError
from variform.generate.contrast import Contrast, contrasted
from variform.parts.head.heads import LMHead


def plainly(expert: Tensor, amateur: Tensor, alpha: float, beta: float) -> list[float]:
    cutoff = math.log(alpha) + max(expert.tolist())
    pairs = zip(expert.tolist(), amateur.tolist(), strict=True)
    return [(1 + beta) * e - beta * a if e >= cutoff else torch.finfo(expert.dtype).min for e, a in pairs]


def test_the_formula() -> None:
    expert, amateur = torch.randn(2, 9, dtype=torch.float64) * 2
    expected = torch.tensor(plainly(expert, amateur, 0.2, 0.7), dtype=torch.float64)
    torch.testing.assert_close(contrasted(expert, amateur, 0.2, 0.7), expected)
    assert (expected < -1e30).any()
    assert (expected > -1e30).sum() > 1


def test_generation_follows_the_contrasted_logits() -> None:
    torch.manual_seed(0)
    expert, first, second = gpt(), gpt(), gpt()
    both = Contrast(expert, [first, second], alpha=0.1, beta=(0.5, 0.3))
    rows = prompts(7, 1, 12)
    found = vf.generate(both, rows, 10, greedy=True)
    assert torch.equal(vf.generate(both, rows, 10, greedy=True, use_cache=False), found)
    for row, prompt in enumerate(rows):
        ids = prompt.unsqueeze(0)
        for _ in range(10):
            logits = contrasted(expert.eval()(ids), first.eval()(ids), 0.1, 0.5)
            logits = contrasted(logits, second.eval()(ids), 0.1, 0.3)
            ids = torch.cat((ids, logits[:, -1:].argmax(-1)), 1)
        assert torch.equal(found[row], ids[0, len(prompt) :])
    assert not torch.equal(found, vf.generate(expert, rows, 10, greedy=True))


def test_beams_and_states_to_go_on_with() -> None:
    both = Contrast(gpt(), [gpt()])
    prompt = prompts(5)[0]
    slow, fast = (vf.beam_search(both, prompt, 6, use_cache=cache) for cache in (False, True))
    assert torch.equal(slow.tokens, fast.tokens)
    first, state = vf.generate(both, prompt, 4, greedy=True, return_state=True)
    second = vf.generate(both, first[:0].new_tensor([2]), 3, greedy=True, state=state)
    whole = torch.cat((prompt, first, torch.tensor([2])))
    assert torch.equal(second, vf.generate(both, whole, 3, greedy=True))


@pytest.mark.parametrize(
    ("options", "path"),
    [({"alpha": 0}, "alpha"), ({"beta": -1}, "beta"), ({"beta": (0.1, 0.2)}, "beta"), ({"amateurs": []}, "amateurs")],
)
def test_mistakes(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as error:
        Contrast(**{"expert": gpt(), "amateurs": [gpt()], **options})
    assert error.value.problems[0].path == path


def test_another_vocabulary_is_refused() -> None:
    other = vf.build(vf.models.gpt(vocab_size=9, dim=24, depth=1, heads=3, max_seq_len=12))
    with pytest.raises(ConfigError, match="one vocabulary"):
        Contrast(gpt(), [other])
    with pytest.raises(ConfigError, match="must have heads"):
        Contrast(gpt(), [vf.build(vf.override(gpt().spec, {"head": None}))])
    fewer = Contrast(gpt(), [vf.build(vf.override(gpt().spec, {"head": LMHead.spec(vocab_size=5)}))])
    with pytest.raises(ShapeError, match="must answer for the same tokens, not for"):
        vf.generate(fewer, prompts(5)[0], 2)
