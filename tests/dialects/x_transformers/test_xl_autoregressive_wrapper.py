"""Texts in segments: right where upstream is not, rows alone, copies, mistakes."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dialects.x_transformers.test_models import ids, language
from variform.dialects.x_transformers import Encoder, TransformerWrapper, XLAutoregressiveWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.xl_autoregressive_wrapper import EpisodicMemoryWrapper
from variform.ops.masks import Dense
from variform.parts.memories import Memories
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

ROTARY = {"rotary_pos_emb": True}
LEARNS: dict[str, Any] = {"tbptt_steps": 2, "ttt_module_paths": ("attn_layers.layers.1.1",), "ttt_lr": 0.5}


def wrapper(
    options: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **keywords: Any
) -> XLAutoregressiveWrapper:
    torch.manual_seed(0)
    net = language(options=options, max_seq_len=4, max_mem_len=6, **(model or {}))
    with torch.no_grad():
        for param in net.parameters():
            param += 0.3 * torch.randn_like(param)
    return XLAutoregressiveWrapper(net.double(), **keywords).double()


def remembered(length: int) -> Tensor:
    places = torch.arange(length)
    begins = places // 4 * 4 - 6
    return (places <= places.unsqueeze(1)) & (places >= begins.unsqueeze(1))


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 11])
def test_generation_over_the_ends_of_segments(length: int) -> None:
    model, prompt = wrapper(ROTARY), ids(2, length)
    whole = prompt
    for _ in range(9):
        mask = Dense(remembered(whole.shape[1]))
        whole = torch.cat((whole, model.native.eval()(whole, mask=mask)[:, -1:].argmax(-1)), 1)
    assert torch.equal(model.generate(prompt, 9, temperature=0.0), whole[:, length:])


def test_memory_tokens_are_remembered_too() -> None:
    model, prompt = wrapper(ROTARY, {"num_memory_tokens": 2}).eval(), ids(2, 3)
    whole = prompt
    for _ in range(9):
        memories = Memories(6)
        for segment in whole.split(4, 1):
            logits, memories = model.native(segment, memories=memories)
        whole = torch.cat((whole, logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(model.generate(prompt, 9, temperature=0.0), whole[:, 3:])


def test_rows_of_unequal_length_give_what_each_gives_alone() -> None:
    rows = [ids(1, n)[0] for n in (3, 9, 4)]
    for keywords in ({}, LEARNS, {"episodic_mem_len": 2}):
        model = wrapper(**keywords)
        together = model.generate(rows, 7, temperature=0.0)
        for row, prompt in zip(together, rows, strict=True):
            assert torch.equal(row, model.generate(prompt, 7, temperature=0.0))


def test_the_open_segment_of_a_prompt_is_no_memory_of_itself() -> None:
    model, prompt = wrapper(ROTARY, **LEARNS), ids(2, 7)
    fast = model.fast
    assert fast is not None
    fast.lr = fast.decay = 0.0  # steps that change nothing
    plain = wrapper(ROTARY).generate(prompt, 6, temperature=0.0)
    assert torch.equal(model.generate(prompt, 6, temperature=0.0), plain)


def test_attention_may_learn_too_and_rows_do_not_see_one_another() -> None:
    keywords = {**LEARNS, "ttt_module_paths": ("attn_layers.layers.2.1", "attn_layers.layers.1.1")}
    model, x = wrapper(ROTARY, **keywords).train(), ids(3, 13)
    together = model(x)
    alone = torch.stack([model(row.unsqueeze(0)) for row in x]).mean()
    torch.testing.assert_close(together, alone)
    assert (together - wrapper(ROTARY)(x)).abs() > 1e-4
    assert model.generate(x, 3, temperature=0.0).shape == (3, 3)
    assert model.training


def test_episodic_memories_go_with_segments_and_leave_the_model_alone() -> None:
    net = language(options=ROTARY, max_seq_len=4, max_mem_len=20).double().eval()
    wrapped, x = EpisodicMemoryWrapper(net, 3), ids(2, 9)
    with wrapped.remembering():
        whole = net.native(x)
        first, memories = net.native(x[:, :5], memories=Memories(20))
        second, _ = net.native(x[:, 5:], memories=memories)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    assert (net.native(x) - whole).abs().max() > 1e-5
    torch.testing.assert_close(wrapped(x[:, :4]), whole[:, :4])


@pytest.mark.parametrize("keywords", [{}, LEARNS, {"episodic_mem_len": 2}])
def test_copies_and_checkpoints(keywords: dict[str, Any]) -> None:
    model, x = wrapper(ROTARY, **keywords).eval(), ids(2, 11)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), expected)
        with torch.no_grad():
            for param in other.parameters():
                param.zero_()
        torch.testing.assert_close(model(x), expected)
    written = to_x_transformers(model)
    fresh = wrapper(ROTARY, **keywords)
    with torch.no_grad():
        for param in fresh.parameters():
            param.zero_()
    load_x_transformers(fresh, written)
    torch.testing.assert_close(fresh(x), expected)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"ttt_module_path": ()}, "did you mean 'ttt_module_paths'"),
        ({"tbptt_steps": 0}, "at least 1"),
        ({"ttt_module_paths": ("attn_layers.layers.1.1",)}, "more than one is needed"),
        ({"tbptt_steps": 2, "ttt_module_paths": ("attn_layers.layers.9.1",)}, "no module at this path"),
        (
            {"tbptt_steps": 2, "ttt_module_paths": (("attn_layers.layers.0.1", "attn_layers.layers.1.1"),)},
            "same shapes",
        ),
        ({"tbptt_steps": 2, "ttt_low_rank_paths": (("attn_layers.layers.1.1.ff.2", 99),)}, "rank must lie"),
        ({"ttt_next_latent_loss": True}, "no effect without modules that learn"),
        ({"ttt_muon_lr": 0.3}, "no effect without ttt_use_muon"),
    ],
)
def test_mistakes(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        wrapper(**keywords)


def test_inputs_that_make_no_sense() -> None:
    model = wrapper()
    with pytest.raises(InputError, match="two tokens"):
        model(ids(2, 1))
    with pytest.raises(InputError, match="at least one token"):
        model.generate(ids(1, 3)[:, :0], 2)
    with pytest.raises(KeywordError, match="at least 0"):
        model.generate(ids(1, 3), 2, temperature=-1.0)
    with pytest.raises(KeywordError, match="ttt_module_paths"):
        model(ids(), ttt_recurrent_steps=2)
    with pytest.raises(KeywordError, match="did you mean 'context'"):
        model(ids(), contex=None)
    net = TransformerWrapper(num_tokens=11, max_seq_len=9, attn_layers=Encoder(dim=16, depth=1, heads=2))
    with pytest.raises(KeywordError, match="sees it"):
        XLAutoregressiveWrapper(net)
