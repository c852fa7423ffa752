import contextlib
import copy
import io
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import variform as vf
from tests.dialects.configaformers.programs import demo, feedforward
from variform.dialects.configaformers.attention_offset_module import get_alibi
from variform.dialects.configaformers.model_builder import ConfigaFormer, program_spec

TABLE = (Path(__file__).parent / "quick_demo.txt").read_text(encoding="utf-8")
SMALL = {"dim": 32, "heads": 4, "depth": 2, "vocab": 11, "rotate_dim": 4}


def build(**program: Any) -> ConfigaFormer:
    return ConfigaFormer(**program, verbose=False)


def small(length: int = 9, batch: int = 2, largest: int = 16) -> tuple[ConfigaFormer, dict[str, Tensor]]:
    model = build(**demo(**SMALL)).double()
    offset = get_alibi(num_heads=4, max_length=largest).double()
    return model, {"emb_ids": torch.randint(0, 11, (batch, length)), "attn_offset": offset}


# ---- the quick demo ----


def test_quick_demo_prints_its_table_and_has_its_parameters() -> None:
    printed = io.StringIO()
    with torch.device("meta"), contextlib.redirect_stdout(printed):
        model = ConfigaFormer(**demo())
    assert printed.getvalue() == TABLE
    assert str(model.table) + "\n" == TABLE
    assert sum(p.numel() for p in model.parameters()) == 167_023_441
    assert model.diagnostics == ()


def test_verbose_false_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    build(**demo(**SMALL))
    assert capsys.readouterr().out == ""


def test_checking_the_quick_demo_is_instant() -> None:
    def once() -> float:
        start = time.process_time()
        program_spec(**demo())
        return time.process_time() - start

    assert min(once() for _ in range(5)) < 0.05


@pytest.mark.slow
def test_quick_demo_runs() -> None:
    model = ConfigaFormer(**demo())
    offset = get_alibi(num_heads=12)
    inputs = {"emb_ids": torch.randint(0, 50257, (2, 1024)), "attn_offset": offset}
    with torch.no_grad():
        logits = model(inputs)["x"]
    assert logits.shape == (2, 1024, 50257)
    assert logits.isfinite().all()
    assert logits.view(-1, 50257).shape == (2048, 50257)
    assert inputs["attn_offset"] is offset


# ---- the same model, written by hand ----


