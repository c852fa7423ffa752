"""Multi-head attention of the xFormers dialect, against attention written out, with masks of every convention."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.dialects.xformers.components import (
    MultiHeadDispatch,
    MultiHeadDispatchConfig,
    build_attention,
    build_multi_head_attention,
)
from variform.dialects.xformers.components.attention import (
    ATTENTION_REGISTRY,
    Attention,
    AttentionConfig,
    AttentionMask,
    ScaledDotProduct,
    register_attention,
)
from variform.dialects.xformers.components.positional_embedding import RotaryEmbedding
from variform.dialects.xformers.components.positional_embedding.rotary import apply_rotary_pos_emb, rotate_half
from variform.inspect.explain import explaining
from variform.ops.masks import Causal, Window

BATCH, SEQ, DIM, HEADS = 3, 7, 12, 4


def dispatch(name: str = "scaled_dot_product", **config: Any) -> MultiHeadDispatch:
    attention = build_attention({"name": name, "dropout": 0.0, **config})
    return MultiHeadDispatch(dim_model=DIM, num_heads=HEADS, attention=attention).double()


def written_out(module: MultiHeadDispatch, q: Tensor, kv: Tensor, allowed: Tensor, bias: Any = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(D) + bias) V with a bool mask [B, heads, Sq, Sk], rows without a key giving zeros."""
    project = module.in_proj_container

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)

    queries, keys, values = heads(project.q_proj(q)), heads(project.k_proj(kv)), heads(project.v_proj(kv))
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5 + bias
    weights = scores.masked_fill(~allowed, -1e30).softmax(-1).masked_fill(~allowed, 0.0)
    return module.proj((weights @ values).transpose(1, 2).flatten(2))


