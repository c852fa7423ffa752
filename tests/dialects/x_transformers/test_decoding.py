"""`generate` and `beam_search` of the wrapper: long texts, amateurs, beams, ends, and inputs that make no sense."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dialects.x_transformers.test_models import ids, language
from variform.dialects.x_transformers import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper
from variform.dialects.x_transformers.autoregressive_wrapper import contrastive_decode_fn
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.ops.masks import Window

ROTARY = {"rotary_pos_emb": True}


def wrapper(options: dict[str, Any] | None = None, seed: int = 0, **model: Any) -> AutoregressiveWrapper:
    torch.manual_seed(seed)
    made = AutoregressiveWrapper(language(options=options, **model), pad_value=7).double()
    with torch.no_grad():
        for param in made.parameters():
            param += 0.3 * torch.randn_like(param)
    return made.eval()


def rescored(model: AutoregressiveWrapper, prompt: Tensor, tokens: Tensor) -> Tensor:
    whole = torch.cat((prompt.expand(len(tokens), -1), tokens), 1)
    chances = model.net(whole)[:, len(prompt) - 1 : -1].log_softmax(-1)
    return chances.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(1)


@pytest.mark.parametrize("options", [ROTARY, {"alibi_pos_bias": True, "disable_abs_pos_emb": True}])
def test_beyond_the_length_every_layer_attends_to_the_last_tokens(options: dict[str, Any]) -> None:
    model = wrapper(options)  # of 9 tokens
    prompt = ids(2, 4)
    found = model.generate(prompt, 17, temperature=0.0)
    assert torch.equal(model.generate(prompt, 17, temperature=0.0, cache_kv=False), found)
    whole = prompt
    for _ in range(17):
        whole = torch.cat((whole, model.native(whole, mask=Window(8))[:, -1:].argmax(-1)), 1)
    assert torch.equal(found, whole[:, 4:])
    free = model.generate(prompt, 17, temperature=0.0, restrict_to_max_seq_len=False)
    for cache_kv in (True, False):
        again = model.generate(prompt, 17, temperature=0.0, restrict_to_max_seq_len=False, cache_kv=cache_kv)
        assert torch.equal(again, free)
    assert torch.equal(free[:, :6], found[:, :6])


def test_beyond_the_length_of_layers_that_attend_to_a_context_alone() -> None:
    model, context = wrapper({**ROTARY, "cross_attend": True, "only_cross": True}), torch.randn(2, 5, 16).double()
    prompt = ids(2, 4)
    found = model.generate(prompt, 17, temperature=0.0, context=context)
    assert torch.equal(model.generate(prompt, 17, temperature=0.0, context=context, cache_kv=False), found)


def test_with_absolute_positions_the_last_tokens_are_read_again() -> None:
    model, prompts = wrapper(), [ids(1, 4)[0], ids(1, 11)[0], ids(1, 1)[0]]
    found = model.generate(prompts, 12, temperature=0.0)
    assert torch.equal(model.generate(prompts, 12, temperature=0.0, cache_kv=False), found)
    for row, prompt in zip(found, prompts, strict=True):
        whole = prompt.unsqueeze(0)
        for _ in range(12):
            whole = torch.cat((whole, model.net(whole[:, -9:])[:, -1:].argmax(-1)), 1)
        assert torch.equal(row, whole[0, len(prompt) :])
    with pytest.raises(InputError, match="do not fit the 9 absolute positions"):
        model.generate(prompts, 12, restrict_to_max_seq_len=False)


def test_beams_have_the_scores_of_what_is_returned() -> None:
    model, prompts = wrapper(ROTARY), [ids(1, 4)[0], ids(1, 2)[0]]
    for options in ({}, {"stochastic": True, "temperature": 1.3, "filter_logits_fn": "top_k"}):
        tokens, scores = model.beam_search(prompts, 4, 3, return_beams_and_scores=True, **options)
        assert tokens.shape == (3, 2, 4)
        assert scores.shape == (3, 2)
        for row, prompt in enumerate(prompts):
            torch.testing.assert_close(scores[:, row], rescored(model, prompt, tokens[:, row]))
    best = model.beam_search(prompts, 4, 3)
    assert torch.equal(best, model.beam_search(prompts, 4, 3, cache_kv=False))
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    assert torch.equal(model.beam_search(padded, 4, 3, prompt_lens=torch.tensor([4, 2])), best)
    tokens, scores = model.beam_search(prompts[1], 4, 3, return_beams_and_scores=True)
    assert torch.equal(tokens[0], best[1])
    assert scores.shape == (3,)


def test_an_amateur_of_either_kind() -> None:
    expert, first, second = wrapper(ROTARY), wrapper(ROTARY, 1), wrapper({"depth": 1}, 2)
    prompt = ids(2, 3)
    for amateur, keywords in (
        (first, {"alpha": 0.2}),
        (first.net, ({"alpha": 0.2, "beta": 0.5},)),
        ((first, second), ({"beta": 0.9}, {"alpha": 0.3})),
    ):
        call: dict[str, Any] = {"amateur_model": amateur, "contrastive_decode_kwargs": keywords, "temperature": 0.0}
        found = expert.generate(prompt, 5, **call)
        assert torch.equal(expert.generate(prompt, 5, cache_kv=False, **call), found)
        several = amateur if isinstance(amateur, tuple) else (amateur,)
        each = keywords if isinstance(keywords, tuple) else (keywords,)
        whole = prompt
        for _ in range(5):
            logits = expert.net(whole)[:, -1]
            for model, options in zip(several, each, strict=True):
                logits = contrastive_decode_fn(logits, getattr(model, "net", model)(whole)[:, -1], **options)
            whole = torch.cat((whole, logits.argmax(-1, keepdim=True)), 1)
        assert torch.equal(found, whole[:, 3:])


def test_an_amateur_whose_layers_run_once() -> None:
    """How often layers run is the looped expert's matter."""
    expert, amateur = wrapper({"pre_and_post_norm": True}, looped=True), wrapper()
    prompt = ids(1, 3)
    for steps in ({}, {"looped_steps": 2}):
        call: dict[str, Any] = {"amateur_model": amateur, "temperature": 0.0, **steps}
        found = expert.generate(prompt, 4, **call)
        assert torch.equal(expert.generate(prompt, 4, cache_kv=False, **call), found)
        whole = prompt
        for _ in range(4):
            logits = expert.net(whole, looped_inference=True, **steps)[:, -1]
            logits = contrastive_decode_fn(logits, amateur.net(whole)[:, -1])
            whole = torch.cat((whole, logits.argmax(-1, keepdim=True)), 1)
        assert torch.equal(found, whole[:, 3:])