class Plain(nn.Module):
    """The small demo without any of the library: weights are those of the program, in order."""

    def __init__(self, parameters: list[Tensor], dim: int, heads: int, depth: int, rotate_dim: int) -> None:
        super().__init__()
        self.p = parameters
        self.dim, self.heads, self.depth, self.rotate_dim = dim, heads, depth, rotate_dim

    def rotate(self, x: Tensor) -> Tensor:
        length, n = x.shape[-2], self.rotate_dim
        speed = 10000 ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
        angle = torch.outer(torch.arange(2048 - length, 2048, dtype=torch.float64), speed).repeat(1, 2)
        turned, rest = x[..., :n], x[..., n:]
        a, b = turned.chunk(2, -1)
        return torch.cat((turned * angle.cos() + torch.cat((-b, a), -1) * angle.sin(), rest), -1)

    def forward(self, ids: Tensor, offset: Tensor) -> Tensor:
        left = iter(self.p)

        def linear(x: Tensor) -> Tensor:
            return F.linear(x, next(left), next(left))

        def norm(x: Tensor) -> Tensor:
            return F.layer_norm(x, (self.dim,), next(left), next(left))

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        x = next(left)[ids]
        length = ids.shape[1]
        for _ in range(self.depth):
            y = norm(x)
            q, k, v = linear(y), linear(y), linear(y)
            q, k, v = self.rotate(split(q)), self.rotate(split(k)), split(v)
            scores = q @ k.mT / (self.dim // self.heads) ** 0.5 + offset[:, :, :length, :length]
            x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
            x = x + linear(F.gelu(linear(norm(x))))
        x = x + linear(F.gelu(linear(norm(x))))
        return linear(x)


def test_small_demo_equals_one_written_by_hand() -> None:
    model, inputs = small()
    plain = Plain(list(model.parameters()), 32, 4, 2, 4)
    expected = plain(inputs["emb_ids"], inputs["attn_offset"])
    got = model(inputs)["x"]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    weights = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_the_offset_makes_it_causal() -> None:
    model, inputs = small()
    before = model(inputs)["x"]
    inputs["emb_ids"][:, 5:] = (inputs["emb_ids"][:, 5:] + 1) % 11
    after = model(inputs)["x"]
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


# ---- what is passed in is left alone ----


def test_dicts_are_left_alone_and_serve_again() -> None:
    program = demo(**SMALL)
    before = copy.deepcopy(program)
    model, other = build(**program), build(**program)
    assert program == before
    assert model.spec == other.spec
    offset = get_alibi(num_heads=4, max_length=16)
    inputs = {"emb_ids": torch.randint(0, 11, (2, 9)), "attn_offset": offset}
    first = model(inputs)["x"]
    assert set(inputs) == {"emb_ids", "attn_offset"}
    assert inputs["attn_offset"] is offset
    assert torch.equal(model(inputs)["x"], first)
    longer = {**inputs, "emb_ids": torch.randint(0, 11, (3, 14))}
    assert model(longer)["x"].shape == (3, 14, 11)


def test_frozen_and_tuple_configs_are_taken() -> None:
    blocks = ({"config": ({"type": "Linear", "output_dim": 3},), "repeat": 2},)
    model = build(model_config={"blocks": blocks}, input_streams={"x": ("B", "L", 5)})
    assert model({"x": torch.randn(1, 2, 5)})["x"].shape == (1, 2, 3)
    assert "Linear -> " in str(model.table)


# ---- inputs ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"emb_ids": None}, ["'emb_ids' is missing"]),
        ({"emb_id": torch.zeros(2, 9)}, ["'emb_id' is no input", "did you mean 'emb_ids'"]),
        ({"emb_ids": torch.zeros(2, 9, 1).long()}, ["'emb_ids'", "(BSZ, L_in)", "[2, 9, 1]"]),
        ({"emb_ids": torch.zeros(2, 9)}, ["integer ids", "float32"]),
        ({"emb_ids": torch.full((2, 9), 11)}, ["[0, 11)"]),
        ({"attn_offset": torch.zeros(1, 4, 8, 9)}, ["'attn_offset'", "must be 9 or more", "L_in = 9"]),
        ({"attn_offset": torch.zeros(3, 4, 9, 9)}, ["'attn_offset'", "must be 2", "BSZ = 2"]),
        ({"attn_offset": torch.zeros(1, 5, 9, 9)}, ["'attn_offset'", "must be 4"]),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, Any], words: list[str]) -> None:
    model, inputs = small()
    given = {name: value for name, value in {**inputs, **change}.items() if value is not None}
    with pytest.raises(vf.ShapeError) as caught:
        model(given)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    if "emb_id" in change or change.get("emb_ids", 0) is None:
        assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_larger_offset_is_trimmed(batch: int) -> None:
    model, inputs = small()
    exact = {**inputs, "attn_offset": inputs["attn_offset"][:, :, :9, :9].expand(batch, -1, -1, -1)}
    assert torch.equal(model(inputs)["x"], model(exact)["x"])


# ---- outputs and diagnostics ----


def test_what_is_left_unread_is_returned() -> None:
    config = [{"type": "linear", "output_name": "y"}, {"type": "linear", "output_name": "z", "output_dim": 2}]
    program = {"model_config": {"blocks": [{"config": config, "repeat": 1}]}, "input_streams": {"x": ["B", "L", 5]}}
    x = torch.randn(1, 2, 5)
    assert set(build(**program)({"x": x})) == {"y", "z"}
    assert set(build(**program, output_streams=["z"])({"x": x})) == {"z"}
    with pytest.raises(vf.ConfigError, match=r"output_streams.*'v'"):
        build(**program, output_streams=["v"])


def test_unread_streams_are_listed() -> None:
    program = demo(**SMALL)
    del program["model_config"]["blocks"][1]["config"][10]
    found = build(**program).diagnostics
    assert [problem.path for problem in found] == ["inputs.attn_offset"]


