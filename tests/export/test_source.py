"""Standalone files: bit-equal to the model, formatted, and honest about what has none."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from tests.dialects.configaformers.programs import demo
from tests.export.standalone import compare
from variform.cli import main
from variform.dialects.configaformers import program_layer
from variform.dialects.configaformers.model_builder import ConfigaFormer
from variform.dialects.x_transformers import Decoder, TransformerWrapper
from variform.dialects.xformers.factory import xFormer, xFormerConfig
from variform.export import convert_weights, to_file, to_source
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import FeedForward, Streams
from variform.testing import Case, samples_of
from variform.testing.hosts import Setting

SIZES: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4}
TEXT: dict[str, Any] = {"vocab_size": 11, "max_seq_len": 24, **SIZES}
SMALL: dict[str, Any] = {"dim": 24, "heads": 3, "depth": 3, "vocab": 17, "rotate_dim": 8}


def program(**options: Any) -> vf.Spec:
    return ConfigaFormer(**demo(**SMALL), verbose=False, **options).spec


def shared_program() -> vf.Spec:
    """Two steps with one linear map, in a block that stands three times, and sizes computed with."""
    step = {"part": "step", "op": vf.Shared("map", vf.from_dict({"part": "op/linear", "dim": 16}))}
    half = {"part": "step", "op": {"part": "op/cut", "start": "L//2", "axis": 1}, "into": ["late"]}
    gone = {"part": "step", "op": {"part": "op/cut", "start": -2, "axis": -1}, "reads": ["late"], "into": ["late"]}
    norm = {"part": "step", "op": "rms_norm"}
    blocks = [{"part": "block", "lines": [step, norm, step], "label": "twice"}] * 3
    found: vf.Spec = vf.from_dict(
        {
            "part": "model/program",
            "lines": [*blocks, half, gone],
            "inputs": {"x": ["B", "L", 16]},
            "outputs": ["x", "late"],
        }
    )
    return found


def gpt_with_a_program() -> vf.Spec:
    """A plain model of which one feedforward is a program."""
    gated = program_layer(
        [
            {"type": "linear", "output_dim": "8*d"},
            {"type": "activation", "activation_function": ["sigmoid", "none"]},
            {"type": "linear", "output_dim": "d"},
        ],
        sizes={"d": 16},
    )
    return vf.override(vf.models.gpt(**TEXT), {"stacks.0.layers.1.sublayers.1.body": gated})


def x_transformers_decoder() -> vf.Spec:
    layers = Decoder(dim=32, depth=2, heads=4, rotary_pos_emb=True, ff_glu=True, sandwich_norm=True)
    found: vf.Spec = TransformerWrapper(num_tokens=11, max_seq_len=24, attn_layers=layers).spec
    return found


def xformers_pair() -> vf.Spec:
    attention: dict[str, Any] = {"name": "scaled_dot_product", "dropout": 0.0}
    heads: dict[str, Any] = {"num_heads": 4, "residual_dropout": 0.0, "attention": {**attention, "causal": False}}
    both: dict[str, Any] = {
        "num_layers": 2,
        "dim_model": 32,
        "residual_norm_style": "pre",
        "position_encoding_config": {"name": "vocab", "seq_len": 24, "vocab_size": 11},
        "feedforward_config": {"name": "MLP", "dropout": 0.0, "activation": "relu", "hidden_layer_multiplier": 4},
    }
    encoder = {**both, "block_type": "encoder", "multi_head_config": heads}
    decoder = {
        **both,
        "block_type": "decoder",
        "multi_head_config_masked": {**heads, "attention": {**attention, "causal": True}},
        "multi_head_config_cross": heads,
    }
    found: vf.Spec = xFormer.from_config(xFormerConfig([encoder, decoder])).spec
    return found


MODELS = {
    "gpt": lambda: vf.models.gpt(**TEXT),
    "gpt_tied": lambda: vf.models.gpt(**TEXT, tie=True, bias=True, dropout=0.1, kv_heads=2, init_std=None),
    "llama": lambda: vf.models.llama(**TEXT, kv_heads=2),
    "mistral": lambda: vf.models.llama(**{**TEXT, "max_seq_len": None}, window=3, rope_layout="interleaved"),
    "bert": lambda: vf.models.bert(**TEXT),
    "bert_classes": lambda: vf.models.bert(**TEXT, classes=3, dropout=0.1),
    "vit": lambda: vf.models.vit(image_size=16, patch_size=4, classes=5, drop_path=0.1, **SIZES),
    "vit_mean": lambda: vf.models.vit(image_size=16, patch_size=8, pool="mean", **SIZES),
    "seq2seq": lambda: vf.models.seq2seq(**TEXT),
    "seq2seq_tied": lambda: vf.models.seq2seq(**TEXT, tie=True),
    "demo": program,
    "demo_literal": lambda: program(attention="literal"),
    "shared_program": shared_program,
    "gpt_program": gpt_with_a_program,
    "x_transformers": x_transformers_decoder,
    "xformers": xformers_pair,
}


QUICK = ("gpt_tied", "mistral", "seq2seq_tied", "vit", "demo", "shared_program")


def test_models_are_bit_equal(tmp_path: Path) -> None:
    compare({name: MODELS[name]() for name in QUICK}, tmp_path)


@pytest.mark.slow
def test_more_models_are_bit_equal(tmp_path: Path) -> None:
    compare({name: make() for name, make in MODELS.items() if name not in QUICK}, tmp_path)


@pytest.mark.parametrize("name", ["linear", "favor", "cosformer", "retention", "gated_linear", "delta_rule"])
def test_a_default_that_stands_for_none_stays(name: str) -> None:
    """`if state is None: state = ...` in a function that every call gives None."""
    text = to_source(vf.override(vf.models.gpt(**TEXT), {"stacks.0.layers.*.sublayers.0.body.attention": name}))
    assert "None." not in text


def hosted(part: type[vf.Part]) -> dict[str, vf.Spec]:
    """The models that the contract suite puts around the instances of a part."""
    found = {}
    for number, sample in enumerate(samples_of(part)):
        case = Case(sample)
        found[f"{part.kind}_{part.name}_{number}"] = case.host(case.setting())
    return found


NO_HOST = {"op/count_positions", "op/drop_path", "op/rearrange", "op/unembed"}
"""Ops that the suite checks without a model around them."""


def test_experts_and_patches_are_bit_equal(tmp_path: Path) -> None:
    chosen = ("feedforward/mixture_of_experts", "feedforward/expert_choice", "layer/patch_merging", "embedding/image")
    specs: dict[str, vf.Spec] = {}
    for name in chosen:
        kind, short = name.split("/")
        specs.update(hosted(vf.parts()[kind, short]))
    compare(specs, tmp_path)


def test_attention_over_patterns_is_bit_equal(tmp_path: Path) -> None:
    specs: dict[str, vf.Spec] = {}
    for name in ("global", "longformer", "bigbird", "random", "blocksparse", "shifted_windows"):
        specs.update(hosted(vf.parts()["attention", name]))
    specs.update(hosted(vf.parts()["bias", "window"]))
    for shift in (0, 1):
        windows = {"part": "shifted_windows", "window": 2, "shift": shift}
        bias = {"part": "bias/window", "columns": 4, "window": [2, 2]}
        mixer = {"part": "multi_head", "attention": windows, "position_bias": bias, "kv_heads": 1}
        vit = vf.models.vit(image_size=16, patch_size=4, dim=16, depth=2, heads=2, classes=3, pool="mean")
        specs[f"swin_{shift}"] = vf.override(vit, {"stacks.0.layers.*.sublayers.0.body": mixer})
    compare(specs, tmp_path)


REFUSED = {
    "attention/delta",
    "attention/ends_together",
    "attention/gated",
    "attention/head_scale",
    "attention/hybrid",
    "attention/l2_distance",
    "attention/laser",
    "attention/limited",
    "attention/orthogonal_values",
    "attention/prefix",
    "attention/rotated",
    "attention/score_residual",
    "attention/value_norm",
    "attention/value_residual",
    "embedding/deep",
    "embedding/summed",
    "key_values/latent",
    "key_values/linear",
    "layer/branch_start",
    "memory/with_length",
    "mixer/folded",
    "mixer/projected_attention",
    "mixer/projected_cross_attention",
    "nonlinearity/user_module",
    "projection/glu",
    "projection/head_order",
    "projection/identity",
    "projection/linear",
    "projection/low_rank",
    "residual/gated_multi",
    "residual/hyper_connection",
    "residual/mean_split",
    "scoring/cope",
    "scoring/forget",
    "scoring/forget_rows",
    "scoring/projected_distance",
    "scoring/selective",
    "scoring/soft_cap",
    "scoring/talking_heads",
    "stack/multi_stream",
    "weighting/custom",
    "weighting/gumbel",
    "weighting/hard",
    "weighting/inverted",
    "weighting/scaled_by_heads",
    "weighting/sigmoid",
    "weighting/signed",
    "weighting/sink",
    "weighting/talking_heads",
    "weighting/top_k",
}
"""Parts that a file cannot have: each is refused by name. Nothing else of the registry may be."""


def is_exported(spec: vf.Spec) -> bool:
    """Whether every part has a standalone form; what has none is refused in these words."""
    try:
        to_source(spec)
    except vf.ConfigError as error:
        if any("no standalone form" not in problem.message for problem in error.problems):
            raise
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_registered_part_is_bit_equal(tmp_path: Path) -> None:
    specs: dict[str, vf.Spec] = {}
    refused = set()
    for (kind, name), part in vf.parts().items():
        if part.__module__.startswith("variform.") and f"{kind}/{name}" not in NO_HOST:
            found = {at: spec for at, spec in hosted(part).items() if is_exported(spec)}
            refused |= set() if found else {f"{kind}/{name}"}
            specs.update(found)
    assert refused == REFUSED
    compare(specs, tmp_path)


def test_files_are_formatted_and_import_torch_alone(tmp_path: Path) -> None:
    for name in (*QUICK, "gpt_program", "x_transformers", "xformers"):
        text = to_source(MODELS[name]())
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
        assert "torch" in imported
        assert imported <= {"torch", *sys.stdlib_module_names}
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    assert ruff is not None
    config = Path(__file__).parents[2] / "pyproject.toml"
    for command in (["format", "--check", "--diff"], ["check"]):
        done = subprocess.run([ruff, *command, "--config", config, tmp_path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_runs_as_a_script(tmp_path: Path) -> None:
    path = to_file(MODELS["demo"](), tmp_path / "demo.py")
    done = subprocess.run([sys.executable, "-I", path], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "27,281 parameters\nx (2, 16, 17)\n"


def test_keys_are_those_of_the_model() -> None:
    model = vf.build(MODELS["gpt_tied"]())
    assert list(standalone(model).state_dict()) == list(model.state_dict())


def standalone(model: Any) -> Any:
    names: dict[str, Any] = {"__name__": "standalone"}
    exec(to_source(model), names)
    found = names["make_model"]()
    names["load_weights"](found, model.state_dict())
    return found


def test_shared_modules_stay_shared() -> None:
    found = standalone(vf.build(MODELS["gpt_tied"]()))
    assert found.head.embedding is found.embedding
    found = standalone(vf.build(shared_program()))
    maps = [child for block in found.blocks for child in (block.linear, block.linear_2)]
    assert len(maps) == 6
    assert all(one is maps[0] for one in maps)
    assert len(list(found.parameters())) == len(list(vf.build(shared_program()).parameters()))


def test_wrong_weights_are_refused() -> None:
    model = vf.build(program())
    names: dict[str, Any] = {"__name__": "standalone"}
    exec(to_source(model), names)
    weights = dict(model.state_dict())
    found = names["make_model"]()
    with pytest.raises(KeyError, match="no weights of these names"):
        names["load_weights"](found, {**weights, "lines.9.op.weight": torch.zeros(1)})
    weights.popitem()
    with pytest.raises(KeyError):
        names["load_weights"](found, weights)


def test_training_starts_as_the_model_does() -> None:
    spec = MODELS["gpt"]()
    names: dict[str, Any] = {"__name__": "standalone"}
    exec(to_source(spec), names)
    ours, theirs = vf.build(spec), names["make_model"]()
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert abs(float(a.std()) - float(b.std())) < 0.3 * max(float(a.std()), 1e-3), name


def test_repeats_are_folded() -> None:
    deep = to_source(vf.models.gpt(**{**TEXT, "depth": 48}))
    assert "for _ in range(48)" in deep
    assert abs(len(deep) - len(to_source(vf.models.gpt(**TEXT)))) < 100


class Opaque(FeedForward):
    """A part that works with what stays behind."""

    def __init__(self, dim: int = vf.INHERIT) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Ask the registry."""
        return x * len(vf.parts("norm"))


