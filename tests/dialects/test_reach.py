"""Every attention and mixer is registered once and reached from every dialect and preset, computing the same part."""

from typing import Any

import pytest
import torch

import variform as vf
from variform.core.fields import fields_of
from variform.core.part import Part
from variform.core.spec import Spec
from variform.dialects.configaformers import program_spec
from variform.dialects.x_transformers import Decoder, Encoder, TransformerWrapper
from variform.dialects.xformers.components.attention import build_attention
from variform.dialects.xformers.factory import xFormer, xFormerConfig
from variform.models.mixing import begun
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.mixer.multi_head import MultiHead
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer
from variform.testing.samples import samples_of

LENGTH, DIM, HEADS = 16, 16, 4
PARTS = {
    f"{kind}/{name}": part
    for kind in ("attention", "mixer")
    for (_, name), part in vf.parts(kind).items()
    if not {"context", "context_positions"} & part.reads and part is not MultiHead and not hasattr(part, "adopted")
}
HANDED = {label: part.publishes({}) for label, part in PARTS.items()}
"""What goes on from one attention to the next."""
SLOTS = {"scoring": "scores", "weighting": "weights", "memory": "memory"}
"""Kinds of what softmax attention is made of, and the slots for them; `with_length` is for attention by distance."""
SLOTTED = [f"{kind}/{name}" for kind in SLOTS for _, name in vf.parts(kind) if name != "with_length"]
SMALL = {"shifted_windows": {"window": 2}}
"""Fields whose default is too large for the sequences here."""
SIZES = {"vocab_size": 11, "dim": DIM, "depth": 1, "heads": HEADS, "max_seq_len": LENGTH}


def described(part: type[Part], **facts: Any) -> Spec:
    """The smallest instance; `facts` are given where the dialect's surroundings do not say them."""
    sample, known = samples_of(part)[0].spec, {f.name: f for f in fields_of(part)}
    given = {name: sample[name] for name, field in known.items() if field.required}
    return Spec(
        part, {**given, **SMALL.get(part.name, {}), **{name: value for name, value in facts.items() if name in known}}
    )


def block(attention: dict[str, Any]) -> dict[str, Any]:
    """An encoder of xFormers around an attention."""
    return {
        "block_type": "encoder",
        "dim_model": DIM,
        "position_encoding_config": {"name": "vocab", "seq_len": LENGTH, "vocab_size": 11},
        "multi_head_config": {"num_heads": HEADS, "residual_dropout": 0.0, "attention": attention},
        "feedforward_config": {"name": "MLP", "dropout": 0.0, "activation": "gelu", "hidden_layer_multiplier": 1},
    }


def configaformers_program(line: dict[str, Any]) -> Spec:
    """A program of an embedding and one line."""
    blocks = [{"config": [{"type": "embedding", "output_dim": DIM, "num_classes": 11}, line], "repeat": 1}]
    return program_spec(model_config={"blocks": blocks}, input_streams={"emb_ids": ["B", LENGTH]})


def of_part(model: Any, part: type[Part]) -> list[Any]:
    return [module for module in model.modules() if type(module) is part]


