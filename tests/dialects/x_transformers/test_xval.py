"""Numbers among tokens: errors, padding, ignored tokens, copies, compilation, weights."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.dialects.x_transformers import (
    Decoder,
    Encoder,
    TransformerWrapper,
    XValAutoregressiveWrapper,
    XValTransformerWrapper,
)
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SMALL: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
NUMBER = 3


def model(stack: type = Decoder, layers: dict[str, Any] | None = None, **keywords: Any) -> XValTransformerWrapper:
    torch.manual_seed(0)
    given = {"num_tokens": 9, "max_seq_len": 12, "numerical_token_id": NUMBER, **keywords}
    return XValTransformerWrapper(attn_layers=stack(**SMALL, **(layers or {})), **given)


def sample(batch: int = 2, length: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 9, (batch, length), generator=generator)
    ids[:, ::2] = NUMBER
    return ids, torch.randn(batch, length, generator=generator)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"numerical_token_idd": 3}, "numerical_token_id"),
        ({"numerical_token_id": 9}, "one of the 9 tokens"),
        ({"num_tokens": 0}, "must be positive"),
        ({"emb_dim": 8}, "no map from it"),
        ({"tie_embedding": True, "logits_dim": 7}, "leave logits_dim out"),
        ({"numerical_token_id": "3"}, "int is needed"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_keywords_that_are_needed() -> None:
    with pytest.raises(KeyError, match="numerical_token_id"):
        XValTransformerWrapper(num_tokens=9, max_seq_len=4, attn_layers=Decoder(**SMALL))


def test_options_of_the_objective_are_checked() -> None:
    with pytest.raises(KeywordError, match="ignore_index"):
        XValAutoregressiveWrapper(model(), ignore_index="none")
    wrapper = XValAutoregressiveWrapper(model())
    for options, named in (({"temperature": -1.0}, "temperature"), ({"filter_kwargs": {"kk": 1}}, "did you mean 'k'")):
        with pytest.raises(KeywordError, match=named):
            wrapper.generate(*sample(), 2, **options)


def test_calls_are_checked() -> None:
    ids, numbers = sample()
    with pytest.raises(InputError, match="one shape"):
        model()(ids, numbers[:, :3])
    with pytest.raises(KeywordError, match="mask"):
        model()(ids, numbers, maks=None)
    with pytest.raises(InputError, match="end at 12"):
        model()(torch.zeros(1, 13).long(), torch.zeros(1, 13))
    wrapper = XValAutoregressiveWrapper(model())
    with pytest.raises(InputError, match="two or more"):
        wrapper(ids[:, :1], numbers[:, :1])
    with pytest.raises(InputError, match="mask is of all 7"):
        wrapper(ids, numbers, mask=torch.ones(2, 5).bool())
    with pytest.raises(KeywordError, match="no argument"):
        wrapper.generate(ids, numbers, 2, mask=None)
    with pytest.raises(KeywordError, match="there is no filter 'topk'"):
        wrapper.generate(ids, numbers, 2, filter_logits_fn="topk")


def test_the_loss_is_for_causal_models_of_numbers() -> None:
    for net, named in (
        (model(Encoder), "layers that see it"),
        (TransformerWrapper(num_tokens=5, max_seq_len=4, attn_layers=Decoder(**SMALL)), "XValTransformerWrapper"),
    ):
        with pytest.raises(KeywordError, match=named):
            XValAutoregressiveWrapper(net)
    with pytest.raises(KeywordError, match="numerical_loss_weight"):
        XValAutoregressiveWrapper(model(), numerical_los_weight=1.0)


def test_ignored_tokens_and_padding_change_no_loss() -> None:
    wrapper = XValAutoregressiveWrapper(model(), ignore_index=-1, pad_value=0)
    ids, numbers = sample()
    mask = torch.arange(7) < torch.tensor([[4], [7]])
    expected = wrapper(ids, numbers, mask=mask)
    torch.testing.assert_close(wrapper(ids.masked_fill(~mask, -1), numbers.masked_fill(~mask, torch.nan)), expected)
    other = wrapper(ids.masked_fill(~mask, NUMBER), numbers.masked_fill(~mask, 1e3), mask=mask)
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("keywords", [{}, {"num_memory_tokens": 2}, {"layers": {"cross_attend": True}}])
def test_cached_generation_equals_uncached(keywords: dict[str, Any]) -> None:
    wrapper = XValAutoregressiveWrapper(model(**keywords)).double()
    ids, numbers = sample(length=3)
    streams = {"context": torch.randn(2, 5, 16).double()} if "layers" in keywords else {}
    made = []
    for cache in (True, False):
        torch.manual_seed(3)
        made.append(wrapper.generate(ids, numbers.double(), 6, cache_kv=cache, temperature=0.8, **streams))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(again: Any) -> None:
    wrapper = XValAutoregressiveWrapper(model(tie_embedding=True, num_memory_tokens=1))
    before, twin = wrapper(*sample()), again(wrapper)
    with torch.no_grad():
        for param in wrapper.parameters():
            param.zero_()
    torch.testing.assert_close(twin(*sample()), before, rtol=0, atol=0)


def test_compiles_whole() -> None:
    net = model()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(*sample()), net(*sample()), strict=True):
        torch.testing.assert_close(one, other)


def test_weights_and_specs_go_both_ways() -> None:
    for keywords in ({}, {"tie_embedding": True}):
        one, other = model(**keywords), model(**keywords)
        load_x_transformers(other, {name: tensor + 1 for name, tensor in to_x_transformers(one).items()})
        assert "to_numerical_output.0.bias" in to_x_transformers(other)
        assert ("to_logits.weight" in to_x_transformers(other)) == (not keywords)
        assert vf.from_yaml(vf.to_yaml(one.spec)) == one.spec


def test_going_on_from_a_cache() -> None:
    net = model().double()
    ids, numbers = sample()
    numbers = numbers.double()
    whole = net(ids, numbers)
    first, told = net(ids[:, :4], numbers[:, :4], return_intermediates=True)
    second, told = net(ids[:, :6], numbers[:, :6], cache=told, return_intermediates=True)
    third = net(ids, numbers, cache=told)
    for place in range(2):
        found = torch.cat((first[place], second[place], third[place]), 1)
        torch.testing.assert_close(found, whole[place], rtol=0, atol=1e-10)