def test_copies_with_other_shapes_are_shown() -> None:
    config = [{"type": "activation", "activation_function": ["gelu", "none"]}]
    blocks = [{"config": config, "repeat": 2}]
    table = str(build(model_config={"blocks": blocks}, input_streams={"x": ["B", "L", 32]}).table)
    assert "x (BSZ, L, 32) - Output(s): x (BSZ, L, 16)" in table
    assert "x (BSZ, L, 16) - Output(s): x (BSZ, L, 8)" in table


# ---- bad configs: before anything is allocated, all at once, with their places ----


def refused(config: Any, streams: Any = None, repeat: int = 1) -> vf.ConfigError:
    blocks = [{"config": config, "repeat": repeat}]
    with pytest.raises(vf.ConfigError) as caught:
        build(model_config={"blocks": blocks}, input_streams=streams or {"x": ["B", "L_in", 32]})
    return caught.value


@pytest.mark.parametrize(
    ("module", "upstream", "path", "words"),
    [
        ({"type": "lineer"}, TypeError, "type", "did you mean 'linear'"),
        ({"output_dim": 3}, AssertionError, "type", "needs a type"),
        (3, AssertionError, "", "a module is a dict"),
        ({"type": "linear", "out_dim": 3}, KeyError, "out_dim", "did you mean 'output_dim'"),
        ({"type": "linear", "output_dim": 3.0}, AssertionError, "output_dim", "must be int"),
        ({"type": "linear", "output_dim": True}, AssertionError, "output_dim", "must be int"),
        ({"type": "linear", "output_dim": 0}, AssertionError, "output_dim", "at least 1"),
        ({"type": "linear", "input_name": "X2"}, KeyError, "", "reads 'X2'"),
        ({"type": "linear", "input_name": 2}, AssertionError, "input_name", "must be str"),
        ({"type": "embedding", "output_dim": 3}, AssertionError, "num_classes", "needs this key"),
        ({"type": "make_stream"}, AssertionError, "output_name", "needs this key"),
        ({"type": "norm", "norm_type": "rmsnorm"}, TypeError, "norm_type", "did you mean 'rms_norm'"),
        ({"type": "activation", "activation_function": "gello"}, TypeError, "activation_function", "'gelu'"),
        ({"type": "activation", "activation_function": []}, TypeError, "activation_function", "at least one"),
        (
            {"type": "activation", "activation_function": ["none"] * 3},
            AssertionError,
            "activation_function",
            "3 divides",
        ),
        ({"type": "make_heads", "num_heads": 5}, AssertionError, "", "5 heads do not divide 32"),
        ({"type": "rope", "rotate_dim": 3}, AssertionError, "rotate_dim", "even"),
        ({"type": "rope", "rotate_dim": 34}, AssertionError, "", "34 features are to be rotated, and there are 32"),
        ({"type": "mha_dots"}, AssertionError, "", "[B, H, Lq, D]"),
        ({"type": "mha_sum", "attn_function": "softmx"}, TypeError, "attn_function", "did you mean 'softmax'"),
    ],
)
def test_a_bad_module_is_named(module: Any, upstream: type[Exception], path: str, words: str) -> None:
    error = refused([{"type": "linear"}, module])
    (problem,) = error.problems
    assert problem.path == ("blocks.0.config.1." + path).strip(".")
    assert "Block #1, line 2" in problem.message
    assert words in str(error)
    assert isinstance(error, upstream)


def test_all_mistakes_are_reported_at_once_and_once() -> None:
    config = [
        {"type": "norm", "norm_typ": "layer_norm", "output_name": "n"},
        {"type": "linear", "output_dim": 30, "output_name": "q"},
        {"type": "make_heads", "input_name": "q", "num_heads": 4, "output_name": "q"},
        {"type": "linear", "input_name": "qq"},
        {"type": "merge_streams", "input_name_1": "q", "input_name_2": "n"},
    ]
    error = refused(config, repeat=12)
    assert [problem.path for problem in error.problems] == [
        "blocks.0.config.0.norm_typ",
        "blocks.0.config.2",
        "blocks.0.config.3",
    ]