def ids() -> torch.Tensor:
    return torch.randint(0, 11, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def checked(model: Any, part: type[Part], *inputs: Any, **options: Any) -> None:
    """The part is in the model, and the model runs forward and backward."""
    assert of_part(model, part)
    y = model(*inputs, **options)
    assert y.isfinite().all()
    y.square().sum().backward()


@pytest.mark.parametrize("label", PARTS)
def test_the_presets(label: str) -> None:
    part = PARTS[label]
    spec = described(part)
    if part.can.causal:
        checked(vf.build(vf.models.gpt(**SIZES, attention=spec)), part, ids())
        checked(vf.build(vf.models.llama(**SIZES, attention=spec)), part, ids())
        checked(vf.build(vf.models.seq2seq(**SIZES, attention=spec)), part, ids(), ids())
    checked(vf.build(vf.models.bert(**SIZES, attention=spec)), part, ids())
    vit = {"image_size": 16, "patch_size": 4, "dim": DIM, "depth": 1, "heads": HEADS, "pool": "mean"}
    checked(vf.build(vf.models.vit(**vit, attention=spec)), part, torch.randn(2, 3, 16, 16))


def with_slot(label: str) -> Spec:
    """Softmax attention with the part in the slot for its kind."""
    kind, name = label.split("/")
    own = described(vf.parts(kind)[kind, name])
    return SoftmaxAttention.spec(**{SLOTS[kind]: [own] if kind == "scoring" else own})


@pytest.mark.parametrize("label", SLOTTED)
def test_what_softmax_attention_is_made_of(label: str) -> None:
    """Scores, weights and memories: by plain data in a preset and in each dialect, causal or not where they can."""
    spec, part = with_slot(label), vf.parts(label.split("/")[0])[tuple(label.split("/"))]
    data, causal = vf.to_dict(spec), part.can.causal
    preset, layers = ("gpt", Decoder) if causal else ("bert", Encoder)
    checked(vf.build(vf.from_dict({"preset": preset, **SIZES, "attention": data})), part, ids())
    assert not vf.check(vf.from_dict({"preset": preset, **SIZES, "attention": data})).problems
    stack = layers(dim=DIM, depth=1, heads=HEADS, attn_dim_head=4, attn_part=data)
    checked(TransformerWrapper(num_tokens=11, max_seq_len=LENGTH, attn_layers=stack), part, ids())
    config = {"name": "softmax", "dropout": 0.0, "causal": causal, **{k: v for k, v in data.items() if k != "part"}}
    checked(xFormer.from_config(xFormerConfig([block(config)])), part, ids())
    line = {"type": "mixer/multi_head", "heads": HEADS, "attention": {**data, "causal": causal}}
    model = vf.build(configaformers_program(line))
    assert of_part(model, part)
    assert model({"emb_ids": ids()})["x"].isfinite().all()


@pytest.mark.parametrize("label", PARTS)
def test_the_xformers_dialect(label: str) -> None:
    part = PARTS[label]
    if HANDED[label]:  # blocks of that dialect hand on features alone
        with pytest.raises(vf.ConfigError, match="there is no attention"):
            build_attention({"name": part.name})
        return
    known = {"seq_len": LENGTH, "dim_model": DIM, "num_heads": HEADS, "dim_head": DIM // HEADS}
    config = {"name": _dialect_name(part), "dropout": 0.0, **described(part).args, **known, **_upstream(part)}
    assert of_part(build_attention(config), part)
    checked(xFormer.from_config(xFormerConfig([block(config)])), part, ids())


@pytest.mark.parametrize("label", PARTS)
def test_the_x_transformers_dialect(label: str) -> None:
    part = PARTS[label]
    for layers in (Decoder, Encoder) if part.can.causal else (Encoder,):
        stack = layers(dim=DIM, depth=1, heads=HEADS, attn_dim_head=4, attn_part=described(part, max_seq_len=LENGTH))
        checked(TransformerWrapper(num_tokens=11, max_seq_len=LENGTH, attn_layers=stack), part, ids())


@pytest.mark.parametrize("label", PARTS)
def test_the_configaformers_dialect(label: str) -> None:
    part = PARTS[label]
    own = described(part, max_seq_len=LENGTH)
    spec = own if part.kind == "mixer" else MultiHead.spec(attention=own)
    if HANDED[label]:  # a stream between lines is one tensor: what attentions hand on stays in a stack
        layer = TransformerLayer.spec(sublayers=[Sublayer.spec(body=spec, norm=None)])
        spec = LayerStack.spec(layers=begun([layer]))
    step = {"type": spec.kind + "/" + spec.name, **vf.to_dict(spec)}
    step.pop("part")
    facts = {f.name for _, one in spec.walk() for f in fields_of(one.part) if f.inherits}
    step |= {"heads": HEADS} if "heads" in facts else {}
    model = vf.build(configaformers_program(step))
    assert of_part(model, part)
    assert model({"emb_ids": ids()})["x"].isfinite().all()


def test_a_name_is_enough_and_a_typo_is_told() -> None:
    by_name, by_mapping = (
        vf.models.gpt(**SIZES, attention=choice) for choice in ("linear", {"part": "attention/linear"})
    )
    assert by_name == by_mapping
    with pytest.raises(vf.ConfigError, match=r"attention: there is no .*'liner'.*linear"):
        vf.models.gpt(**SIZES, attention="liner")
    with pytest.raises(vf.ConfigError, match="neither an attention nor a mixer"):
        vf.models.bert(**SIZES, attention={"part": "feedforward/mlp"})
    with pytest.raises(vf.ConfigError, match="give attention or window"):
        vf.models.llama(**SIZES, attention="linear", window=4)
    assert vf.from_dict({"preset": "gpt", **SIZES, "attention": "linear"}) == by_name
    with pytest.raises(vf.ConfigError, match="attn_part"):
        Decoder(dim=DIM, depth=1, attn_part="liner")
    with pytest.raises(vf.ConfigError, match="attn_num_mem_kv: softmax attention alone has it"):
        Decoder(dim=DIM, depth=1, attn_part="linear", attn_num_mem_kv=2)


def test_the_dropout_of_a_preset_reaches_the_attention() -> None:
    model = vf.build(vf.models.gpt(**SIZES, dropout=0.3, attention={"part": "attention/local", "window": 5}))
    assert model.stacks[0].layers[0].sublayers[0].body.attention.dropout == 0.3


def _dialect_name(part: type[Part]) -> str:
    from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY

    for name, item in ATTENTION_REGISTRY.items():
        if getattr(item.constructor, "stands_for", "") == part.name:
            return name
    return part.name


def _upstream(part: type[Part]) -> dict[str, Any]:
    """What upstream's own configurations need beside the fields of the part."""
    return {
        "global": {"attention_query_mask": torch.arange(LENGTH)[:, None] < 2},
        "blocksparse": {"layout": torch.ones(1, 1, dtype=torch.long)},
    }.get(part.name, {})
