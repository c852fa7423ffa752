"""Beyond the last tokens that count: the function is stated, and the same with a cache and without."""

from typing import Any

import pytest
import torch

import variform as vf
from tests.generate.test_loop import LONGEST, VOCAB, gpt, prompts, seq2seq
from variform.errors import ConfigError
from variform.ops.masks import Window
from variform.parts.attention.linear import LinearAttention
from variform.parts.kinds import Model


def rotary() -> Model:
    spec = vf.models.llama(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=None, init_std=0.4)
    return vf.build(spec).double().eval()  # type: ignore[return-value]


def test_without_absolute_positions_every_layer_attends_to_the_last_ones() -> None:
    model, rows = rotary(), prompts(7, 1, 12)
    found = vf.generate(model, rows, 20, greedy=True, window=6)
    assert torch.equal(vf.generate(model, rows, 20, greedy=True, window=6, use_cache=False), found)
    for row, prompt in enumerate(rows):
        ids = prompt.unsqueeze(0)
        for _ in range(20):
            ids = torch.cat((ids, model(ids, mask=Window(5))[:, -1:].argmax(-1)), 1)
        assert torch.equal(found[row], ids[0, len(prompt) :])
    assert not torch.equal(found, vf.generate(model, rows, 20, greedy=True))


@pytest.mark.parametrize("window", [LONGEST, 9])
def test_with_absolute_positions_the_last_ones_are_read_again(window: int) -> None:
    model, rows = gpt(), prompts(41, 1, 60)
    found = vf.generate(model, rows, 20, greedy=True, window=window)
    assert torch.equal(vf.generate(model, rows, 20, greedy=True, window=window, use_cache=False), found)
    for row, prompt in enumerate(rows):
        ids = prompt.unsqueeze(0)
        for _ in range(20):
            ids = torch.cat((ids, model(ids[:, -window:])[:, -1:].argmax(-1)), 1)
        assert torch.equal(found[row], ids[0, len(prompt) :])
    beams = [vf.beam_search(model, rows, 6, window=window, use_cache=cache).tokens for cache in (True, False)]
    assert torch.equal(*beams)


def test_parts_that_take_no_mask_read_the_last_tokens_again() -> None:
    spec = vf.models.llama(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=None, init_std=0.4)
    path = "stacks.0.layers.0.sublayers.0.body.attention"
    model: Any = vf.build(vf.override(spec, {path: LinearAttention.spec()})).double().eval()
    rows = prompts(7, 1, 12)
    found = vf.generate(model, rows, 14, greedy=True, window=9)
    assert torch.equal(vf.generate(model, rows, 14, greedy=True, window=9, use_cache=False), found)
    for row, prompt in enumerate(rows):
        ids = prompt.unsqueeze(0)
        for _ in range(14):
            ids = torch.cat((ids, model(ids[:, -9:])[:, -1:].argmax(-1)), 1)
        assert torch.equal(found[row], ids[0, len(prompt) :])


def test_a_text_that_fits_is_not_touched() -> None:
    model, rows = gpt(), prompts(7, 1)
    assert torch.equal(vf.generate(model, rows, 9, greedy=True, window=20), vf.generate(model, rows, 9, greedy=True))


def test_an_encoder_decoder() -> None:
    model, rows, source = seq2seq(), prompts(3, 1), torch.randint(VOCAB, (2, 9))
    found = [
        vf.generate(model, rows, LONGEST + 9, greedy=True, window=LONGEST, source=source, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"window": LONGEST + 1}, "window"),
        ({"window": 0}, "window"),
        ({"window": 9, "return_state": True}, "return_state"),
    ],
)
def test_mistakes(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as error:
        vf.generate(gpt(), prompts(5)[0], LONGEST + 9, **options)
    assert error.value.problems[0].path == path
