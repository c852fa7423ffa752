"""A lowered model computes what the model does: values and gradients, with every stream that it reads."""

import pytest
import torch

import variform as vf
from tests.lower.models import SMALL, arrangements, call, every, layer, presets, sublayer, tensors, transformer
from variform.dialects.configaformers.model_builder import ConfigaFormer
from variform.errors import ConfigError
from variform.lower import lower

CASES = every()
USUAL = ((), ("valid",), ("source_valid", "target_valid"))
OTHERS = (
    ("segments",),
    ("valid", "segments"),
    ("positions",),
    ("mask", "valid"),
    ("source_valid",),
    ("target_valid", "segments"),
)


def built(spec, depth="parts", streams=(), dtype=torch.float64):
    low = lower(spec, depth=depth, streams=streams)
    torch.manual_seed(0)
    model, program = vf.build(spec), vf.build(low)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    program.load_state_dict(low.transfer(model.state_dict()))
    return model.to(dtype).eval(), program.to(dtype).eval(), low


def possible(name, sets):
    for streams in sets:
        try:
            lower(CASES[name], streams=streams)
        except ConfigError as error:
            # the positions of images are fixed, and documents and masks say nothing about class tokens
            assert "reads no stream" in str(error) or (name == "class tokens" and "the tokens are" in str(error)), error  # noqa: PT017
            continue
        yield streams


def compare(name, depth, streams):
    model, program, low = built(CASES[name], depth, streams)
    given = tensors(low)
    try:
        expected = call(model, given)
    except vf.ShapeError as refused:  # a window in another document, say: the program refuses it too
        with pytest.raises(vf.ShapeError, match=str(refused)[:20]):
            program(given)
        return
    torch.testing.assert_close(program(given)["x"], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", ["parts", "ops"])
@pytest.mark.parametrize("name", list(CASES))
def test_values_are_those_of_the_model(name, depth):
    streams = list(possible(name, USUAL))
    compare(name, depth, streams[-1])


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["parts", "ops"])
@pytest.mark.parametrize("name", list(CASES))
def test_values_with_all_streams(name, depth):
    for streams in possible(name, (*USUAL, *OTHERS)):
        compare(name, depth, streams)


@pytest.mark.parametrize("depth", ["parts", "ops"])
@pytest.mark.parametrize("name", ["gpt tied", "llama", "seq2seq tied", "shared layer", "shared attention", "post norm"])
def test_gradients_are_those_of_the_model(name, depth):
    model, program, low = built(CASES[name], depth)
    given = tensors(low)
    call(model, given).square().sum().backward()
    program(given)["x"].square().sum().backward()
    theirs = {name: p.grad for name, p in model.named_parameters()}
    moved = low.transfer({name: p.grad for name, p in model.named_parameters(remove_duplicate=False)})
    ours = dict(program.named_parameters())
    assert len(ours) == len(theirs)  # what is shared is shared
    for place, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, moved[place], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("depth", ["parts", "ops"])
@pytest.mark.parametrize("name", list(presets()))
def test_presets_are_equal_to_the_last_bit(name, depth):
    model, program, low = built(CASES[name], depth, dtype=torch.float32)
    given = {k: v.float() if v.is_floating_point() else v for k, v in tensors(low).items()}
    assert torch.equal(program(given)["x"], call(model, given))


@pytest.mark.parametrize("depth", ["parts", "ops"])
def test_training_draws_the_same_dropout(depth):
    attention = {"part": "multi_head", "attention": {"part": "softmax", "dropout": 0.2, "backend": "reference"}}
    spec = transformer(
        [
            layer(
                sublayer(attention, dropout=0.3, drop_path=0.5),
                sublayer({"part": "mlp", "dropout": 0.2}, layer_drop=0.5),
                sublayer({"part": "glu", "dropout": 0.2}, drop_path=0.5),
            )
        ]
        * 2,
        embedding={"part": "tokens", "dropout": 0.1},
    )
    model, program, low = built(spec, depth)
    model.train(), program.train()
    given = tensors(low)
    torch.manual_seed(3)
    expected = call(model, given)
    torch.manual_seed(3)
    torch.testing.assert_close(program(given)["x"], expected, rtol=1e-10, atol=1e-10)
    assert not torch.equal(program(given)["x"], expected)


def test_recomputation_is_kept():
    spec = transformer([sublayer("multi_head")] * 2)
    stack = spec["stacks"][0].replace(executor="checkpoint")
    assert lower(spec.replace(stacks=[stack])).spec["executor"] == "checkpoint"
    assert lower(spec).spec["executor"] == "plain"


