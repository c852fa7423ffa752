"""Models of features: errors, padding, rollouts, copies, compilation, weights."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from variform.dialects.x_transformers import (
    ContinuousAutoregressiveWrapper,
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    TransformerWrapper,
)
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4}


def model(stack: type = Decoder, layers: dict[str, Any] | None = None, **keywords: Any) -> ContinuousTransformerWrapper:
    torch.manual_seed(0)
    given = {"max_seq_len": 12, "dim_in": 3, "dim_out": 3, **keywords}
    return ContinuousTransformerWrapper(attn_layers=stack(**SMALL, **(layers or {})), **given)


def features(batch: int = 2, length: int = 7, width: int = 3) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"dim_inn": 3}, "dim_in"),
        ({"project_in": nn.Linear(3, 16)}, "a size, or a module"),
        ({"project_out": nn.Linear(16, 3)}, "a size, or a module"),
        ({"dim_in": 0}, "must be positive"),
        ({"num_memory_tokens": -1}, "must not be negative"),
        ({"max_seq_len": -1}, "must be positive"),
        ({"post_emb_norm": 1}, "bool is needed"),
        ({"scaled_sinu_pos_emb": True, "max_seq_len": None}, "no absolute positions"),
        ({"max_mem_len": -1}, "must not be negative"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_calls_are_checked() -> None:
    net = model(Encoder)
    for call, named in (
        ({"maks": None}, "mask"),
        ({"mask": torch.ones(2, 7).bool(), "lens": torch.tensor([7, 7])}, "exclude one another"),
        ({"context": features(width=16)}, "cross_attend"),
        ({"prepend_mask": torch.ones(2, 1).bool()}, "without prepend_embeds"),
        ({"cache": object()}, "return_intermediates=True"),
        ({"rotary_pos_emb": features()}, "is a pair, angles"),
    ):
        with pytest.raises((KeywordError, InputError), match=named):
            net(features(), **call)
    with pytest.raises(InputError, match="end at 12"):
        net(features(length=13))
    with pytest.raises(vf.ShapeError, match=r"\[batch, length, 3\]"):
        net(features(width=4))


def test_the_loss_is_for_causal_models_of_features() -> None:
    for net, named in (
        (model(Encoder), "layers that see them"),
        (model(average_pool_embed=True), "once a row"),
        (TransformerWrapper(num_tokens=5, max_seq_len=4, attn_layers=Decoder(**SMALL)), "ContinuousTransformerWrapper"),
    ):
        with pytest.raises(KeywordError, match=named):
            ContinuousAutoregressiveWrapper(net)
    with pytest.raises(KeywordError, match="use_l1_loss"):
        ContinuousAutoregressiveWrapper(model(), use_l1_los=True)
    with pytest.raises(KeywordError, match="another loss"):
        ContinuousAutoregressiveWrapper(model(probabilistic=True), use_l1_loss=True)
    reduced = ContinuousAutoregressiveWrapper(model(), loss_fn=nn.MSELoss())
    with pytest.raises(InputError, match="must not be reduced"):
        reduced(features(), lens=torch.tensor([7, 4]))
    wrapper = ContinuousAutoregressiveWrapper(model())
    with pytest.raises(InputError, match="have no targets"):
        wrapper(features(), prepend_embeds=features(width=16))
    with pytest.raises(KeywordError, match="no argument 'msak'"):
        wrapper.generate(features(), 2, msak=None)


@pytest.mark.parametrize("layers", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
@pytest.mark.parametrize("probabilistic", [False, True])
def test_rollouts_with_lengths_are_those_of_each_row_alone(layers: dict[str, Any], probabilistic: bool) -> None:
    wrapper = ContinuousAutoregressiveWrapper(model(layers=layers, probabilistic=probabilistic).double())
    x, lens = features(3, 8).double(), torch.tensor([3, 2, 3])  # a row of three has one place for two steps
    if probabilistic:
        torch.manual_seed(0)
        assert wrapper(x, rollout_steps=2, lens=lens).requires_grad
        return
    alone = [wrapper(x[row : row + 1, :3], rollout_steps=2) for row in (0, 2)]
    found = wrapper(x, rollout_steps=2, lens=lens)
    torch.testing.assert_close(found, torch.stack(alone).mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        wrapper(x, rollout_steps=2, mask=torch.arange(8) < lens.unsqueeze(1)), found, rtol=0, atol=1e-12
    )
    with pytest.raises(InputError, match="no row has more than 4"):
        wrapper(x, rollout_steps=4, lens=lens)


def test_rollouts_take_the_context_of_the_rows_that_count() -> None:
    wrapper = ContinuousAutoregressiveWrapper(model(layers={"cross_attend": True}).double())
    x, context = features(2, 3).double(), features(2, 5, 16).double()
    found = wrapper(x, rollout_steps=2, lens=torch.tensor([2, 3]), context=context)
    torch.testing.assert_close(found, wrapper(x[1:], rollout_steps=2, context=context[1:]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("equal", [False, True])
def test_padding_changes_no_loss(equal: bool) -> None:
    wrapper = ContinuousAutoregressiveWrapper(model(), equal_loss_weight_batch=equal)
    x, lens = features(), torch.tensor([7, 4])
    other = torch.where((torch.arange(7) < lens.unsqueeze(1)).unsqueeze(-1), x, 1e3)
    assert torch.equal(wrapper(x, lens=lens), wrapper(other, lens=lens))


def test_pooling_leaves_padding_out_however_it_is_told() -> None:
    net = model(Encoder, average_pool_embed=True)
    lens = torch.tensor([7, 4])
    mask = torch.arange(7) < lens.unsqueeze(1)
    torch.testing.assert_close(net(features(), lens=lens), net(features(), mask=mask))
    torch.testing.assert_close(net(features(), lens=lens)[1], net(features()[1:, :4])[0])


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"probabilistic": True},
        {"num_memory_tokens": 2},
        {"use_abs_pos_emb": False, "layers": {"rotary_pos_emb": True}},
        {"layers": {"cross_attend": True}},
        {"dim_in": None, "dim_out": None, "project_in": nn.Linear(3, 16), "project_out": nn.Linear(16, 3)},
    ],
)
def test_cached_generation_equals_uncached(keywords: dict[str, Any]) -> None:
    wrapper = ContinuousAutoregressiveWrapper(model(**keywords)).double()
    streams = {"context": features(2, 5, 16).double()} if wrapper.net.attn_layers.cross_attend else {}
    made = []
    for cache in (True, False):
        torch.manual_seed(3)
        made.append(wrapper.generate(features(length=3).double(), 6, cache_kv=cache, **streams))
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-10)
    assert made[0].shape == (2, 6, 3)
    assert wrapper.training


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("keywords", [{}, {"probabilistic": True, "num_memory_tokens": 2}])
def test_copies_are_equal_and_independent(keywords: dict[str, Any], again: Any) -> None:
    wrapper = ContinuousAutoregressiveWrapper(model(**keywords))
    before, twin = wrapper(features()), again(wrapper)
    torch.testing.assert_close(twin(features()), before, rtol=0, atol=0)
    with torch.no_grad():
        for param in wrapper.parameters():
            param.zero_()
    torch.testing.assert_close(twin(features()), before, rtol=0, atol=0)


def test_compiles_whole() -> None:
    wrapper = ContinuousAutoregressiveWrapper(model(probabilistic=True))
    compiled = torch.compile(wrapper, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features()), wrapper(features()))


def test_weights_go_both_ways() -> None:
    ends = {"dim_in": None, "dim_out": None, "project_in": nn.Linear(3, 16), "project_out": nn.Linear(16, 3)}
    for keywords in ({}, {"average_pool_embed": True}, ends):
        one, other = model(**keywords), model(**copy.deepcopy(keywords))
        tensors = {name: tensor + 1 for name, tensor in to_x_transformers(one).items()}
        load_x_transformers(other, tensors)
        assert torch.equal(to_x_transformers(other)["project_out.weight"], tensors["project_out.weight"])
        with pytest.raises(vf.ConfigError, match="missing in the checkpoint"):
            load_x_transformers(other, {name: t for name, t in tensors.items() if "project_in" not in name})


def test_a_model_is_its_spec() -> None:
    net = model(post_emb_norm=True, num_memory_tokens=2)
    assert vf.from_yaml(vf.to_yaml(net.spec)) == net.spec
    assert [n for n, _ in vf.build(net.spec).named_parameters()] == [n for n, _ in net.native.named_parameters()]


def test_memory_stands_before_features_in_front() -> None:
    net = model(num_memory_tokens=2)
    x, front = features(), features(2, 3, 16)
    out = net(x, prepend_embeds=front)
    assert out.shape == (2, 10, 3)
    with torch.no_grad():
        net.native.stacks[0].tokens.copy_(torch.randn(2, 16))
    assert (net(x, prepend_embeds=front)[:, 0] - out[:, 0]).abs().max() > 1e-3  # all see the memory, causal as they are


def test_memories_are_taken_as_they_are_returned() -> None:
    net = model(max_mem_len=4, layers={"rotary_pos_emb": True}, max_seq_len=None)
    x = features(length=8)
    _, mems = net(x[:, :4], return_mems=True)
    second = net(x[:, 4:], mems=mems)
    assert (second - net(x[:, 4:])).abs().max() > 1e-3
    one = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(net(x[:, 4:], mems=mems, mem_masks=[one, one]), second)
    none = torch.zeros(2, 4, dtype=torch.bool)
    torch.testing.assert_close(net(x[:, 4:], mems=mems, mem_masks=[none, none]), net(x[:, 4:]))
    mixed = net(x[:, 4:], mems=mems, mem_masks=[one, none])
    assert min((mixed - other).abs().max() for other in (second, net(x[:, 4:]))) > 1e-6
    with pytest.raises(InputError, match="2 self-attentions, and 1 mem_masks"):
        net(x[:, 4:], mems=mems, mem_masks=[one])


def test_masks_of_memories_need_memories() -> None:
    net, some = model(max_mem_len=4), torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(InputError, match="without mems"):
        net(features(2, 4), mem_masks=[some])
    _, told = net(features(2, 4), return_intermediates=True)
    with pytest.raises(InputError, match="without memories"):
        net(features(2, 5), cache=told, mem_masks=[some])


@pytest.mark.parametrize("name", ["attn_mask", "attn_bias"])
def test_masks_of_heads_are_in_upstreams_order(name: str) -> None:
    net = model(layers={"attn_kv_heads": 2}, max_seq_len=None, dim_in=None, dim_out=None)
    x, given = features(2, 5, 16), torch.randn(4, 5, 5)
    given = given > 0 if name == "attn_mask" else given
    found = net(x, return_embeddings=True, **{name: given})
    torch.testing.assert_close(found, net.attn_layers(x, **{name: given}))


@pytest.mark.parametrize("keywords", [{}, {"probabilistic": True}, {"num_memory_tokens": 2}])
@pytest.mark.parametrize("alone", [False, True])
def test_going_on_from_a_cache(keywords: dict[str, Any], alone: bool) -> None:
    net = model(**keywords).double()
    x, more = features().double(), features(width=16).double()
    front = features(2, 2, 16).double()
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    whole = net(x, sum_embeds=more, mask=mask, prepend_embeds=front)
    first, told = net(
        x[:, :4], sum_embeds=more[:, :4], mask=mask[:, :4], prepend_embeds=front, return_intermediates=True
    )
    new = x[:, 4:] if alone else x
    parts = [first]
    second, told = net(
        new[:, :-1],
        sum_embeds=more[:, 4:-1] if alone else more[:, :-1],
        mask=mask[:, :-1],
        cache=told,
        input_not_include_cache=alone,
        return_intermediates=True,
    )
    parts.append(second)
    parts.append(
        net(
            new[:, -1:] if alone else x,
            sum_embeds=more[:, -1:] if alone else more,
            mask=mask,
            cache=told,
            input_not_include_cache=alone,
        )
    )
    real = torch.nn.functional.pad(mask, (2, 0), value=True)
    torch.testing.assert_close(torch.cat(parts, -2)[..., real, :], whole[..., real, :], rtol=0, atol=1e-10)
    with pytest.raises(InputError, match="without memories"):
        net(x, cache=told, return_mems=True)
