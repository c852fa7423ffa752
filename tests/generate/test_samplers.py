"""The samplers as distributions: which tokens stay, and with what probabilities."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.generate.test_loop import gpt, prompts
from variform.generate import min_p, temperature, top_k, top_p
from variform.generate.samplers import chain, draw

CHANCES = torch.tensor([[0.05, 0.4, 0.1, 0.25, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)
LOGITS = CHANCES.log() + torch.tensor([[3.0], [-7.0]])  # a softmax does not see an offset


def kept(logits: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


@pytest.mark.parametrize(
    ("apply", "first"),
    [
        (lambda x: top_k(x, 1), {1}),
        (lambda x: top_k(x, 3), {1, 3, 4}),
        (lambda x: top_k(x, 9), {0, 1, 2, 3, 4}),
        (lambda x: top_p(x, 1e-9), {1}),
        (lambda x: top_p(x, 0.39), {1}),
        (lambda x: top_p(x, 0.41), {1, 3}),
        (lambda x: top_p(x, 0.66), {1, 3, 4}),
        (lambda x: top_p(x, 0.96), {0, 1, 2, 3, 4}),
        (lambda x: top_p(x, 1.0), {0, 1, 2, 3, 4}),
        (lambda x: min_p(x, 1.0), {1}),
        (lambda x: min_p(x, 0.49), {1, 3, 4}),
        (lambda x: min_p(x, 0.26), {1, 3, 4}),
        (lambda x: min_p(x, 0.2), {1, 2, 3, 4}),
        (lambda x: min_p(x, 0.0), {0, 1, 2, 3, 4}),
    ],
)
def test_exactly_the_right_tokens_stay_and_share_their_probability(
    apply: Callable[[Tensor], Tensor], first: set[int]
) -> None:
    before = LOGITS.clone()
    out = apply(LOGITS)
    assert torch.equal(LOGITS, before)
    assert kept(out)[0] == first
    index = sorted(first)
    expected = CHANCES[0, index] / CHANCES[0, index].sum()
    torch.testing.assert_close(out.softmax(-1)[0, index], expected)


def test_ties_keep_every_equal_token_or_as_many_as_are_needed() -> None:
    assert kept(top_k(LOGITS, 2))[1] == {0, 1, 2, 3, 4}
    assert kept(min_p(LOGITS, 0.999))[1] == {0, 1, 2, 3, 4}
    assert kept(top_p(LOGITS, 0.5))[1] == {0, 1, 2}


def test_temperature_divides_the_logits() -> None:
    torch.testing.assert_close(temperature(LOGITS, 0.5).softmax(-1)[0], CHANCES[0] ** 2 / (CHANCES[0] ** 2).sum())


def test_samplers_combine_in_a_stated_order() -> None:
    """Top-p sees what the temperature has sharpened, and what top-k has renormalised."""
    filters = chain(0.5, 4, 0.8, None)
    logits = LOGITS
    for apply in filters:
        logits = apply(logits)
    assert kept(logits)[0] == {1, 3}  # squared: .16 .0625 .04 .01 of .2725, so that .4 and .25 reach 0.8
    assert [apply.func.__name__ for apply in filters] == ["temperature", "top_k", "top_p"]  # type: ignore[attr-defined]
    assert chain() == []


def test_draws_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = LOGITS[:1].expand(20_000, -1)
    tokens = draw(logits, chain(k=3), greedy=False, generator=generator)
    shares = tokens.bincount(minlength=5) / len(tokens)
    expected = torch.tensor([0, 0.4, 0, 0.25, 0.2]) / 0.85
    assert set(tokens.tolist()) == {1, 3, 4}
    torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)  # over 4 standard deviations


def test_half_precision_draws_are_made_in_float32() -> None:
    """In bfloat16 a probability of 1/300 is off by up to half a percent and the sum need not be one."""
    seen = []
    draw(torch.zeros(1, 300, dtype=torch.bfloat16), [lambda x: (seen.append(x.dtype), x)[1]], False, None)
    assert seen == [torch.float32]


def test_greedy_takes_the_most_probable() -> None:
    assert draw(LOGITS, [], greedy=True, generator=None).tolist()[0] == 1
    assert draw(LOGITS, [lambda x: -x], greedy=True, generator=None).tolist()[0] == 0


def test_a_filter_of_another_vocabulary_is_refused() -> None:
    for call in (vf.generate, vf.beam_search):
        more = {"beams": 2, "stochastic": True} if call is vf.beam_search else {}
        with pytest.raises(vf.ConfigError, match=r"a filter gave logits of shape \[\d+, 3\]"):
            call(gpt(), prompts(3, 2), 2, filters=[lambda x: x[:, :3]], **more)  # type: ignore[operator]