def test_a_reversible_stack_stays_one_step():
    spec = transformer([layer(sublayer("multi_head"), sublayer({"part": "mlp"}))] * 2)
    spec = spec.replace(stacks=[spec["stacks"][0].replace(executor="reversible")])
    model, program, low = built(spec, "ops")
    given = tensors(low)
    torch.testing.assert_close(program(given)["x"], call(model, given), rtol=1e-10, atol=1e-10)
    assert low.spec["executor"] == "plain"


def test_equal_layers_are_equal_blocks():
    low = lower(CASES["gpt"])
    labels = [block["label"] for block in low.spec["lines"]]
    assert labels == ["Block #1", *["Block #2"] * 3, "Block #3"]
    assert low.spec["lines"][1] == low.spec["lines"][3]
    text = str(vf.build(low, device="meta").table)
    assert "Block #2, 3x\ncopy -> Input(s): x (BSZ, L, 24) - Output(s): residual (BSZ, L, 24)" in text


def test_what_has_no_ops_stays_a_step():
    steps = [step["op"].name for block in lower(CASES["biased"], depth="ops").spec["lines"] for step in block["lines"]]
    assert steps.count("multi_head") == 2
    dropped = transformer([sublayer("mlp", layer_drop=0.1)])
    steps = [step["op"].name for block in lower(dropped, depth="ops").spec["lines"] for step in block["lines"]]
    assert steps == ["embedding", "sublayer", "rms_norm", "linear"]


def test_shared_parts_held_by_a_whole_step_stay_whole():
    """The tokens are the head's too: cut into ops, they would be others."""
    low = lower(arrangements()["tied"], depth="ops")
    names = [
        step["op"].name if hasattr(step["op"], "args") else step["op"].spec.name
        for step in low.spec["lines"][0]["lines"]
    ]
    assert names == ["tokens"]


def test_a_program_is_itself():
    model = ConfigaFormer(
        {"blocks": [{"config": [{"type": "linear", "output_dim": 7}], "repeat": 1}]},
        {"x": ["B", "L", 5]},
        verbose=False,
    )
    low = lower(model)
    assert low.spec == model.spec
    again = vf.build(low)
    again.load_state_dict(low.transfer(model.state_dict()))
    x = torch.randn(2, 3, 5)
    assert torch.equal(again({"x": x})["x"], model({"x": x})["x"])
    with pytest.raises(ConfigError, match="leave streams out"):
        lower(model, streams=("valid",))


def test_a_layer_alone():
    spec = {"part": "sublayer", "body": {"part": "multi_head", "heads": 4}}
    low = lower(spec, depth="ops", streams=("valid",), dim=24)
    assert low.spec["inputs"] == {"x": ("BSZ", "L", 24), "valid": ("BSZ", "L")}
    with pytest.raises(ConfigError, match="there is no program for the head"):
        lower({"part": "lm", "vocab_size": 5}, dim=8)
    with pytest.raises(ConfigError, match="says how many features"):
        lower({"part": "layer", "sublayers": []})


def test_mistakes():
    gpt = CASES["gpt"]
    with pytest.raises(ConfigError, match="reads no stream 'vlaid'; did you mean 'valid'"):
        lower(gpt, streams=("vlaid",))
    with pytest.raises(ConfigError, match="reads no stream 'prefix'"):
        lower(CASES["x-transformers decoder"], streams=("prefix",))
    with pytest.raises(ConfigError, match="'parts' or 'ops'"):
        lower(gpt, depth="all")
    named = transformer([{"part": "publish", "stream": "residual"}, {"part": "add_stream", "stream": "residual"}])
    with pytest.raises(ConfigError, match="a use of its own for the name of the stream 'residual'"):
        lower(named)
    with pytest.raises(ConfigError, match="heads"):
        lower(vf.models.gpt(**{**SMALL, "heads": 5}, depth=1))


def test_a_decoder_alone_needs_its_context():
    layers = [sublayer("cross_attention")]
    low = lower(transformer(layers, dim_context=7), depth="ops", streams=("context_mask",))
    assert low.spec["inputs"]["context"] == ("BSZ", "L_context", 7)
    model, program, low = built(transformer(layers, dim_context=7), "ops", ("context_mask",))
    given = tensors(low)
    torch.testing.assert_close(program(given)["x"], call(model, given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", ["parts", "ops"])
@pytest.mark.parametrize("name", ["gpt", "llama", "shared layer", "x-transformers decoder"])
def test_a_causal_program_decodes_as_it_runs(name, depth):
    _, program, low = built(CASES[name], depth)
    ids = tensors(low)["ids"]
    state, outputs = program.init_state(3, 12), []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        out, state = program({"ids": ids[:, start:end]}, state=state)
        outputs.append(out["x"])
    torch.testing.assert_close(torch.cat(outputs, 1), program({"ids": ids})["x"], rtol=1e-10, atol=1e-10)
