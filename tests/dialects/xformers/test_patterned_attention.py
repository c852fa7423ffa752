"""Global and random attention of the dialect, and the library's own patterns under their native names."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.xformers.components import MultiHeadDispatch
from variform.dialects.xformers.components.attention import (
    ATTENTION_REGISTRY,
    GlobalAttention,
    RandomAttention,
    build_attention,
)
from variform.errors import ConfigError, ShapeError

QUERIES = torch.tensor([False, True, False, False, True, False, False, False])


def seen(attention: Any, length: int, **masks: Any) -> Tensor:
    """Which key has a weight for which query; one head."""
    q, k = torch.randn(2, 1, length, 4)
    v = torch.eye(length).unsqueeze(0)
    return attention.eval()(q, k, v, **masks)[0] > 0


def training_pairs(attention: Any, length: int) -> Tensor:
    q, k = torch.randn(2, 1, length, 4)
    return attention.train()(q, k, torch.eye(length).unsqueeze(0))[0] > 0


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 8)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [8, 5])
def test_global_sees_its_rows_and_columns(shape: tuple[int, ...], causal: bool, length: int) -> None:
    config = {"name": "global", "dropout": 0.0, "attention_query_mask": QUERIES.view(shape), "causal": causal}
    wanted = (QUERIES[:, None] | QUERIES)[:length, :length]
    attention = build_attention(config)
    assert isinstance(attention, GlobalAttention)
    assert seen(attention, length).equal(wanted.tril() if causal else wanted)
    assert attention.causal == causal


def test_a_query_that_sees_no_global_token_gets_zeros() -> None:
    attention = GlobalAttention(0.0, QUERIES, causal=True)
    x = torch.randn(2, 8, 4)
    out = attention(x, x, x)
    assert not out[:, 0].any()
    assert out[:, 1:].abs().sum(-1).all()


def test_global_masks_that_do_not_fit_are_refused() -> None:
    attention = GlobalAttention(0.0, QUERIES)
    x = torch.randn(2, 9, 4)
    with pytest.raises(AssertionError, match="8 tokens"):
        attention(x, x, x)
    with pytest.raises(ShapeError):
        MultiHeadDispatch(dim_model=4, num_heads=1, attention=attention)(x)
    for bad in (QUERIES.float(), QUERIES.view(2, 4), QUERIES[:0], [True], None):
        with pytest.raises(ConfigError, match="attention_query_mask"):
            GlobalAttention(0.0, bad)  # type: ignore[arg-type]
    for missing in ({"dropout": 0.0}, {"attention_query_mask": QUERIES}):
        with pytest.raises(TypeError, match="needs this key"):
            build_attention({"name": "global", **missing})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("r", [None, 0.2, 0.6])
def test_random_keeps_its_share_and_every_query_itself(r: float | None, causal: bool) -> None:
    length = 300
    config: dict[str, Any] = {"name": "random", "dropout": 0.0, "causal": causal} | ({} if r is None else {"r": r})
    attention = build_attention(config)
    assert isinstance(attention, RandomAttention)
    pairs = seen(attention, length)
    assert pairs.diagonal().all()
    assert not (causal and pairs.triu(1).any())
    count, share = length * (length - 1) // (2 if causal else 1), 0.01 if r is None else r
    assert abs((int(pairs.sum()) - length) / count - share) < 5 * (share * (1 - share) / count) ** 0.5
    assert seen(attention, 100).equal(pairs[:100, :100])


def test_two_random_attentions_differ_and_a_reloaded_one_is_equal() -> None:
    torch.manual_seed(0)
    first, second = (RandomAttention(0.0, r=0.3) for _ in range(2))
    torch.manual_seed(0)
    again = RandomAttention(0.0, r=0.3)
    pairs = seen(first, 40)
    assert not seen(second, 40).equal(pairs)
    assert seen(again, 40).equal(pairs)
    assert list(first.state_dict()) == ["native.seed"]
    second.load_state_dict(first.state_dict())
    assert seen(second, 40).equal(pairs)
    assert seen(copy.deepcopy(first), 40).equal(pairs)
    one, other = (build_attention({"name": "random", "dropout": 0.0, "r": 0.3, "seed": seed}) for seed in (4, 5))
    assert seen(one, 40).equal(seen(RandomAttention(0.0, r=0.3, seed=4), 40))
    assert not seen(one, 40).equal(seen(other, 40))


def test_pairs_are_drawn_anew_in_training_unless_they_are_constant() -> None:
    config = {"name": "random", "dropout": 0.0, "r": 0.3, "seed": 1}
    constant, drawn = (build_attention({**config, "constant_masking": constant}) for constant in (True, False))
    assert training_pairs(constant, 40).equal(training_pairs(constant, 40))
    assert not training_pairs(drawn, 40).equal(training_pairs(drawn, 40))
    assert seen(drawn, 40).equal(seen(constant, 40))


def test_masks_restrict_the_patterns() -> None:
    allowed, padding = torch.rand(8, 8) > 0.4, torch.arange(8)[None] < 6
    for attention in (GlobalAttention(0.0, QUERIES), RandomAttention(0.0, r=0.5)):
        pairs = seen(attention, 8)
        assert seen(attention, 8, att_mask=allowed).equal(pairs & allowed)
        assert seen(attention, 8, key_padding_mask=padding).equal(pairs & padding)
        x = torch.randn(2, 8, 4)
        with pytest.raises(AssertionError, match="as many queries as keys"):
            attention(x[:, :5], x, x)


@pytest.mark.parametrize("name", ["global", "random"])
def test_dropout_is_applied_and_hints_are_checked(name: str) -> None:
    config = {"name": name, "attention_query_mask": QUERIES, "r": 0.9, "seed": 1}
    plain, dropped = (build_attention({**config, "dropout": rate}) for rate in (0.0, 0.5))
    assert plain.dropped == (("r", "seed") if name == "global" else ("attention_query_mask",))
    x = torch.randn(2, 8, 4)
    assert not torch.equal(dropped.train()(x, x, x), dropped(x, x, x))
    assert torch.equal(dropped.eval()(x, x, x), plain(x, x, x))
    hinted = build_attention({**config, "dropout": 0.0, "force_sparsity": True})
    torch.testing.assert_close(hinted(x, x, x), plain(x, x, x))
    for wrong in ({"force_sparsity": "much"}, {"dropout": 1.5}, {"causal": "yes please"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            build_attention({**config, "dropout": 0.0, **wrong})


@pytest.mark.parametrize(
    ("key", "value"), [("r", 0.0), ("r", 1.5), ("constant_masking", "often"), ("seed", "lucky"), ("window", 3)]
)
def test_settings_of_random_are_checked(key: str, value: Any) -> None:
    if key == "window":  # another attention's key
        assert build_attention({"name": "random", "dropout": 0.0, key: value}).dropped == (key,)
        return
    with pytest.raises(ConfigError, match=key):
        build_attention({"name": "random", "dropout": 0.0, key: value})


@pytest.mark.parametrize(
    "config",
    [
        {"name": "longformer", "window": 3, "tokens": [0, 5]},
        {"name": "bigbird", "block": 2, "random_blocks": 1},
        {"name": "random", "r": 0.2},
        {"name": "global", "attention_query_mask": torch.arange(12) % 4 == 1},
    ],
    ids=lambda config: config["name"],
)
@pytest.mark.parametrize("causal", [False, True])
def test_patterns_serve_a_dispatch_as_their_specs_say(config: dict[str, Any], causal: bool) -> None:
    assert config["name"] in ATTENTION_REGISTRY
    attention = build_attention({**config, "dropout": 0.0, "causal": causal})
    multi_head = MultiHeadDispatch(dim_model=16, num_heads=4, attention=attention, bias=(True,) * 4).eval()
    x = torch.randn(2, 12, 16)
    out = multi_head(x)
    changed = x.clone()
    changed[:, 7:] = 0
    past_is_equal = torch.equal(multi_head(changed)[:, :7], out[:, :7])
    assert past_is_equal == causal
    spec = multi_head.spec
    assert spec["attention"].name == config["name"]
    assert spec["attention"]["causal"] is causal


def test_the_window_of_longformer_has_the_name_that_local_uses() -> None:
    x = torch.randn(2, 8, 4, dtype=torch.float64)
    by_either = [build_attention({"name": "longformer", "dropout": 0.0, key: 3}) for key in ("window", "window_size")]
    assert torch.equal(by_either[0](x, x, x), by_either[1](x, x, x))
    assert not torch.equal(by_either[0](x, x, x), build_attention({"name": "longformer", "window_size": 5})(x, x, x))
    with pytest.raises(ConfigError, match="window_size: is another name of window = 5"):
        build_attention({"name": "longformer", "window": 5, "window_size": 3})
    with pytest.raises(ConfigError, match="window: attention 'longformer' needs this field"):
        build_attention({"name": "longformer"})