def test_a_mismatch_names_both_shapes_and_the_lines_they_come_from() -> None:
    config = [
        {"type": "make_stream", "output_name": "residual"},
        {"type": "linear", "output_dim": 16},
        {"type": "merge_streams", "input_name_1": "residual"},
    ]
    text = str(refused(config))
    assert "Block #1, line 3 (merge_streams)" in text
    assert "residual (BSZ, L_in, 32) from Block #1, line 1 (make_stream)" in text
    assert "x (BSZ, L_in, 16) from Block #1, line 2 (linear)" in text


def test_a_later_copy_that_breaks_is_named() -> None:
    text = str(
        refused(
            [
                {"type": "linear", "output_dim": 16, "output_name": "y"},
                *feedforward(32)[:2],
                {"type": "activation", "activation_function": ["gelu", "none"]},
            ],
            repeat=7,
        )
    )
    assert "Block #1, repeat 6, line 4" in text


def test_lengths_with_different_names_are_not_merged() -> None:
    streams = {"x": ["B", "L_in", 8], "y": ["B", "L_ctx", 8]}
    text = str(refused([{"type": "merge_streams", "input_name_1": "y"}], streams))
    assert "L_ctx is not L_in" in text


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ([], "blocks"),
        ({"block": []}, ""),
        ({"blocks": {}}, "blocks"),
        ({"blocks": []}, "blocks"),
        ({"blocks": [3]}, "blocks.0"),
        ({"blocks": [{"config": [{"type": "linear"}]}]}, "blocks.0.repeat"),
        ({"blocks": [{"config": [{"type": "linear"}], "repeat": -1}]}, "blocks.0.repeat"),
        ({"blocks": [{"config": [{"type": "linear"}], "repeats": 1, "repeat": 1}]}, "blocks.0.repeats"),
        ({"blocks": [{"config": {"type": "linear"}, "repeat": 1}]}, "blocks.0.config"),
    ],
)
def test_bad_blocks_are_named(config: Any, path: str) -> None:
    with pytest.raises(vf.ConfigError) as caught:
        build(model_config=config, input_streams={"x": ["B", "L", 4]})
    assert caught.value.problems[0].path == path


@pytest.mark.parametrize("streams", [{}, None, {"x": 3}, {"x": []}, {"x": ["B", "L in", 4]}, {"x": ["B", "L", 0]}])
def test_bad_input_streams_are_named(streams: Any) -> None:
    with pytest.raises(vf.ConfigError) as caught:
        build(model_config={"blocks": [{"config": [{"type": "linear"}], "repeat": 1}]}, input_streams=streams)
    assert caught.value.problems[0].path.startswith("input_streams")


# ---- a model like any other ----


def test_its_spec_is_a_native_one_that_round_trips() -> None:
    model, inputs = small()
    assert vf.from_yaml(vf.to_yaml(model.spec)) == model.spec
    native = vf.build(vf.from_yaml(vf.to_yaml(model.spec))).double()
    native.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(native(inputs)["x"], model(inputs)["x"])


def test_pickle_and_deepcopy_are_independent() -> None:
    model, inputs = small()
    wanted = model(inputs)["x"]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(inputs)["x"], wanted)
        assert str(twin.table) == str(model.table)
        with torch.no_grad():
            next(twin.parameters()).zero_()
        assert torch.equal(model(inputs)["x"], wanted)


def test_rotary_tables_follow_a_cast_exactly() -> None:
    model = build(**demo(**SMALL))
    there_and_back = copy.deepcopy(model).bfloat16().double()
    for (name, a), (_, b) in zip(model.double().named_buffers(), there_and_back.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_example_inputs_fit() -> None:
    model, _ = small()
    (inputs,), more = model.float().example_inputs(3, 5)
    assert more == {}
    assert model(inputs)["x"].shape == (3, 5, 11)
    with pytest.raises(vf.ConfigError):
        model.init_state(2, 8)


def test_bfloat16_runs() -> None:
    model, inputs = small()
    model = model.bfloat16()
    out = model({**inputs, "attn_offset": inputs["attn_offset"].bfloat16()})["x"]
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
