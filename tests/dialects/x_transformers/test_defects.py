"""What upstream gets wrong, one test each, and the mistakes of beginners: right numbers, or an error that helps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from variform.dialects.x_transformers import (
    AutoregressiveWrapper,
    Decoder,
    Encoder,
    NonAutoregressiveWrapper,
    TransformerWrapper,
    XLAutoregressiveWrapper,
    XTransformer,
)
from variform.errors import ShapeError

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4}


def language(stack: type = Decoder, model: dict[str, Any] | None = None, **layers: Any) -> TransformerWrapper:
    """A model in float64, every parameter of which counts."""
    torch.manual_seed(0)
    chosen = {name: x for name, x in {**SMALL, **layers}.items() if x is not None}
    given = {"num_tokens": 11, "max_seq_len": 32, **(model or {})}
    built = TransformerWrapper(attn_layers=stack(**chosen), **given).double().eval()
    with torch.no_grad():
        for param in built.parameters():
            param += 0.1 * torch.randn_like(param)
    return built


def ids(length: int = 9, batch: int = 2) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(1))


# Memories that upstream leaves out.


@pytest.mark.parametrize("layers", [{"shift_tokens": 1}, {"attn_selective": True}, {"attn_use_cope": True}])
@torch.no_grad()
def test_what_goes_from_token_to_token_goes_through_memories(layers: dict[str, Any]) -> None:
    model = language(model={"max_mem_len": 32, "use_abs_pos_emb": False}, depth=None, custom_layers=("a",), **layers)
    text = ids(12)
    _, mems = model(text[:, :7], return_mems=True)
    found = model(text[:, 7:], mems=mems)
    torch.testing.assert_close(found, model(text)[:, 7:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_learned_keys_stand_where_memories_begin() -> None:
    layers = {"rotary_pos_emb": True, "attn_num_mem_kv": 2}
    model = language(model={"max_mem_len": 32}, depth=None, custom_layers=("a",), **layers)
    text = ids(12)
    _, mems = model(text[:, :7], return_mems=True)
    torch.testing.assert_close(model(text[:, 7:], mems=mems), model(text)[:, 7:], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "layers", [{"integrate_layers": True}, {"attn_aggregated_residuals": True, "dim": 80, "attn_dim_head": 20}]
)
def test_views_of_earlier_layers_are_not_remembered(layers: dict[str, Any]) -> None:
    model = language(model={"max_mem_len": 8}, **layers)
    _, mems = model(ids(), return_mems=True)
    with pytest.raises(ShapeError, match="earlier steps were given cannot have memories"):
        model(ids(), mems=mems)


@torch.no_grad()
def test_a_window_is_measured_by_positions() -> None:
    model = language(rotary_pos_emb=True, attn_max_attend_past=2, depth=None, custom_layers=("a",))
    text, apart = ids(), torch.arange(9) * 2
    changed = text.clone()
    changed[:, 4] = (text[:, 4] + 1) % 11
    differs = (model(text, pos=apart) - model(changed, pos=apart)).abs().amax((0, 2)) > 1e-9
    assert differs.nonzero().flatten().tolist() == [4, 5], "a key two positions behind is the token before"


# Inputs that cannot work: an error of ours that is also what upstream raises there, and that says what to write.

SIDES: dict[str, Any] = {
    f"{side}_{name}": value
    for side in ("enc", "dec")
    for name, value in {"num_tokens": 11, "max_seq_len": 32, "depth": 1, "heads": 2}.items()
}
WITHOUT_TOKENS = {name: value for name, value in SIDES.items() if name != "enc_num_tokens"}


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def stack(**layers: Any) -> Decoder:
    return Decoder(**{**SMALL, **layers})


def tokens(model: dict[str, Any] | None = None, **layers: Any) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language(model=model, **layers))


BAD: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("misspelt", lambda: stack(rotary_pos_embb=True), AssertionError, "did you mean 'rotary_pos_emb'"),
    ("misspelt-inside", lambda: stack(attn_qk_nrom=True), TypeError, "attn_qk_nrom.*did you mean 'attn_qk_norm'"),
    ("unknown-cross", lambda: stack(cross_attn_zzz=2), TypeError, "no keyword 'cross_attn_zzz'"),
    ("no-side", lambda: XTransformer(dim=16, **SIDES, rotary_pos_emb=True), AssertionError, "enc_rotary_pos_emb"),
    ("nonsense", lambda: XTransformer(dim=16, **SIDES, total_nonsense=3), AssertionError, "'total_nonsense'"),
    ("no-tokens", lambda: XTransformer(dim=16, **WITHOUT_TOKENS), KeyError, "enc_num_tokens.*needs this keyword"),
    ("heads-inside", lambda: stack(attn_heads=2), TypeError, "no keyword 'attn_heads'"),
    ("no-depth", lambda: Decoder(dim=16), AssertionError, "depth must be given"),
    ("no-heads", lambda: stack(heads=0), AssertionError, "heads.*greater than 0"),
    ("depth-0", lambda: stack(depth=0), AssertionError, "depth: at least one block"),
    ("depth-negative", lambda: stack(depth=-1), AssertionError, "depth: at least one block"),
    ("no-width", lambda: stack(ff_mult=0), AssertionError, "^ff_mult: .*greater than 0"),
    ("rate-as-text", lambda: stack(ff_dropout="0.1"), TypeError, "^ff_dropout: int or float is needed"),
    ("rate-above-1", lambda: stack(attn_dropout=1.5), AssertionError, "^attn_dropout: .*less than 1"),
    ("window-negative", lambda: stack(attn_max_attend_past=-1), AssertionError, "^attn_max_attend_past: must not be"),
    ("kv-heads", lambda: stack(attn_kv_heads=3), AssertionError, "must divide heads = 4.*2 or 4"),
    ("kv-heads-twice", lambda: stack(attn_kv_heads=2, attn_one_kv_head=True), AssertionError, "give one of the two"),
    ("too-long", lambda: language()(ids(40)), AssertionError, "40 tokens, and the absolute positions end at 32"),
    ("no-token", lambda: language()(torch.full((1, 4), 11)), IndexError, r"must lie in \[0, 11\)"),
    ("float-ids", lambda: language()(torch.rand(1, 4)), TypeError, "token ids are integers"),
    ("no-batch", lambda: language()(ids()[0]), IndexError, r"\[batch, length\]"),
    ("short-mask", lambda: language()(ids(), mask=ones(2, 8)), RuntimeError, r"mask is bool of shape \[2, 9\]"),
    ("float-mask", lambda: language()(ids(), mask=torch.ones(2, 9)), TypeError, "mask is bool"),
    ("4-d-mask", lambda: language()(ids(), mask=ones(2, 1, 9, 9)), RuntimeError, r"mask is bool of shape \[2, 9\]"),
    ("attn-mask-of-rows", lambda: language()(ids(), attn_mask=ones(2, 9, 9)), RuntimeError, r"\[batch, 1, L, L\]"),
    (
        "context",
        lambda: language()(ids(), context=torch.rand(2, 3, 16)),
        AssertionError,
        "build with cross_attend=True",
    ),
    ("no-context", lambda: language(cross_attend=True)(ids()), AssertionError, "pass context="),
    ("two-norms", lambda: stack(use_rmsnorm=True, use_scalenorm=True), AssertionError, "only one norm"),
    ("two-new-norms", lambda: stack(use_dynamic_tanh=True, use_derf=True), AssertionError, "only one norm"),
    ("two-biases", lambda: stack(rel_pos_bias=True, alibi_pos_bias=True), AssertionError, "only one bias"),
    ("too-many-widths", lambda: stack(ff_mult=(2, 4, 8)), TypeError, "^ff_mult"),
    ("too-few-shifts", lambda: stack(shift_tokens=(1, 0)), AssertionError, "each of the 4 sublayers"),
    ("too-few-rates", lambda: stack(layer_dropout=(0.1,)), AssertionError, "each of the 4 sublayers"),
    ("tied-width", lambda: language(model={"tie_embedding": True, "emb_dim": 8}), AssertionError, "8 features.* 16"),
    ("encoder", lambda: AutoregressiveWrapper(language(Encoder)), AssertionError, "around a Decoder"),
    ("one-token", lambda: tokens()(ids(1)), AssertionError, "at least two tokens"),
    ("filter", lambda: tokens().generate(ids(), 3, filter_logits_fn="top_q"), AssertionError, "did you mean 'top_p'"),
    ("temperature", lambda: tokens().generate(ids(), 3, temperature=-1.0), AssertionError, "at least 0"),
    ("empty-prompt", lambda: tokens().generate(ids(0), 3), RuntimeError, "at least one token"),
    ("misspelt-call", lambda: language()(ids(), maks=ones(2, 9)), TypeError, "did you mean 'mask'"),
    ("misspelt-generate", lambda: tokens().generate(ids(), 3, temprature=1.0), TypeError, "no argument 'temprature'"),
    ("max-mem-len", lambda: language(model={"max_mem_len": -1}), AssertionError, "max_mem_len: must not be negative"),
    (
        "faded-distances",
        lambda: stack(rotary_pos_emb=True, rotary_xpos=True, attn_l2_distance=True),
        AssertionError,
        "rotary_xpos: .*scores are distances",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_mistake_is_told(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, ValueError), "an error that the library raises on purpose"


# What upstream refuses, ignores or crashes on, and what works.

GOOD: list[tuple[str, Callable[[], Tensor]]] = [
    ("heads-that-do-not-divide", lambda: language(heads=3)(ids())),
    ("rotary-beyond-the-length", lambda: language(rotary_pos_emb=True)(ids(40))),
    ("no-positions-beyond-the-length", lambda: language(model={"use_abs_pos_emb": False})(ids(40))),
    ("nothing-to-attend-to", lambda: language()(ids(), mask=torch.zeros(2, 9, dtype=torch.bool))),
    ("rotary-and-t5", lambda: language(rotary_pos_emb=True, rel_pos_bias=True)(ids())),
    ("rotary-and-dynamic-bias", lambda: language(rotary_pos_emb=True, dynamic_pos_bias=True)(ids())),
    ("polar-and-dynamic-bias", lambda: language(polar_pos_emb=True, dynamic_pos_bias=True)(ids())),
    ("flash-and-talking-heads", lambda: language(attn_flash=True, attn_pre_talking_heads=True)(ids())),
    ("flash-and-z-loss", lambda: language(attn_flash=True)(ids(), return_attn_z_loss=True)[0]),
    ("top-k-beyond-the-row", lambda: language(attn_sparse_topk=20)(ids())),
    ("embeddings-sigsoftmax", lambda: language(model={"sigsoftmax_logits": True})(ids(), return_embeddings=True)),
    ("polar-uniform", lambda: language(polar_pos_emb=True, polar_bias_uniform_init=True)(ids())),  # 13
    (
        "hybrid-without-fold",
        lambda: language(attn_hybrid_module=nn.GRU(16, 16, batch_first=True))(ids()),
    ),  # 14
    ("value-norm-grouped", lambda: language(attn_value_rmsnorm=True, attn_kv_heads=2)(ids())),  # 15
    ("projected-distance-memory", lambda: language(attn_use_rel_proj_pos_bias=True, attn_num_mem_kv=2)(ids())),
    ("skips-macaron", lambda: language(unet_skips=True, macaron=True)(ids())),  # 16
    ("top-k-generates", lambda: tokens(attn_sparse_topk=8).generate(ids(3), 4).double()),
    ("beyond-learned-positions", lambda: tokens().generate(ids(), 40).double()),
]


@pytest.mark.parametrize("call", [row[1] for row in GOOD], ids=[row[0] for row in GOOD])
@torch.no_grad()
def test_what_upstream_cannot_works(call: Callable[[], Tensor]) -> None:
    assert call().isfinite().all()


# Defects with wrong numbers, by what is right.


def test_several_streams_neither_grow_nor_are_left_unlearned() -> None:  # 1
    model = language(num_residual_streams=4, depth=6, pre_norm_has_final_norm=False)
    hidden = model(ids(), return_embeddings=True)
    assert float(hidden.detach().norm(dim=-1).max()) < 1e3  # upstream: 3e7
    hidden.square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert all("head" in name for name in idle), idle


@pytest.mark.parametrize(
    "layers",
    [{"orthog_residual": True}, {"mv_split_residual": True}, {"attn_orthog_projected_values": True}],
    ids=lambda layers: next(iter(layers)),
)
@torch.no_grad()
def test_the_future_is_not_seen(layers: dict[str, Any]) -> None:  # 3
    model = language(**layers)
    text = ids()
    changed = text.clone()
    changed[:, -1] = (text[:, -1] + 1) % 11
    assert torch.equal(model(text)[:, :-1], model(changed)[:, :-1])


@pytest.mark.parametrize(
    "layers",
    [
        {"shift_tokens": 1},
        {"attn_data_dependent_alibi": True},
        {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True},
        {"orthog_residual": True},
    ],
)
def test_a_cache_changes_no_token(layers: dict[str, Any]) -> None:  # 4
    model = tokens(**layers)
    cached, uncached = (model.generate(ids(5), 8, temperature=0.0, cache_kv=kept) for kept in (True, False))
    assert torch.equal(cached, uncached)


def test_generation_without_the_limit_of_the_length() -> None:  # 7
    model = tokens(rotary_pos_emb=True)
    assert model.generate(ids(), 30, restrict_to_max_seq_len=False).shape == (2, 30)


@pytest.mark.parametrize(("prompt", "new"), [(12, 5), (24, 5), (6, 7)])
def test_segments_that_end_with_the_prompt(prompt: int, new: int) -> None:  # 8
    net = language(model={"max_seq_len": 12, "max_mem_len": 12, "use_abs_pos_emb": False}, rel_pos_bias=True)
    assert XLAutoregressiveWrapper(net).generate(ids(prompt), new).shape == (2, new)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize(
    ("model", "layers"),
    [({"tie_embedding": True}, {}), ({}, {"attn_gate_values": True, "attn_gate_values_rank": 2})],
    ids=["tied", "low-rank"],
)
@torch.no_grad()
def test_copies_are_independent(model: dict[str, Any], layers: dict[str, Any], how: Any) -> None:  # 10, 11
    net = language(model=model, **layers)
    before = net(ids())
    other = how(net)
    for param in net.parameters():
        param.add_(1.0)
    assert torch.equal(other(ids()), before)


def test_the_default_loss_of_masked_tokens_goes_down() -> None:  # 2
    torch.manual_seed(0)
    net = TransformerWrapper(num_tokens=5, max_seq_len=6, attn_layers=Encoder(**SMALL))
    model = NonAutoregressiveWrapper(net, mask_id=4)
    text = torch.tensor([[0, 1, 2, 3, 0, 1]] * 8)
    steps = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = model(text).loss
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    assert min(losses) >= 0
    assert sum(losses[-10:]) < sum(losses[:10]) / 2


@torch.no_grad()
def test_an_own_causality_of_a_call_with_flash() -> None:  # 9
    flash, plain = (language(attn_flash=on).attn_layers for on in (True, False))
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(flash(x, causal=False), plain(x, causal=False), rtol=0, atol=1e-10)


def test_an_end_in_the_prompt_does_not_end_the_row() -> None:  # 17
    model = tokens()
    text = ids()
    found = model.generate(text, 6, eos_token=int(text[0, 2]), temperature=0.0)
    first = model.generate(text, 1, temperature=0.0)
    assert torch.equal(found[:, :1], first)


@torch.no_grad()
def test_the_weight_of_the_z_loss_is_that_of_the_model() -> None:  # 19
    _, small = language(model={"attn_z_loss_weight": 1e-3})(ids(), return_attn_z_loss=True)[:2]
    _, large = language(model={"attn_z_loss_weight": 1e-1})(ids(), return_attn_z_loss=True)[:2]
    torch.testing.assert_close(loss_of(large), 100 * loss_of(small))


def loss_of(found: Any) -> Tensor:
    loss: Tensor = found if isinstance(found, Tensor) else found.attn_z_loss
    return loss


def test_dropped_layers_are_repeated_by_the_seed_of_torch() -> None:  # 22
    model = language(layer_dropout=0.5).train()
    outs = []
    for _ in range(2):
        torch.manual_seed(3)
        outs.append(model(ids()))
    assert torch.equal(*outs)


@torch.no_grad()
def test_values_of_a_head_alone_are_not_those_of_all_together() -> None:  # 25
    all_heads = language(attn_orthog_projected_values=True)(ids())
    each = language(attn_orthog_projected_values_per_head=True)(ids())
    assert float((all_heads - each).abs().max()) > 1e-3
