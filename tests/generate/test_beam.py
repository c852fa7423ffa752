"""Beam search: exact where it is exhaustive, scores are of the sequences returned, cached equals uncached, errors."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.generate.test_loop import VOCAB, gpt, local, prompts, seq2seq
from tests.generate.test_programs import OFFSET, demo
from variform.errors import ConfigError
from variform.generate.beam import Beams
from variform.parts.kinds import Model


@torch.no_grad()
def rescored(model: Any, prompt: Tensor, tokens: Tensor, eos: int | None = None) -> Tensor:
    """The sum of the log-probabilities of each beam of one row, in one pass over the whole sequence."""
    whole = torch.cat((prompt.expand(len(tokens), -1), tokens), 1)
    chances = model.eval()(whole)[:, len(prompt) - 1 : -1].log_softmax(-1)
    gains = chances.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if eos is not None:
        after = (tokens == eos).cumsum(1) - (tokens == eos).long() > 0
        gains = gains.masked_fill(after, 0.0)
    return gains.sum(1)


def small(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    spec = vf.models.gpt(vocab_size=5, dim=12, depth=2, heads=2, max_seq_len=16, init_std=0.6)
    model: Model = vf.build(spec).double()  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("cache", [True, False])
def test_with_enough_beams_it_finds_the_most_probable_sequences(cache: bool) -> None:
    model, prompt = small(), torch.tensor([3, 1])
    every = torch.tensor(list(itertools.product(range(5), repeat=3)))
    expected = rescored(model, prompt, every).sort(descending=True)
    found = vf.beam_search(model, prompt, 3, beams=30, use_cache=cache)
    assert found.tokens.shape == (30, 3)
    torch.testing.assert_close(found.scores, expected.values[:30])
    assert torch.equal(found.tokens[0], every[expected.indices[0]])


def test_it_finds_better_sequences_than_taking_the_best_token() -> None:
    gains = []
    for seed in range(8):
        model, prompt = small(seed), torch.tensor([3, 1])
        greedy = vf.generate(model, prompt, 6, greedy=True)
        tokens, scores = vf.beam_search(model, prompt, 6, beams=5)
        gains.append(float(scores[0] - rescored(model, prompt, greedy.unsqueeze(0))[0]))
        assert torch.equal(vf.beam_search(model, prompt, 6, beams=1).tokens[0], greedy)
        assert tokens.unique(dim=0).shape[0] == 5
    assert max(gains) > 0.1


@pytest.mark.parametrize("make", [gpt, local])
def test_scores_are_of_the_sequences_returned_with_and_without_a_cache(make: Any) -> None:
    model, rows = make(), prompts(7, 1, 12)
    slow = vf.beam_search(model, rows, 9, use_cache=False)
    fast = vf.beam_search(model, rows, 9)
    assert fast.tokens.shape == (3, 4, 9)
    assert torch.equal(fast.tokens, slow.tokens)
    for row, prompt in enumerate(rows):
        torch.testing.assert_close(fast.scores[row], rescored(model, prompt, fast.tokens[row]))
        alone = vf.beam_search(model, prompt, 9)
        assert torch.equal(alone.tokens, fast.tokens[row])
        torch.testing.assert_close(alone.scores, fast.scores[row])
    assert (fast.scores.diff(dim=1) <= 0).all()


def test_ended_beams_stay_and_are_filled_up() -> None:
    model, prompt = gpt(), prompts(5)[0]
    eos = int(vf.beam_search(model, prompt, 8).tokens[0, 2])
    tokens, scores = vf.beam_search(model, prompt, 8, eos=eos, pad=1)
    torch.testing.assert_close(scores, rescored(model, prompt, tokens, eos))
    ended = (tokens == eos).any(1)
    assert ended.any()
    for row in tokens[ended].tolist():
        assert set(row[row.index(eos) + 1 :]) <= {1}


def test_an_encoder_decoder_and_its_source() -> None:
    model = seq2seq()
    source, keep = torch.randint(VOCAB, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    keep[1, 4:] = False
    options: dict[str, Any] = {"source": source, "source_valid": keep}
    rows = prompts(3, 1)
    slow, fast = (vf.beam_search(model, rows, 6, use_cache=cache, **options) for cache in (False, True))
    assert torch.equal(slow.tokens, fast.tokens)
    torch.testing.assert_close(slow.scores, fast.scores)


def test_drawn_beams_differ_from_draw_to_draw_and_keep_true_scores() -> None:
    model, prompt = gpt(), prompts(5)[0]

    def drawn(seed: int) -> Beams:
        return vf.beam_search(model, prompt, 8, stochastic=True, temperature=1.5, top_k=10, seed=seed)

    first, second = drawn(0), drawn(1)
    assert not torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.tokens, drawn(0).tokens)
    torch.testing.assert_close(first.scores, rescored(model, prompt, first.tokens))


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"beams": 0}, "beams"),
        ({"temperature": 0.8}, "temperature"),
        ({"top_k": 3}, "top_k"),
        ({"greedy": True}, "greedy"),
        ({"stochastic": True, "temperature": 0}, "temperature"),
        ({"eoss": 1}, "eoss"),
    ],
)
def test_what_has_no_effect_is_refused(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as error:
        vf.beam_search(gpt(), prompts(5)[0], 3, **options)
    assert error.value.problems[0].path == path


def test_training_flags_are_put_back() -> None:
    model: nn.Module = gpt().train()
    vf.beam_search(model, prompts(5)[0], 2)
    assert model.training


@pytest.mark.parametrize("merge", [False, True])
def test_programs(merge: bool) -> None:
    model = demo(merge)
    prompt = torch.randint(0, 17, (2, 5))
    streams = {"attn_offset": OFFSET}
    together = vf.beam_search(model, prompt, 6, streams=streams)
    for row in range(2):
        alone = vf.beam_search(model, prompt[row], 6, streams=streams)
        assert torch.equal(alone.tokens, together.tokens[row])
        with torch.no_grad():
            ids = torch.cat((prompt[row].expand(4, -1), alone.tokens), 1)
            offset = OFFSET[:, :, : ids.shape[1], : ids.shape[1]].expand(4, -1, -1, -1)
            chances = model({"emb_ids": ids, "attn_offset": offset})["x"][:, 4:-1].log_softmax(-1)
        expected = chances.gather(-1, alone.tokens.unsqueeze(-1)).squeeze(-1).sum(1)
        torch.testing.assert_close(alone.scores, expected)
