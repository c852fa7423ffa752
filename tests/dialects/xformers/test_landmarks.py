"""Linformer, Nystrom, Orthoformer attention and lambda layers of the dialect: every field, and every form of a mask."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.dialects.xformers.cases import encoder
from variform.dialects.xformers.components import MultiHeadDispatch, build_multi_head_attention
from variform.dialects.xformers.components.attention import (
    ATTENTION_REGISTRY,
    LambdaLayer,
    LinformerAttention,
    NystromAttention,
    OrthoFormerAttention,
    ScaledDotProduct,
    build_attention,
)
from variform.dialects.xformers.components.attention.lambda_layer import LambdaLayerConfig
from variform.dialects.xformers.components.attention.linformer import LinformerSelfAttentionConfig
from variform.dialects.xformers.components.attention.nystrom import NystromSelfAttentionConfig
from variform.dialects.xformers.components.attention.ortho import LandmarkSelection, OrthoformerAttentionConfig
from variform.dialects.xformers.components.attention.utils import (
    bool_mask_to_additive,
    iterative_pinv,
    maybe_merge_masks,
    reshape_key_padding_mask,
)
from variform.dialects.xformers.factory import xFormer
from variform.parts.attention.nystrom import NystromAttention as NativeNystrom
from variform.parts.kinds import Sides

SEQ, EXACT = 24, {"rtol": 0, "atol": 1e-10}


def x(length: int = SEQ, seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dispatch(name: str, seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    config = {"name": name, "dropout": 0.0, "seq_len": SEQ, **fields}
    return build_multi_head_attention({"dim_model": 16, "num_heads": 4, "attention": config}).double().eval()


NAMES = {
    "linformer": (LinformerAttention, LinformerSelfAttentionConfig, ["dropout", "seq_len", "k"]),
    "nystrom": (
        NystromAttention,
        NystromSelfAttentionConfig,
        [
            *("dropout", "num_heads", "num_landmarks", "landmark_pooling", "causal", "use_razavi_pinverse"),
            *("pinverse_original_init", "inv_iterations", "v_skip_connection", "conv_kernel_size"),
        ],
    ),
    "orthoformer": (
        OrthoFormerAttention,
        OrthoformerAttentionConfig,
        ["dropout", "num_landmarks", "subsample_fraction", "landmark_selection"],
    ),
    "lambda": (LambdaLayer, LambdaLayerConfig, ["dropout", "seq_len", "dim_head", "causal"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_classes_configurations_and_fields_have_their_names(name: str) -> None:
    cls, config, fields = NAMES[name]
    assert ATTENTION_REGISTRY[name].constructor is cls
    assert ATTENTION_REGISTRY[name].config is config
    assert [p for p in inspect.signature(cls).parameters if p != "superset"] == fields
    with pytest.raises(TypeError, match="needs this key"):
        build_attention({"name": name, "num_heads": 4, "seq_len": 8, "dim_head": 4})  # as upstream: dropout is needed
    assert cls.__name__ in repr(dispatch(name))


def test_defaults_are_upstreams() -> None:
    defaults = {n: p.default for n, p in inspect.signature(NystromAttention).parameters.items()}
    assert [defaults[n] for n in ("num_landmarks", "causal", "use_razavi_pinverse", "inv_iterations")] == [
        64,
        False,
        True,
        6,
    ]
    ortho = OrthoFormerAttention(0.0)
    chosen = (ortho.num_landmarks, ortho.subsample_fraction, ortho.landmark_selection)
    assert chosen == (32, 1.0, LandmarkSelection.Orthogonal)
    assert LinformerAttention(0.0, 40).k == 10
    assert LinformerAttention(0.0, 3).k == 1
    assert LinformerAttention(0.0, 40).native.E.weight.shape == (10, 40)


FIELDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("linformer", {}, {"k": 3}),
    ("linformer", {}, {"seq_len": 28}),
    ("nystrom", {"num_landmarks": 4}, {"num_landmarks": 5}),
    ("nystrom", {"num_landmarks": 4}, {"causal": True}),
    ("nystrom", {"num_landmarks": 4}, {"use_razavi_pinverse": False}),
    ("nystrom", {"num_landmarks": 4}, {"pinverse_original_init": True}),
    ("nystrom", {"num_landmarks": 4}, {"inv_iterations": 2}),
    ("nystrom", {"num_landmarks": 4}, {"landmark_pooling": nn.AdaptiveMaxPool2d((4, None))}),
    ("nystrom", {"num_landmarks": 4}, {"v_skip_connection": nn.Identity()}),
    ("nystrom", {"num_landmarks": 4}, {"conv_kernel_size": 3}),
    ("nystrom", {"num_landmarks": 4, "causal": True}, {"conv_kernel_size": 3}),
    ("nystrom", {"num_landmarks": 4, "causal": True}, {"num_landmarks": 5}),
    ("orthoformer", {"num_landmarks": 4}, {"num_landmarks": 5}),
    ("orthoformer", {"num_landmarks": 4}, {"subsample_fraction": 0.4}),
    ("orthoformer", {"num_landmarks": 4}, {"landmark_selection": "kmeans"}),
    ("orthoformer", {"num_landmarks": 4}, {"landmark_selection": "kmeans_spherical"}),
    ("orthoformer", {"num_landmarks": 4}, {"landmark_selection": "random"}),
    ("lambda", {}, {"causal": True}),
    ("lambda", {}, {"seq_len": 28}),
]


@pytest.mark.parametrize(("name", "fields", "change"), FIELDS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_every_field_takes_effect(name: str, fields: dict[str, Any], change: dict[str, Any]) -> None:
    one, other = dispatch(name, **fields), dispatch(name, **{**fields, **change})
    other.load_state_dict({k: v for k, v in one.state_dict().items() if "native" not in k}, strict=False)
    assert not torch.allclose(one(x()), other(x()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_there_once_and_may_be_changed(name: str) -> None:
    attention = dispatch(name, dropout=0.4, num_landmarks=4).attention
    assert attention.attn_drop.p == attention.native.dropout == 0.4
    q, k, v = (torch.ones(40, SEQ, 4, dtype=torch.float64) for _ in range(3))
    kept = attention(q, k, v)
    torch.manual_seed(0)
    dropped = attention.train()(q, k, v)
    zeros = float((dropped == 0).double().mean())
    assert zeros < 0.02 if name == "linformer" else abs(zeros - 0.4) < 0.05
    assert not torch.allclose(dropped, kept)
    attention.attn_drop.p = 0.0
    torch.testing.assert_close(attention(q, k, v), kept, **EXACT)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("linformer", {}),
        ("nystrom", {"num_landmarks": 4}),
        ("nystrom", {"num_landmarks": 4, "causal": True, "conv_kernel_size": 3}),
        ("nystrom", {"num_landmarks": 6, "conv_kernel_size": 5, "use_razavi_pinverse": False}),
        ("orthoformer", {"num_landmarks": 4}),
        ("orthoformer", {"num_landmarks": 4, "landmark_selection": LandmarkSelection.KMeans}),
        ("lambda", {}),
        ("lambda", {"causal": True}),
    ],
)
def test_each_equals_its_spec_and_padding_changes_no_real_token(name: str, fields: dict[str, Any]) -> None:
    module = dispatch(name, **fields)
    native = vf.build(module.spec).double().eval()
    container = module.in_proj_container
    for mine, theirs in zip(
        (native.q, native.k, native.v, native.out),
        (container.q_proj, container.k_proj, container.v_proj, module.proj),
        strict=True,
    ):
        mine.load_state_dict(theirs.state_dict())
    native.attention.load_state_dict(module.attention.native.state_dict())
    torch.testing.assert_close(module(x()), native(x(), {}), **EXACT)
    valid = torch.ones(2, SEQ, dtype=torch.bool)
    valid[0, 17:] = valid[1, :9] = False
    for mask in (valid, bool_mask_to_additive(valid), valid.long()):
        out = module(x(), key_padding_mask=mask)
        for row in range(2):
            torch.testing.assert_close(out[row, valid[row]], module(x()[row : row + 1, valid[row]])[0], **EXACT)
    with pytest.raises(AssertionError, match="does not support attention masks"):
        module(x(), att_mask=torch.ones(SEQ, SEQ, dtype=torch.bool))


@pytest.mark.parametrize("name", ["linformer", "orthoformer", "nystrom"])
def test_keys_of_another_length(name: str) -> None:
    module = dispatch(name, num_landmarks=4)
    assert module(x(9), x(17), x(17)).shape == (2, 9, 16)
    with pytest.raises(AssertionError, match="as many queries as keys"):
        dispatch("lambda")(x(9), x(17), x(17))
    with pytest.raises(AssertionError, match="causality between sequences of different lengths"):
        dispatch("nystrom", causal=True)(x(9), x(17), x(17))


@pytest.mark.parametrize("name", ["linformer", "orthoformer"])
def test_what_has_no_causal_form_says_which_do(name: str) -> None:
    with pytest.raises(vf.ConfigError, match=r"cannot honour 'causal'.*\n?.*nystrom"):
        dispatch(name, causal=True)
    dispatch(name, causal=False)


@pytest.mark.parametrize("name", ["linformer", "lambda"])
def test_sequences_beyond_seq_len_are_refused_and_shorter_ones_work(name: str) -> None:
    module = dispatch(name)
    assert module(x(7)).shape == (2, 7, 16)
    with pytest.raises(vf.ShapeError, match="24"):
        module(x(25))
    with pytest.raises(TypeError, match="seq_len"):
        build_attention({"name": name, "dropout": 0.0, "dim_head": 4})


def folded(length: int = SEQ) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x(length, seed, batch=8)[..., :4] for seed in range(3))
    return q, k, v


def test_nystrom_takes_padding_for_sequences_and_for_heads() -> None:
    attention = NystromAttention(0.0, 4, num_landmarks=4, conv_kernel_size=3).double()
    q, k, v = folded()
    valid = torch.arange(SEQ) < torch.tensor([[15], [24]])
    by_head = reshape_key_padding_mask(valid, 8)
    separate = attention(*(t.view(2, 4, SEQ, 4) for t in (q, k, v)), valid).flatten(0, 1)
    masks = (valid, bool_mask_to_additive(valid), by_head, bool_mask_to_additive(by_head), by_head.squeeze(1))
    for mask in masks:
        torch.testing.assert_close(attention(q, k, v, key_padding_mask=mask), separate, **EXACT)
    one = torch.arange(SEQ) < 15
    torch.testing.assert_close(attention(q, k, v, one), attention(q, k, v, valid[:1]), **EXACT)
    for bad in (valid[:, 1:], valid.unsqueeze(0), torch.ones(3, SEQ, dtype=torch.bool), by_head.expand(-1, 2, -1)):
        with pytest.raises(AssertionError, match="key_padding_mask"):
            attention(q, k, v, key_padding_mask=bad)
    plain = NystromAttention(0.0, 4, num_landmarks=4)
    each = torch.arange(SEQ) < torch.arange(10, 18)[:, None]
    out = plain(q, k, v, key_padding_mask=each.unsqueeze(1))
    alone = plain(q[5:6, :15], k[5:6, :15], v[5:6, :15])
    torch.testing.assert_close(out[5, :15], alone[0], **EXACT)


def test_nystrom_and_orthoformer_ignore_no_mask_when_called_directly() -> None:
    for attention in (NystromAttention(0.0, 4), OrthoFormerAttention(0.0)):
        with pytest.raises(AssertionError, match="does not support attention masks"):
            attention(*folded(), att_mask=torch.ones(SEQ, SEQ, dtype=torch.bool))


def test_modules_of_the_user_make_landmarks_and_skips() -> None:
    q, k, v = folded()
    pooled = NystromAttention(0.0, 4, 4, landmark_pooling=nn.AdaptiveAvgPool2d((4, None)))
    torch.testing.assert_close(pooled(q, k, v), NystromAttention(0.0, 4, 4)(q, k, v), **EXACT)
    conv = nn.Conv2d(4, 4, (3, 1), padding=(1, 0), bias=False, groups=4).double()
    skipped = NystromAttention(0.0, 4, 4, v_skip_connection=conv, conv_kernel_size=7)
    own = NystromAttention(0.0, 4, 4, conv_kernel_size=3).double()
    own.native.filters.data.copy_(conv.weight)
    torch.testing.assert_close(skipped(q, k, v), own(q, k, v), **EXACT)
    for fields in ({"v_skip_connection": conv}, {"landmark_pooling": nn.Identity()}):
        with pytest.raises(vf.ConfigError, match="is not causal"):
            NystromAttention(0.0, 4, 4, causal=True, **fields)


@pytest.mark.parametrize("causal", [True, False])
def test_landmarks_for_all_tokens_are_scaled_dot_product(causal: bool) -> None:
    q, k, v = folded(20)
    wanted = ScaledDotProduct(causal=causal)(q, k, v)
    torch.testing.assert_close(NystromAttention(0.0, 4, 20, causal=causal)(q, k, v), wanted, **EXACT)
    if not causal:
        torch.testing.assert_close(OrthoFormerAttention(0.0, 20)(q, k, v), wanted, **EXACT)


def test_causal_nystrom_sees_no_later_token() -> None:
    module = dispatch("nystrom", num_landmarks=4, causal=True)
    given = x().requires_grad_()
    for step in (0, 7, 22):
        (gradient,) = torch.autograd.grad(module(given)[:, : step + 1].sum(), given)
        assert not gradient[:, step + 1 :].any()
        later = torch.cat((x()[:, : step + 1], 5 * x(seed=9)[:, step + 1 :]), 1)
        assert torch.equal(module(later)[:, : step + 1], module(x())[:, : step + 1])
    assert bool(torch.autograd.grad(module(given)[:, -1].sum(), given)[0].any(-1).all())


def test_a_lambda_is_summed_over_the_context() -> None:
    """Upstream normalised keys over features, and gave a position the lambda of its own value alone."""
    attention = LambdaLayer(0.0, 8, 4).double()
    q, k, v = (x(6, seed, batch=1)[..., :4] for seed in range(3))
    wanted = torch.zeros(1, 6, 4, dtype=torch.float64)
    for n in range(6):
        lambdas = k.softmax(1).transpose(1, 2) @ v
        for m in range(6):
            lambdas = lambdas + attention.native.rel_pos_emb[m - n + 7][None, :, None] * v[:, m, None]
        wanted[:, n] = (q[:, n, None] @ lambdas)[:, 0]
    torch.testing.assert_close(attention(q, k, v), wanted, **EXACT)


def test_random_landmarks_are_the_same_in_a_reloaded_model() -> None:
    for selection in LandmarkSelection:
        one, two = (dispatch("orthoformer", seed, num_landmarks=4, landmark_selection=selection) for seed in (0, 1))
        two.load_state_dict(one.state_dict())
        assert torch.equal(two(x()), one(x()))
        assert isinstance(one.attention.landmark_selection, LandmarkSelection)
    with pytest.raises(KeyError, match="did you mean 'kmeans'"):
        dispatch("orthoformer", landmark_selection="kmean")


def test_fewer_tokens_than_landmarks_need_no_selection() -> None:
    """Upstream crashed there."""
    q, k, v = folded(6)
    torch.testing.assert_close(OrthoFormerAttention(0.0, 7)(q, k, v), ScaledDotProduct()(q, k, v), **EXACT)


def test_models_of_the_dialect_take_them() -> None:
    for name, causal in (("linformer", None), ("nystrom", True), ("orthoformer", None), ("lambda", True)):
        attention = {"name": name, "dropout": 0, "seq_len": 9, "num_landmarks": 4, "causal": causal}
        heads = {"num_heads": 2, "attention": attention}
        model = xFormer(encoder(multi_head_config=heads, num_layers=2)).double().eval()
        ids = torch.arange(18).view(2, 9) % 11
        mask = torch.arange(9) < torch.tensor([[6], [9]])
        out = model(ids, encoder_input_mask=mask)
        torch.testing.assert_close(out[:1, :6], model(ids[:1, :6]), **EXACT)


# ---- helpers ----


def test_the_iterative_inverse() -> None:
    matrices = torch.randn(3, 5, 5, dtype=torch.float64).softmax(-1)
    exact = torch.linalg.pinv(matrices)
    torch.testing.assert_close(iterative_pinv(matrices, 30), exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(iterative_pinv(matrices, 30, True), exact, rtol=0, atol=1e-8)
    start = matrices.transpose(-1, -2) / matrices.sum(-2).max()
    torch.testing.assert_close(iterative_pinv(matrices, 0, pinverse_original_init=True), start)
    torch.testing.assert_close(iterative_pinv(matrices[0], 0), matrices[0].T / matrices[0].sum(0).max())
    assert iterative_pinv(torch.rand(2, 3, 4).softmax(-1), 20).shape == (2, 4, 3)


def test_masks_are_merged_for_folded_heads() -> None:
    padding = torch.tensor([[True, True, False], [True, False, False]])
    by_head = reshape_key_padding_mask(padding, 4)
    assert by_head.tolist() == [[[True, True, False]]] * 2 + [[[True, False, False]]] * 2
    lower = torch.ones(3, 3, dtype=torch.bool).tril()
    merged = maybe_merge_masks(lower, padding, 2, 3, 2)
    assert merged is not None
    assert torch.equal(merged, lower & by_head)
    assert maybe_merge_masks(None, None, 2, 3, 2) is None
    alone = maybe_merge_masks(None, padding, 2, 3, 2, tgt_len=5)
    assert alone is not None
    assert torch.equal(alone, by_head.expand(-1, 5, -1))
    added = maybe_merge_masks(torch.ones(3, 3), padding, 2, 3, 2)
    assert added is not None
    assert torch.equal(added, torch.ones(4, 3, 3).masked_fill(~by_head, -torch.inf))
    assert bool_mask_to_additive(padding, torch.float64).tolist()[0] == [0, 0, -torch.inf]
    for bad in (lambda: maybe_merge_masks(None, padding, 2, 4, 2), lambda: reshape_key_padding_mask(padding, 3)):
        with pytest.raises(AssertionError, match="key_padding_mask"):
            bad()


def test_a_native_nystrom_is_what_the_dialect_builds() -> None:
    module = dispatch("nystrom", num_landmarks=8, inv_iterations=3)
    assert isinstance(module, MultiHeadDispatch)
    spec = module.attention.spec
    assert (spec["landmarks"], spec["iterations"], spec["heads"]) == (8, 3, 4)
    q, k, v = (t.view(2, 4, SEQ, 4) for t in folded())
    native = vf.build(NativeNystrom.spec(landmarks=8, iterations=3)).double()
    torch.testing.assert_close(module.attention(q, k, v), native(q, k, v, Sides()), **EXACT)
