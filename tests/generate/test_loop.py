"""Generation: cached equals uncached, a ragged batch equals its rows, ends, streaming, errors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from variform.parts.attention.softmax import LocalAttention
from variform.parts.kinds import Model

VOCAB, LONGEST = 31, 48


def gpt(**changes: Any) -> Model:
    spec = vf.models.gpt(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=LONGEST, init_std=0.4, **changes)
    model = vf.build(spec).double()
    assert isinstance(model, Model)
    return model


def seq2seq() -> Model:
    model = vf.build(vf.models.seq2seq(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=LONGEST, init_std=0.4))
    assert isinstance(model, Model)
    return model.double()


def local() -> Model:
    spec = vf.models.gpt(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=LONGEST, init_std=0.4)
    path = "stacks.0.layers.{}.sublayers.0.body.attention"
    changes = {path.format(layer): LocalAttention.spec(window=5) for layer in range(2)}
    return vf.build(vf.override(spec, changes)).double()  # type: ignore[return-value]


def prompts(*lengths: int) -> list[Tensor]:
    return [torch.randint(VOCAB, (length,)) for length in lengths]


@pytest.mark.parametrize("make", [gpt, local])
@pytest.mark.parametrize("bucket", [0, 7])
def test_greedy_with_a_cache_equals_greedy_without(make: Any, bucket: int) -> None:
    model, prompt = make(), torch.randint(VOCAB, (3, 6))
    slow = vf.generate(model, prompt, 20, greedy=True, use_cache=False)
    assert slow.shape == (3, 20)
    assert len(slow.unique()) > 5  # a model that repeats one token would prove nothing
    assert torch.equal(vf.generate(model, prompt, 20, greedy=True, bucket=bucket), slow)
    expected = prompt
    for _ in range(20):
        expected = torch.cat((expected, model(expected)[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(slow, expected[:, 6:])


@pytest.mark.parametrize("make", [gpt, local])
@pytest.mark.parametrize("cache", [True, False])
def test_a_ragged_batch_gives_what_each_row_gives_alone(make: Any, cache: bool) -> None:
    model, rows = make(), prompts(7, 1, 12)
    together = vf.generate(model, rows, 15, temperature=0, use_cache=cache)
    alone = [vf.generate(model, row, 15, greedy=True) for row in rows]
    assert alone[0].shape == (15,)
    assert torch.equal(together, torch.stack(alone))


def test_padding_on_either_side_changes_nothing() -> None:
    model, rows = gpt(), prompts(7, 1, 12)
    right = torch.full((3, 14), -1)
    left = right.clone()
    for place, row in enumerate(rows):
        right[place, : len(row)] = row
        left[place, 14 - len(row) :] = row
    wanted = vf.generate(model, rows, 10, greedy=True)
    assert torch.equal(vf.generate(model, right, 10, greedy=True, lengths=[7, 1, 12]), wanted)
    assert torch.equal(vf.generate(model, left, 10, greedy=True, valid=left >= 0), wanted)


def test_encoder_decoder_ragged_sources_and_prompts() -> None:
    model, rows = seq2seq(), prompts(3, 1)
    source, keep = torch.randint(VOCAB, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    keep[1, 4:] = False
    options: dict[str, Any] = {"source": source, "source_valid": keep, "greedy": True}
    cached = vf.generate(model, rows, 12, **options)
    assert torch.equal(cached, vf.generate(model, rows, 12, use_cache=False, **options))
    alone = vf.generate(model, rows[1][None], 12, source=source[1:, :4], greedy=True)
    assert torch.equal(cached[1:], alone)
    other = vf.generate(model, rows, 12, source=source.flip(1), source_valid=keep.flip(1), greedy=True)
    assert not torch.equal(cached, other)


def test_a_decoder_with_a_context() -> None:
    whole = vf.models.seq2seq(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=LONGEST, init_std=0.4)
    model, rows = vf.build(whole).double().decoder, prompts(3, 1)
    context, keep = torch.randn(2, 9, 24).double(), torch.ones(2, 9, dtype=torch.bool)
    keep[1, 4:] = False
    cached = vf.generate(model, rows, 12, context=context, context_mask=keep, greedy=True)
    uncached = vf.generate(model, rows, 12, context=context, context_mask=keep, greedy=True, use_cache=False)
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[1], vf.generate(model, rows[1], 12, context=context[1:, :4], greedy=True))
    first, state = vf.generate(
        model, rows, 5, context=context, context_mask=keep, greedy=True, return_state=True, max_len=20
    )
    with pytest.raises(vf.ConfigError, match="context: the state has read it already"):
        vf.generate(model, first, 2, context=context, state=state)
    assert not torch.equal(cached, vf.generate(model, rows, 12, context=context, greedy=True))


def test_eos_ends_a_row_and_all_rows_end_the_run() -> None:
    model, prompt = gpt(), torch.randint(VOCAB, (4, 5))
    free = vf.generate(model, prompt, 30, greedy=True)
    ends = free[torch.arange(4), torch.tensor([2, 5, 5, 9])].tolist()
    prompt[:, 0] = ends[0]  # one in the prompt does not count
    free = vf.generate(model, prompt, 30, greedy=True)
    for eos, pad in ((ends, 30), (ends[0], None)):
        wanted, steps = [], 0
        stops = [eos] if isinstance(eos, int) else eos
        for row in free.tolist():
            length = next((place + 1 for place, token in enumerate(row) if token in stops), len(row))
            wanted.append(row[:length] + [stops[0] if pad is None else pad] * (30 - length))
            steps = max(steps, length)
        got = vf.generate(model, prompt, 30, greedy=True, eos=eos, pad=pad)
        assert got.shape[1] == steps
        assert got.tolist() == [row[:steps] for row in wanted]
        uncached = vf.generate(model, prompt, 30, greedy=True, eos=eos, pad=pad, use_cache=False)
        assert torch.equal(got, uncached)


def test_a_returned_state_continues_where_the_rows_ended() -> None:
    model, rows = gpt(), prompts(4, 6)
    first, _ = vf.generate(model, rows, 12, greedy=True, return_state=True)
    eos = int(first[0, 3])  # ends row 0 early, unless it comes sooner
    first, state = vf.generate(model, rows, 12, greedy=True, return_state=True, eos=eos)
    lengths = [next((i + 1 for i, token in enumerate(row) if token == eos), len(row)) for row in first.tolist()]
    assert min(lengths) < max(lengths)
    more = prompts(3, 2)
    whole = [torch.cat((row, new[:n], next_)) for row, new, n, next_ in zip(rows, first, lengths, more, strict=True)]
    wanted = vf.generate(model, whole, 10, greedy=True)
    assert torch.equal(vf.generate(model, more, 10, greedy=True, state=state), wanted)


def test_a_seed_or_generator_reproduces_the_draws() -> None:
    model, prompt = gpt(), torch.randint(VOCAB, (2, 4))
    first = vf.generate(model, prompt, 20, seed=3, top_p=0.9)
    assert torch.equal(first, vf.generate(model, prompt, 20, generator=torch.Generator().manual_seed(3), top_p=0.9))
    assert not torch.equal(first, vf.generate(model, prompt, 20, seed=4, top_p=0.9))
    torch.manual_seed(8)
    unseeded = vf.generate(model, prompt, 20)
    torch.manual_seed(8)
    assert torch.equal(unseeded, vf.generate(model, prompt, 20))


def test_samplers_act_on_the_draws() -> None:
    model, prompt = gpt(), torch.randint(VOCAB, (2, 4))
    greedy = vf.generate(model, prompt, 20, greedy=True)
    for option in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}):
        assert torch.equal(vf.generate(model, prompt, 20, **option), greedy)  # type: ignore[arg-type]
    only_five = torch.full((VOCAB,), -torch.inf, dtype=torch.float64)
    only_five[5] = 0.0
    assert vf.generate(model, prompt, 4, filters=[lambda x: x + only_five]).unique().tolist() == [5]
    assert vf.generate(model, prompt, 4, filters=[lambda x: x + only_five], greedy=True).unique().tolist() == [5]


def test_streaming_yields_the_same_tokens_one_by_one() -> None:
    model, prompt = gpt(), torch.randint(VOCAB, (2, 4))
    run = vf.stream(model, prompt, 20, seed=3)
    tokens = [next(run)]
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    tokens += run
    assert torch.equal(torch.stack(tokens, 1), vf.generate(model, prompt, 20, seed=3))
    assert next(vf.stream(model, prompt[0], 3)).dim() == 0


def test_training_flags_are_put_back_and_dropout_is_off() -> None:
    model, prompt = gpt(dropout=0.5), torch.randint(VOCAB, (2, 4))
    model.train()
    model.stacks[0].layers.eval()  # type: ignore[index, union-attr]
    flags = {name: module.training for name, module in model.named_modules()}
    first = vf.generate(model, prompt, 20, greedy=True)
    assert torch.equal(first, vf.generate(model, prompt, 20, greedy=True))
    run = vf.stream(model, prompt, 20, greedy=True)
    next(run)
    run.close()  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        vf.generate(model, prompt, 20, filters=[lambda x: x / (1 // 0)])
    assert {name: module.training for name, module in model.named_modules()} == flags


def test_the_model_can_be_trained_on_what_it_generated() -> None:
    model, prompt = gpt(), torch.randint(VOCAB, (2, 4))
    tokens, state = vf.generate(model, prompt, 6, return_state=True)
    logits, _ = model(tokens, state=state)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("preset", ["gpt", "llama", "seq2seq"])
def test_generating_leaves_nothing_behind_that_training_trips_over(preset: str) -> None:
    """No table or buffer of the model is made in the mode that generation runs in."""
    spec = getattr(vf.models, preset)(vocab_size=VOCAB, dim=24, depth=2, heads=3, max_seq_len=LONGEST)
    model, prompt = vf.build(spec), torch.randint(VOCAB, (2, 4))
    sources = (prompt,) if preset == "seq2seq" else ()
    tokens = vf.generate(model, prompt, 6, **({"source": prompt} if sources else {}))
    assert not tokens.is_inference()
    model(*sources, tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_up_to_the_last_position_and_no_further() -> None:
    model, prompt = gpt(), torch.randint(VOCAB, (1, LONGEST))
    assert vf.generate(model, prompt, 1, greedy=True).shape == (1, 1)
    with pytest.raises(vf.ShapeError, match=r"max_seq_len is 48; ask for at most 1 new tokens"):
        vf.generate(model, prompt, 2)
    with pytest.raises(vf.ShapeError, match=r"shorten the prompt"):
        vf.generate(model, prompt, 1, return_state=True)
    _, state = vf.generate(model, prompt[:, :5], 5, return_state=True, max_len=15)
    with pytest.raises(vf.ShapeError, match=r"the state has room for 5 more; ask for at most 3 new tokens"):
        vf.generate(model, prompt[:, :3], 4, state=state)
    assert vf.generate(model, prompt[:, :3], 3, state=state).shape == (1, 3)


class Cycle(nn.Module):
    """Not one of ours: answers with the token after the last."""

    def init_state(self, batch: int, max_len: int, bucket: int = 0) -> dict[str, Any]:
        return {"fed": 0}

    def forward(self, ids: Tensor, *, valid: Tensor | None = None, state: Any = None) -> Any:
        logits = nn.functional.one_hot((ids + 1) % VOCAB, VOCAB).float()
        return logits if state is None else (logits, {"fed": state["fed"] + ids.shape[1]})


def test_any_module_with_the_protocol_generates() -> None:
    tokens, state = vf.generate(Cycle(), [3, 4], 5, greedy=True, return_state=True)
    assert tokens.tolist() == [5, 6, 7, 8, 9]
    assert state == {"fed": 7}
    assert vf.generate(Cycle(), [3, 4], 5, greedy=True, use_cache=False).tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature: must be"),
        ({"top_p": 0.0}, r"top_p: must be a number in \(0, 1\] \(got 0.0\)"),
        ({"top_p": 1.5}, "top_p: must be"),
        ({"min_p": -0.1}, "min_p: must be"),
        ({"top_k": 0}, "top_k: must be an integer of at least 1"),
        ({"top_k": 2.5}, "top_k: must be an integer"),
        ({"top_k": True}, "top_k: must be an integer"),
        ({"max_new_tokens": 0}, "max_new_tokens: must be an integer of at least 1"),
        ({"temprature": 1.0}, "temprature: no such option; did you mean 'temperature'"),
        ({"eos": VOCAB}, r"eos: a token id in \[0, 31\)"),
        ({"eos": "x"}, "eos: a token id"),
        ({"seed": 1, "generator": torch.Generator()}, "give one of them"),
        ({"use_cache": False, "bucket": 8}, "bucket: needs the cache"),
        ({"use_cache": False, "return_state": True}, "return_state: needs the cache|return_state: a state"),
        ({"max_len": 5}, "max_len: this call needs room for 13 tokens"),
        ({"source": torch.zeros(1, 3)}, "source: this model has no encoder"),
        ({"top_k": 0, "top_p": 2.0}, "2 problems"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    steps = options.pop("max_new_tokens", 10)
    with pytest.raises(vf.ConfigError, match=message):
        vf.generate(gpt(), [1, 2, 3, 4], steps, **options)


def test_bad_models_and_calls() -> None:
    bert = vf.build(vf.models.bert(vocab_size=VOCAB, dim=24, depth=1, heads=3, max_seq_len=LONGEST))
    with pytest.raises(vf.ConfigError, match="cannot decode step by step"):
        vf.stream(bert, [1, 2], 5)  # when called, not at the first token
    with pytest.raises(vf.ConfigError, match="has no init_state"):
        vf.generate(nn.Linear(3, 3), [1, 2], 5)  # type: ignore[arg-type]
    model = seq2seq()
    with pytest.raises(vf.ShapeError, match="a source is needed"):
        vf.generate(model, [1, 2], 5)
    with pytest.raises(vf.ConfigError, match="context: this model has an encoder"):
        vf.generate(model, [1, 2], 5, source=torch.ones(1, 3).long(), context=torch.zeros(1, 3, 24))
    _, state = vf.generate(model, [1, 2], 5, source=torch.ones(1, 3).long(), return_state=True)
    with pytest.raises(vf.ConfigError, match="source: the state has read it already"):
        vf.generate(model, [1, 2], 5, source=torch.ones(1, 3).long(), state=state)
    assert vf.generate(model, [1, 2], 5, state=state).shape == (5,)
    headless = vf.build(vf.override(gpt().spec, {"head": None}))
    with pytest.raises(vf.ConfigError, match="the model has no head"):
        vf.generate(headless, [1, 2], 5)
    with pytest.raises(vf.ShapeError, match=r"\[0, 31\)"):
        vf.generate(gpt(), [1, VOCAB], 5)
    _, state = vf.generate(gpt(), [1], 2, return_state=True)
    with pytest.raises(vf.ShapeError, match="batch of 1, this call has 2 rows"):
        vf.generate(gpt(), [[1], [2]], 2, state=state)
