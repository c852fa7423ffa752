"""Several kinds of tokens at each place: errors, padding, causality, going on from a cache, copies, weights."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.dialects.x_transformers import AutoregressiveWrapper, Decoder, Encoder, MultiInputTransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SIZES = {"a": 5, "b": 3}


def model(stack: type = Decoder, **keywords: Any) -> MultiInputTransformerWrapper:
    torch.manual_seed(0)
    layers = stack(dim=16, depth=1, heads=2, attn_dim_head=8)
    return MultiInputTransformerWrapper(**{"num_tokens": SIZES, "max_seq_len": 9, "attn_layers": layers, **keywords})


def ids(length: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randint(0, size, (2, length), generator=generator) for name, size in SIZES.items()}


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"num_tokenss": {}}, "num_tokens"),
        ({"num_tokens": {}}, "at least one kind"),
        ({"num_tokens": {"a": 0}}, "num_tokens.a"),
        ({"num_tokens": 5}, "dict is needed"),
        ({"tie_embedding": True}, "has no keyword"),
        ({"memory_tokens_interspersed_every": 2}, "num_memory_tokens"),
        ({"emb_frac_gradient": 0.0}, r"\(0, 1\]"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_calls_are_checked() -> None:
    for x in ({"a": ids()["a"]}, {**ids(), "c": ids()["a"]}, ids()["a"]):
        with pytest.raises(InputError, match="a mapping of a, b"):
            model()(x)
    with pytest.raises(KeywordError, match="mask"):
        model()(ids(), maks=None)
    with pytest.raises(InputError, match="end at 9"):
        model()(ids(10))
    with pytest.raises(vf.ShapeError, match="'b'"):
        model()({"a": ids()["a"], "b": ids()["b"][:, :3]})
    with pytest.raises(KeywordError, match="TransformerWrapper"):
        AutoregressiveWrapper(model())


def test_no_answer_sees_the_future_of_any_kind() -> None:
    net = model()
    before = net(ids())
    for name in SIZES:
        changed = {**ids(), name: ids()[name].clone()}
        changed[name][:, 4:] = (changed[name][:, 4:] + 1) % SIZES[name]
        after = net(changed)
        for kind in SIZES:
            assert torch.equal(after[kind][:, :4], before[kind][:, :4])
            assert not torch.allclose(after[kind][:, 4:], before[kind][:, 4:])


def test_padding_changes_no_real_token() -> None:
    net = model(Encoder)
    mask = torch.arange(7) < 5
    other = {name: torch.where(mask, value, 0) for name, value in ids().items()}
    one, two = (net(x, mask=mask.expand(2, -1)) for x in (ids(), other))
    short = net({name: value[:, :5] for name, value in ids().items()})
    for name in SIZES:
        torch.testing.assert_close(one[name][:, :5], two[name][:, :5], rtol=0, atol=0)
        torch.testing.assert_close(one[name][:, :5], short[name])


def test_going_on_from_a_cache() -> None:
    net = model().double()
    whole = net(ids())
    first, told = net({name: x[:, :4] for name, x in ids().items()}, return_intermediates=True)
    second = net(ids(), cache=told)
    for name in SIZES:
        torch.testing.assert_close(torch.cat((first[name], second[name]), 1), whole[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_and_weights(again: Any) -> None:
    net = model(emb_dim=8, num_memory_tokens=2)
    before, twin, tensors = net(ids()), again(net), to_x_transformers(net)
    assert {"embeds.a_embed.weight", "embeds.b_embed.weight", "to_logits.a.weight", "to_logits.b.weight"} < set(tensors)
    with torch.no_grad():
        for param in net.parameters():
            param.zero_()
    torch.testing.assert_close(twin(ids())["b"], before["b"], rtol=0, atol=0)
    load_x_transformers(net, tensors)
    torch.testing.assert_close(net(ids())["b"], before["b"])
    assert vf.from_yaml(vf.to_yaml(net.spec)) == net.spec


def test_compiles_whole() -> None:
    net = model()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids())["b"], net(ids())["b"])