def inputs(length: int = SEQ) -> Tensor:
    return torch.randn(BATCH, length, DIM, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def everywhere(keys: int = SEQ) -> Tensor:
    return torch.ones(BATCH, HEADS, SEQ, keys, dtype=torch.bool)


LOWER = torch.ones(SEQ, SEQ, dtype=torch.bool).tril()


def test_equals_attention_written_out() -> None:
    module, x, memory = dispatch(), inputs(), inputs(5)
    close(module(x), written_out(module, x, x, everywhere()))
    close(module(query=x, key=memory, value=memory), written_out(module, x, memory, everywhere(5)))
    causal = dispatch(causal=True)
    close(causal(x), written_out(causal, x, x, LOWER & everywhere()))


@pytest.mark.parametrize(("causal", "seen"), [(False, (2, 2)), (True, (5, 0))])
def test_local_sees_what_upstream_saw(causal: bool, seen: tuple[int, int]) -> None:
    module, x = dispatch("local", causal=causal, window_size=5), inputs()
    distance = torch.arange(SEQ)[:, None] - torch.arange(SEQ)
    close(module(x), written_out(module, x, x, (distance <= seen[0]) & (distance >= -seen[1]) & everywhere()))


@pytest.mark.parametrize("name", ["scaled_dot_product", "local"])
@pytest.mark.parametrize(
    "mask",
    [
        LOWER,
        LOWER.long(),
        LOWER.half(),
        LOWER.double(),
        torch.zeros(SEQ, SEQ).masked_fill(~LOWER, -torch.inf),
        AttentionMask.from_bool(LOWER),
        AttentionMask.make_causal(SEQ),
        AttentionMask.make_causal(SEQ + 4),
        torch.ones(SEQ + 2, SEQ + 2, dtype=torch.bool).tril(),
        Causal(),
    ],
    ids=str,
)
def test_masks_of_every_convention(name: str, mask: Any) -> None:
    module, x = dispatch(name), inputs()
    window = (torch.arange(SEQ)[:, None] - torch.arange(SEQ)).abs() <= (2 if name == "local" else SEQ)
    close(module(x, att_mask=mask), written_out(module, x, x, LOWER & window & everywhere()))


def test_other_floats_are_added_to_the_scores() -> None:
    module, x, bias = dispatch(), inputs(), torch.randn(SEQ, SEQ, dtype=torch.float64)
    close(module(x, att_mask=bias), written_out(module, x, x, everywhere(), bias))
    close(module(x, att_mask=torch.zeros(SEQ, SEQ)), module(x))
    learned = bias.clone().requires_grad_()
    module(x, att_mask=learned).sum().backward()
    assert learned.grad is not None
    assert learned.grad.abs().sum() > 0


def test_a_mask_per_sample_reaches_its_own_sample() -> None:
    module, x = dispatch(), inputs()
    rows = torch.rand(BATCH, SEQ, SEQ) < 0.6
    folded = torch.rand(BATCH * HEADS, SEQ, SEQ) < 0.6
    close(module(x, att_mask=rows), written_out(module, x, x, rows[:, None] & everywhere()))
    close(module(x, att_mask=folded), written_out(module, x, x, folded.view(BATCH, HEADS, SEQ, SEQ)))
    close(module(x, att_mask=folded.view(BATCH, HEADS, SEQ, SEQ)), module(x, att_mask=folded))
    with pytest.raises(AssertionError, match="one mask a head is written"):
        module(x, att_mask=torch.ones(HEADS, SEQ, SEQ, dtype=torch.bool))


@pytest.mark.parametrize("form", ["bool", "long", "float", "additive", "one row"])
def test_padding_changes_no_real_token(form: str) -> None:
    module, x = dispatch(), inputs()
    real = torch.arange(SEQ) < torch.tensor([[5], [5], [5]] if form == "one row" else [[5], [7], [3]])
    mask = {
        "bool": real,
        "long": real.long(),
        "float": real.float(),
        "additive": torch.zeros(BATCH, SEQ).masked_fill(~real, -torch.inf),
        "one row": real[0],
    }[form]
    out = module(x, key_padding_mask=mask)
    close(out, module(x, input_mask=mask))
    for row, length in enumerate(real.sum(1).tolist()):
        close(out[row, :length], module(x[row : row + 1, :length])[0])


@pytest.mark.parametrize("mask", [torch.rand(BATCH, SEQ), torch.full((SEQ,), 2), torch.ones(BATCH, SEQ + 1), "x"])
def test_other_padding_masks_are_refused(mask: Any) -> None:
    with pytest.raises(vf.ShapeError, match="key_padding_mask"):
        dispatch()(inputs(), key_padding_mask=mask)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(SEQ - 1, SEQ - 1), "does not fit"),
        (torch.ones(2, SEQ, SEQ), "fits neither"),
        (torch.full((SEQ, SEQ), 2), "holds 0 and 1"),
        ("x", "is a tensor"),
    ],
)
def test_other_attention_masks_are_refused(mask: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        dispatch()(inputs(), att_mask=mask)


def test_a_query_that_may_attend_to_nothing_gets_zeros() -> None:
    x, blind = torch.randn(2, SEQ, 4), torch.ones(SEQ, SEQ, dtype=torch.bool)
    blind[3] = False
    for mask in (blind, torch.zeros(SEQ, SEQ).masked_fill(~blind, -torch.inf)):
        out = ScaledDotProduct()(x, x, x, att_mask=mask)
        assert not out[:, 3].any()
        assert out.isfinite().all()


class Plain(Attention):
    """As a user writes it: bool masks are True where it may attend, floats are added."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, att_mask: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if att_mask is not None:
            scores = scores.masked_fill(~att_mask, -torch.inf) if att_mask.dtype == torch.bool else scores + att_mask
        return scores.softmax(-1).nan_to_num(0.0) @ v


SHAPES = [(SEQ, SEQ), (SEQ + 2, SEQ + 2), (BATCH, SEQ, SEQ), (BATCH * HEADS, SEQ, SEQ), (1, HEADS, SEQ, SEQ)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (BATCH, 1, SEQ, SEQ), (1, SEQ, SEQ)])
def test_masks_of_a_users_attention_mean_what_they_mean_elsewhere(shape: tuple[int, ...], padded: bool) -> None:
    own, users, x = dispatch(), MultiHeadDispatch(DIM, HEADS, Plain()).double(), inputs()
    users.load_state_dict(own.state_dict())
    real = torch.ones(BATCH, SEQ, dtype=torch.bool)
    real[0, 4:], real[1, :2] = False, False
    kept = torch.rand(shape) < 0.6
    dropped = torch.zeros(shape).masked_fill(~kept, -torch.inf)
    masks = [kept, kept.int(), kept.double(), kept.half(), dropped, torch.randn(shape, dtype=torch.float64)]
    for mask in [*masks, AttentionMask.from_bool(kept)] if len(shape) == 2 else masks:
        both = {"att_mask": mask, "key_padding_mask": real if padded else None}
        close(users(x, **both)[real], own(x, **both)[real])


@pytest.mark.parametrize("added", [False, True])
def test_sparse_tensors_are_masks(added: bool) -> None:
    module, x = dispatch(), inputs()
    mask = torch.zeros(BATCH, SEQ, SEQ, dtype=torch.float64).masked_fill(~LOWER, -torch.inf) if added else LOWER
    for sparse in (mask.to_sparse(), mask.to_sparse_csr()):
        close(module(x, att_mask=sparse), module(x, att_mask=LOWER))


def test_any_length_follows_any_other() -> None:
    attention = ScaledDotProduct(causal=True)
    for length in (4, 9, 2):
        x = torch.randn(1, length, 4)
        assert torch.equal(attention(x, x, x)[:, 0], x[:, 0])


@pytest.mark.parametrize("causal", [False, True])
def test_lengths_that_were_told_are_the_largest(causal: bool) -> None:
    x = torch.randn(1, SEQ, 4)
    told, free = ScaledDotProduct(causal=causal, seq_len=SEQ, to_seq_len=SEQ), ScaledDotProduct(causal=causal)
    for length in (SEQ, SEQ - 2):
        assert torch.equal(told(*[x[:, :length]] * 3), free(*[x[:, :length]] * 3))
    with pytest.raises(AssertionError, match=f"seq_len = {SEQ - 1}, and the sequence has {SEQ} tokens"):
        ScaledDotProduct(causal=causal, seq_len=SEQ - 1)(x, x, x)
    with pytest.raises(AssertionError, match=f"to_seq_len = {SEQ - 1}, and the sequence has {SEQ} tokens"):
        ScaledDotProduct(causal=causal, to_seq_len=SEQ - 1)(x, x, x)
    if not causal:
        assert ScaledDotProduct(seq_len=2)(x[:, :2], x, x).shape == (1, 2, 4)


@pytest.mark.parametrize("name", ["local", "random", "global"])
def test_sparsity_is_forced(name: str) -> None:
    config = {"name": name, "dropout": 0.0, "r": 0.5, "seed": 1, "attention_query_mask": torch.eye(SEQ)[:, 1:2] > 0}
    plain, forced = (dispatch(**{**config, "force_sparsity": force}) for force in (False, True))
    forced.load_state_dict(plain.state_dict())
    x = inputs()
    found = []
    for module in (plain, forced):
        with explaining() as choices:
            y = module(x)
        found.append([choice.chosen for choice in choices])
        close(y, plain(x))
    assert found[1] == ["block_sparse"] != found[0]
    positions = torch.arange(SEQ).expand(BATCH, -1)
    close(forced(x, positions=positions), plain(x, positions=positions))


def test_lengths_that_cannot_be_attended_are_refused() -> None:
    x, memory = inputs(), inputs(5)
    for module, says in ((dispatch("local"), "as many queries as keys"), (dispatch(causal=True), "is not defined")):
        with pytest.raises(AssertionError, match=says):
            module(x, memory, memory)


def test_masks_that_cannot_be_honoured_are_refused() -> None:
    with pytest.raises(AssertionError, match="does not support attention masks"):
        dispatch("linear")(inputs(), att_mask=LOWER)


def test_called_on_its_own_with_either_name_of_the_mask() -> None:
    attention, x = ScaledDotProduct(), torch.randn(6, SEQ, 5, dtype=torch.float64)
    scores = (x @ x.transpose(1, 2) / 5**0.5).masked_fill(~LOWER, -torch.inf)
    close(attention(q=x, k=x, v=x, mask=LOWER), scores.softmax(-1) @ x)
    close(attention(x, x, x, LOWER), scores.softmax(-1) @ x)
    close(attention(x[:, None], x[:, None], x[:, None], LOWER)[:, 0], scores.softmax(-1) @ x)
    with pytest.raises(AssertionError, match="another name"):
        attention(x, x, x, LOWER, mask=LOWER)


def test_a_batch_of_one_is_expanded() -> None:
    module, x = dispatch(), inputs()
    close(module(x[:1], x, x), module(x[:1].expand(BATCH, -1, -1), x, x))


def test_rotary_depends_on_distance_alone() -> None:
    attention = build_attention({"name": "scaled_dot_product"})
    module = MultiHeadDispatch(DIM - 4, 2, attention, use_rotary_embeddings=True).double()
    x = torch.randn(1, SEQ, DIM - 4, dtype=torch.float64)
    close(module(x), module(x, positions=torch.arange(SEQ) + 9))
    assert not torch.allclose(module(x), module(x, positions=torch.arange(SEQ) * 2))


def test_rotary_functions_are_the_embedding() -> None:
    q, k = torch.randn(2, 2, 3, 7, 8, dtype=torch.float64)
    angles = torch.arange(9, dtype=torch.float64)[:, None] / 10000 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    cos, sin = (f(torch.cat((angles, angles), -1))[None, None] for f in (torch.cos, torch.sin))
    turned = RotaryEmbedding(8)(q, k)
    for x, y in zip((q, k), turned, strict=True):
        torch.testing.assert_close(apply_rotary_pos_emb(x, cos, sin), y, rtol=0, atol=1e-6)
    assert torch.equal(rotate_half(rotate_half(q)), -q)


def test_rotary_angles_keep_their_digits_in_half_precision() -> None:
    q = torch.randn(1, 1, 2048, 8)
    exact, _ = RotaryEmbedding(8)(q, q)
    half = q.bfloat16()
    rounded, _ = RotaryEmbedding(8).bfloat16()(half, half)
    assert (rounded.float() - exact).abs().max() < 0.05


def test_one_weight_for_queries_keys_and_values() -> None:
    module = MultiHeadDispatch(DIM, HEADS, ScaledDotProduct(), use_separate_proj_weight=False)
    weights = [name for name, _ in module.named_parameters() if "in_proj_container" in name]
    assert weights == [
        f"in_proj_container.{name}" for name in ("q_proj.weight", "q_proj.bias", "k_proj.bias", "v_proj.bias")
    ]
    separate = MultiHeadDispatch(DIM, HEADS, ScaledDotProduct())
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = getattr(separate.in_proj_container, name)
        projection.weight.data.copy_(module.in_proj_container.q_proj.weight)
        projection.bias.data.copy_(getattr(module.in_proj_container, name).bias)
    separate.proj.load_state_dict(module.proj.state_dict())
    x = inputs().float()
    torch.testing.assert_close(module(x), separate(x))


@pytest.mark.parametrize("name", ["scaled_dot_product", "local", "linear"])
@pytest.mark.parametrize("rotary", [False, True])
def test_spec_describes_the_same_function(name: str, rotary: bool) -> None:
    attention = build_attention({"name": name, "causal": True, "window_size": 3})
    module = MultiHeadDispatch(24, 4, attention, bias=(True, True, True, False), use_rotary_embeddings=rotary).double()
    native = vf.build(module.spec).double()
    container = module.in_proj_container
    for ours, theirs in ((native.q, container.q_proj), (native.k, container.k_proj), (native.v, container.v_proj)):
        ours.load_state_dict(theirs.state_dict())
    native.out.load_state_dict(module.proj.state_dict())
    x, real = torch.randn(2, SEQ, 24, dtype=torch.float64), torch.arange(SEQ) < torch.tensor([[SEQ], [4]])
    close(module(x), native(x, {}))
    close(module(x, key_padding_mask=real)[real], native(x, {"valid": real})[real])


def test_spec_refuses_what_the_native_mixer_lacks() -> None:
    with pytest.raises(vf.ConfigError, match="no native equivalent"):
        _ = MultiHeadDispatch(DIM, HEADS, ScaledDotProduct(), dim_key=2 * DIM).spec


def test_values_may_have_another_size() -> None:
    module = MultiHeadDispatch(DIM, HEADS, ScaledDotProduct(), dim_key=2 * DIM, dim_value=HEADS)
    assert module(inputs().float()).shape == (BATCH, SEQ, DIM)


def test_dropout_follows_the_module_that_shows_it() -> None:
    attention = ScaledDotProduct(dropout=0.5)
    x = torch.randn(2, SEQ, 8)
    assert not torch.equal(attention(x, x, x), attention(x, x, x))
    attention.attn_drop.p = 0.0
    assert torch.equal(attention(x, x, x), attention(x, x, x))
    assert attention.spec["dropout"] == 0.0


# ---- configurations ----


def test_a_superset_is_sorted_out() -> None:
    config = {"name": "scaled_dot_product", "dropout": 0.1, "window_size": 3, "seq_len": 16, "force_sparsity": None}
    before = dict(config)
    attention = build_attention(config)
    assert attention.dropped == ("window_size", "force_sparsity")
    assert config == before
    assert build_attention(config).spec == attention.spec
    module = MultiHeadDispatch(seq_len=16, dim_model=DIM, num_heads=HEADS, attention=attention)
    assert module.dropped == ("seq_len",)
    assert ScaledDotProduct(window_size=3).dropped == ("window_size",)


def test_a_configuration_object_builds_too() -> None:
    config = ATTENTION_REGISTRY["local"].config(name="local", dropout=0.1, window_size=3)
    assert build_attention(config).native.window == 3
    heads = MultiHeadDispatchConfig(dim_model=DIM, num_heads=HEADS, attention=build_attention(config))
    assert build_multi_head_attention(heads).num_heads == HEADS
    assert MultiHeadDispatch.from_config(heads).attention is heads["attention"]


@pytest.mark.parametrize(
    ("config", "like", "path", "says"),
    [
        ({"name": "scaled_dot_produkt"}, KeyError, "name", "did you mean 'scaled_dot_product'"),
        ({"dropout": 0.1}, KeyError, "name", "which attention"),
        ({"name": "local", "windw_size": 3}, TypeError, "windw_size", "did you mean 'window_size'"),
        ({"name": "local", "window_size": "5"}, TypeError, "window_size", "integer"),
        ({"name": "local", "window_size": 4}, AssertionError, "window_size", "odd"),
        ({"name": "scaled_dot_product", "dropout": "lots"}, TypeError, "dropout", "number"),
        ({"name": "scaled_dot_product", "dropout": 1.5}, TypeError, "dropout", "less than 1"),
        ({"name": "scaled_dot_product", "causal": "yes"}, TypeError, "causal", "bool"),
        (7, TypeError, "", "a dict with a name describes"),
    ],
)
def test_mistakes_in_an_attention(config: Any, like: type[Exception], path: str, says: str) -> None:
    with pytest.raises(vf.ConfigError, match=says) as caught:
        build_attention(config)
    assert isinstance(caught.value, like)
    assert caught.value.path == path


def test_mistakes_are_reported_together_with_their_paths() -> None:
    config = {"dim_model": 10, "num_heads": 3, "rotary": True, "attention": {"name": "local", "windw_size": 3}}
    with pytest.raises(vf.ConfigError) as caught:
        build_multi_head_attention(config)
    assert [p.path for p in caught.value.problems] == ["rotary", "num_heads", "attention.windw_size"]
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(AssertionError, match="nearest that divide it: 2 or 5"):
        MultiHeadDispatch(10, 3, ScaledDotProduct())
    with pytest.raises(TypeError, match="needs this key"):
        build_multi_head_attention({"dim_model": 10, "num_heads": 2})


def test_whole_floats_serve_as_sizes() -> None:
    assert build_attention({"name": "local", "dropout": 0, "window_size": 14 / 2}).window_size == 7
    with pytest.raises(TypeError, match="integer"):
        build_attention({"name": "local", "dropout": 0, "window_size": 7.5})


def test_causality_is_never_dropped() -> None:
    @dataclass
    class Config(AttentionConfig):
        pass

    try:

        @register_attention("only_forward", Config)
        class OnlyForward(Attention):
            def __init__(self, dropout: float = 0.0, *args: Any, **kwargs: Any) -> None:
                super().__init__()

            def forward(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                return v

        assert build_attention({"name": "only_forward", "causal": False, "window_size": 3}).dropped == (
            "causal",
            "window_size",
        )
        with pytest.raises(vf.ConfigError, match=r"cannot honour 'causal'.*scaled_dot_product"):
            build_attention({"name": "only_forward", "causal": True})
    finally:
        ATTENTION_REGISTRY.remove("only_forward")


# ---- users' parts ----


@dataclass
class MineConfig(AttentionConfig):
    sharpness: float = 1.0


class Mine(Attention):
    def __init__(
        self, dropout: float = 0.0, sharpness: float = 1.0, num_heads: int = 0, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__()
        self.sharpness, self.num_heads = sharpness, num_heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor, att_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        assert q.dim() == 3
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 * self.sharpness
        if att_mask is not None:
            scores = scores.masked_fill(~att_mask, -torch.inf) if att_mask.dtype == torch.bool else scores + att_mask
        return scores.softmax(-1) @ v


@pytest.fixture
def mine() -> Any:
    register_attention("mine", MineConfig)(Mine)
    yield build_multi_head_attention(
        {"dim_model": DIM, "num_heads": HEADS, "attention": {"name": "mine", "window_size": 3}}
    ).double()
    ATTENTION_REGISTRY.remove("mine")


def test_a_registered_attention_is_built_and_called_with_folded_heads(mine: MultiHeadDispatch) -> None:
    assert "mine" in ATTENTION_REGISTRY
    assert mine.dropped == ("attention.window_size",)
    assert mine.attention.num_heads == HEADS
    x = inputs()
    rows = (torch.rand(BATCH, SEQ, SEQ) < 0.6) | torch.eye(SEQ, dtype=torch.bool)
    real = torch.arange(SEQ) < torch.tensor([[5], [7], [3]])
    close(mine(x), written_out(mine, x, x, everywhere()))
    close(mine(x, att_mask=rows), written_out(mine, x, x, rows[:, None] & everywhere()))
    close(mine(x, key_padding_mask=real), written_out(mine, x, x, real[:, None, None] & everywhere()))
    both = (LOWER & real[:, None])[:, None] & everywhere()
    close(mine(x, att_mask=LOWER, key_padding_mask=real), written_out(mine, x, x, both))
    banded = Causal() & Window(2)
    close(mine(x, att_mask=banded), written_out(mine, x, x, banded.dense(*[torch.arange(SEQ)] * 2) & everywhere()))
    with pytest.raises(vf.ConfigError, match="no native equivalent"):
        _ = mine.spec


def test_keys_of_a_registered_attention_join_the_superset(mine: MultiHeadDispatch) -> None:
    assert build_attention({"name": "local", "sharpness": 2.0}).dropped == ("sharpness",)
    with pytest.raises(TypeError, match="number"):
        build_attention({"name": "mine", "sharpness": "very"})


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="duplicate"):
        register_attention("local", MineConfig)(Mine)
    with pytest.raises(ValueError, match="must extend Attention"):
        register_attention("other", MineConfig)(torch.nn.Linear)


def test_the_registry_is_a_mapping() -> None:
    assert ATTENTION_REGISTRY.keys() - ["local"] == set(ATTENTION_REGISTRY) - {"local"}
    assert {"local", "scaled_dot_product", "linear"} <= set(ATTENTION_REGISTRY)
    assert "window" not in ATTENTION_REGISTRY  # a bias is no attention
    assert ATTENTION_REGISTRY["scaled_dot_product"].constructor is ScaledDotProduct
    assert ATTENTION_REGISTRY.get("nothing") is None
    assert len(list(ATTENTION_REGISTRY)) == len(ATTENTION_REGISTRY)