def test_an_end_inside_the_prompt_does_not_count() -> None:
    model = wrapper(ROTARY)
    prompt = ids(1, 4)
    free = model.generate(prompt, 4, temperature=0.0)
    end = next(token for token in prompt[0].tolist() if token not in free)
    assert torch.equal(model.generate(prompt, 4, temperature=0.0, eos_token=end), free)
    beams = model.beam_search(prompt, 4)
    if end not in beams:
        assert torch.equal(model.beam_search(prompt, 4, eos_token=end), beams)


def test_the_state_that_has_read_everything() -> None:
    model, prompt = wrapper(ROTARY), ids(2, 3)
    tokens, state = model.generate(prompt, 4, temperature=0.0, return_intermediates=True)
    more = ids(2, 1)
    logits, _ = model.native(more, state=state)
    torch.testing.assert_close(logits, model.net(torch.cat((prompt, tokens, more), 1))[:, -1:])
    assert model.generate(prompt, 4, return_intermediates=True, cache_kv=False)[1] is None


@pytest.mark.parametrize(
    ("layers", "model"),
    [
        ({}, {"num_memory_tokens": 2}),
        (ROTARY, {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 2}),
        ({"shift_tokens": 1}, {}),
        ({"shift_tokens": (1, 0, 2, 0), **ROTARY}, {"num_memory_tokens": 2}),
        ({}, {"scaled_sinu_pos_emb": True}),
        ({"attn_data_dependent_alibi": True}, {"use_abs_pos_emb": False}),
        ({"attn_num_mem_kv": 2, "attn_max_attend_past": 2}, {}),
    ],
    ids=lambda given: "-".join(given) or "plain",
)
def test_rows_of_unequal_length_with_added_and_shifted_tokens(layers: dict[str, Any], model: dict[str, Any]) -> None:
    made, prompts = wrapper(layers, **model), [ids(1, 4)[0], ids(1, 1)[0], ids(1, 3)[0]]
    together = made.generate(prompts, 5, temperature=0.0)
    assert torch.equal(made.generate(prompts, 5, temperature=0.0, cache_kv=False), together)
    beams = made.beam_search(prompts, 4, 3)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row], made.generate(prompt, 5, temperature=0.0))
        assert torch.equal(beams[row], made.beam_search(prompt, 4, 3, cache_kv=False))
        whole = prompt.unsqueeze(0)
        for _ in range(5):
            whole = torch.cat((whole, made.net(whole)[:, -1:].argmax(-1)), 1)
        assert torch.equal(together[row], whole[0, len(prompt) :])


def test_what_stands_in_front_of_the_prompts() -> None:
    model, prompts = wrapper(ROTARY), [ids(1, 4)[0], ids(1, 2)[0]]
    front = torch.randn(2, 3, 16, dtype=torch.float64)
    kept = torch.tensor([[True, True, True], [False, True, True]])
    given: dict[str, Any] = {"prepend_embeds": front, "prepend_mask": kept, "temperature": 0.0}
    found = model.generate(prompts, 5, **given)
    assert torch.equal(model.generate(prompts, 5, cache_kv=False, **given), found)
    for row, prompt in enumerate(prompts):
        whole = prompt.unsqueeze(0)
        own = {"prepend_embeds": front[row : row + 1], "prepend_mask": kept[row : row + 1]}
        for _ in range(5):
            whole = torch.cat((whole, model.net(whole, **own)[:, -1:].argmax(-1)), 1)
        assert torch.equal(found[row], whole[0, len(prompt) :])
    assert not torch.equal(found, model.generate(prompts, 5, temperature=0.0))
    assert model.beam_search(prompts, 3, prepend_embeds=front).shape == (2, 3)