def test_parts_without_a_standalone_form_are_named_all_at_once() -> None:
    vf.register("opaque")(Opaque)
    try:
        spec = vf.models.gpt(**TEXT)
        for layer in (0, 1):
            spec = vf.override(spec, [f"stacks.0.layers.{layer}.sublayers.1.body={{part: opaque}}"])
        with pytest.raises(vf.ConfigError) as caught:
            to_source(spec)
    finally:
        from variform.core.registry import unregister

        unregister("feedforward", "opaque")
    paths = [problem.path for problem in caught.value.problems]
    assert paths == [f"stacks.0.layers.{layer}.sublayers.1.body" for layer in (0, 1)]
    assert "'opaque'" in str(caught.value)


def test_a_backend_asked_for_by_name_is_not_replaced() -> None:
    spec = vf.override(vf.models.gpt(**TEXT), ["stacks.0.layers.0.sublayers.0.body.attention.backend=reference"])
    with pytest.raises(vf.ConfigError, match="reference"):
        to_source(spec)


def test_a_reversible_stack_has_no_file() -> None:
    with pytest.raises(vf.ConfigError, match="reversible"):
        to_source(vf.override(vf.models.gpt(**TEXT), ["stacks.0.executor=reversible"]))


def test_a_part_of_a_user_is_exported() -> None:
    case = Case(samples_of(SoftmaxAttention)[0])
    assert "class SoftmaxAttention" in to_source(case.host(Setting()))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "model.json"
    spec = vf.models.gpt(**TEXT, tie=True)
    vf.save(spec, config)
    model = vf.build(spec)
    vf.save_weights(model, tmp_path / "saved.safetensors")
    out, new = tmp_path / "model.py", tmp_path / "new.safetensors"
    command = ["export", str(config), str(out), "--weights", str(tmp_path / "saved.safetensors"), str(new), "--json"]
    assert main(command) == 0
    assert '"lines"' in capsys.readouterr().out
    from safetensors.torch import load_file

    names: dict[str, Any] = {"__name__": "standalone"}
    exec(out.read_text(encoding="utf-8"), names)
    found = names["make_model"]()
    found.load_state_dict(load_file(new), strict=True)
    ids = torch.randint(11, (2, 5))
    assert torch.equal(found.eval()(ids), model.eval()(ids))
    assert main(["export", str(config), str(tmp_path / "model.txt")]) == 2
    assert "ends in .py" in capsys.readouterr().err


def test_wrong_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(vf.ConfigError, match=r"ends in \.py"):
        to_file(vf.models.gpt(**TEXT), tmp_path / "model.pt")
    with pytest.raises(vf.ConfigError, match=r"ends in \.safetensors"):
        convert_weights(vf.models.gpt(**TEXT), tmp_path / "a.safetensors", tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"part": "softmax", "weights": "sink"}, "changes of scores and weights are left to the library"),
        ({"part": "softmax", "scores": ["soft_cap"]}, "changes of scores and weights are left to the library"),
        ({"part": "local", "window": 4, "memory": "zero"}, "a window beside a memory"),
    ],
)
def test_changed_scores_are_not_left_out(attention: dict[str, Any], message: str) -> None:
    layer = {"part": "sublayer", "body": {"part": "multi_head", "attention": attention}}
    model = {
        "part": "transformer",
        "dim": 16,
        "heads": 4,
        "causal": True,
        "vocab_size": 11,
        "embedding": {"part": "tokens"},
        "stacks": [{"part": "stack", "layers": [layer]}],
    }
    with pytest.raises(vf.ConfigError, match=message):
        to_source(model)