def test_layers_that_run_several_times() -> None:
    looped = wrapper({**ROTARY, "pre_and_post_norm": True}, looped=True, max_looped_steps=3)
    prompt = ids(2, 3)
    for options in ({}, {"looped_exit_prob_threshold": 0.3}, {"looped_steps": 2}):
        fast, slow = (looped.generate(prompt, 6, temperature=0.0, cache_kv=c, **options) for c in (True, False))
        assert torch.equal(fast, slow)
        asked = {"looped_inference": "looped_steps" not in options, **options}
        whole = prompt
        for _ in range(6):
            whole = torch.cat((whole, looped.net(whole, **asked)[:, -1:].argmax(-1)), 1)
        assert torch.equal(fast, whole[:, 3:])
    recycled = wrapper(ROTARY, recycling=True)
    found = recycled.generate(prompt, 6, temperature=0.0, recycle_steps=3)
    whole = prompt
    for _ in range(6):
        whole = torch.cat((whole, recycled.net(whole, recycle_steps=3)[:, -1:].argmax(-1)), 1)
    assert torch.equal(found, whole[:, 3:])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"temperature": -1}, KeywordError, "at least 0"),
        ({"temperature": float("nan")}, KeywordError, "at least 0"),
        ({"filter_logits_fn": "topp"}, KeywordError, "did you mean 'top_p'"),
        ({"seq_len": 0}, KeywordError, "seq_len"),
        ({"prompts": ids(1, 3)[:, :0]}, InputError, "at least one token"),
        ({"prompts": [ids(1, 3)[0], ids(1, 3)[0, :0]]}, InputError, "at least one token"),
        ({"prompts": torch.tensor([[99]])}, InputError, r"lie in \[0, 11\)"),
        ({"prompts": torch.rand(1, 3)}, InputError, "integers"),
        ({"eos_token": 99}, KeywordError, "eos_token"),
        ({"amateur_model": torch.nn.Linear(2, 2)}, KeywordError, "an amateur is a TransformerWrapper"),
        ({"amateur_model": language(), "contrastive_decode_kwargs": {"bet": 1.0}}, KeywordError, "did you mean 'beta'"),
        ({"amateur_model": language(), "contrastive_decode_kwargs": {"alpha": 0.0}}, KeywordError, r"\(0, 1\]"),
        ({"amateur_model": language(), "contrastive_decode_kwargs": ({}, {})}, KeywordError, "one for each"),
        ({"amateur_model": language(num_tokens=12)}, KeywordError, "one vocabulary"),
        ({"return_intermediate": True}, KeywordError, "return_intermediate"),
        ({"contex": None}, KeywordError, "did you mean 'context'"),
        ({"looped_exit_prob_threshold": 0.5}, InputError, "looped_exit_prob_threshold has no effect"),
    ],
)
def test_what_makes_no_sense(call: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrapper().generate(**{"prompts": ids(1, 3), "seq_len": 2, **call})


@pytest.mark.parametrize("call", [{"filter_logits_fn": "top_k"}, {"temperature": 0.5}, {"beams": 0}])
def test_beams_refuse_what_has_no_effect(call: dict[str, Any]) -> None:
    with pytest.raises(KeywordError):
        wrapper().beam_search(ids(1, 3), 2, **call)


def test_an_encoder_is_no_language_model() -> None:
    net = TransformerWrapper(num_tokens=11, max_seq_len=9, attn_layers=Encoder(dim=16, depth=1, heads=2))
    with pytest.raises(KeywordError, match="Decoder"):
        AutoregressiveWrapper(net)


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
def test_features_in_front_are_read_once(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **options)
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=11, max_seq_len=12, attn_layers=layers)).double()
    prompt, front = torch.randint(0, 11, (3, 4)), torch.randn(3, 2, 16, dtype=torch.float64)
    seen = torch.tensor([[True, True], [False, True], [False, False]])
    wanted = prompt
    for _ in range(6):
        logits = model.net(wanted, prepend_embeds=front, prepend_mask=seen)[:, -1]
        wanted = torch.cat((wanted, logits.argmax(-1, keepdim=True)), 1)
    for cache in (True, False):
        made = model.generate(prompt, 6, temperature=0.0, cache_kv=cache, prepend_embeds=front, prepend_mask=seen)
        assert torch.equal(made, wanted[:, 4:])
    lengths = torch.tensor([4, 2, 3])
    ragged = model.generate(prompt, 6, temperature=0.0, prepend_embeds=front, prompt_lens=lengths)
    for row, length in enumerate(lengths.tolist()):
        at = slice(row, row + 1)
        alone = model.generate(prompt[at, :length], 6, temperature=0.0, prepend_embeds=front[at], cache_kv=False)
        assert torch.equal(ragged[at], alone)
    beams = model.beam_search(prompt, 4, beams=3, prepend_embeds=front)
    rows = [model.beam_search(prompt[i : i + 1], 4, beams=3, prepend_embeds=front[i : i + 1]) for i in range(3)]
    assert torch.equal(beams, torch.cat(rows))
