"""Resolution: facts flow down, mistakes come out all at once and each at its place."""

from collections.abc import Callable
from typing import Any

import pytest

import variform as vf
from variform.core.fields import field_map
from variform.core.inherit import Inherit
from variform.core.registry import unregister
from variform.core.resolve import count_writes, examine
from variform.core.spec import Shared, Spec
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.kinds import Mixer
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.norms import LayerNorm, RMSNorm
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer


def sub(body: Any, **more: Any) -> Spec:
    return Sublayer.spec(body=body, **more)


def model(*layers: Any, **more: Any) -> Spec:
    settings = {"dim": 16, "heads": 4, "vocab_size": 11, "embedding": TokenEmbedding.spec(), **more}
    return Transformer.spec(stacks=[LayerStack.spec(layers=list(layers))], **settings)


def problems(spec: Spec, **facts: Any) -> dict[str, str]:
    return {problem.path: str(problem) for problem in examine(spec, **facts)[1]}


# ---- facts ----


def test_facts_come_from_the_nearest_enclosing_part() -> None:
    inner = TransformerLayer.spec(sublayers=[sub(MLP.spec())], heads=2)
    resolved = vf.resolve(model(TransformerLayer.spec(sublayers=[sub(MultiHead.spec()), inner, sub(MultiHead.spec())])))
    layer = resolved["stacks"][0]["layers"][0]
    assert layer["heads"] == 4
    assert layer["sublayers"][1]["heads"] == 2
    assert layer["sublayers"][2]["body"]["heads"] == 4
    assert layer["sublayers"][0]["body"]["attention"]["causal"] is False


def test_a_written_value_beats_the_surroundings() -> None:
    resolved = vf.resolve(model(sub(MultiHead.spec(heads=8))))
    assert resolved["stacks"][0]["layers"][0]["body"]["heads"] == 8


def test_a_part_provides_other_facts_to_one_slot() -> None:
    resolved = vf.resolve(MultiHead.spec(q_norm="rms_norm", dim_head=6), dim=16, heads=4)
    assert resolved["q_norm"]["dim"] == 6
    assert vf.resolve(MLP.spec(norm="rms_norm", hidden=24), dim=16)["norm"]["dim"] == 24


def test_a_sibling_gives_facts_to_the_later_ones() -> None:
    spec = vf.models.vit(image_size=16, patch_size=4, dim=16, depth=1, heads=4)
    assert vf.resolve(spec)["embedding"]["position"]["max_seq_len"] == 17


def test_layers_know_place_and_depth() -> None:
    layers = [Sublayer.spec(body="mlp", residual="deepnorm", norm=None, out_norm="layer_norm")] * 3
    resolved = vf.resolve(model(*layers))
    assert [layer["residual"]["depth"] for layer in resolved["stacks"][0]["layers"]] == [3, 3, 3]


def test_residual_writes_are_counted_for_the_initial_scale() -> None:
    spec = vf.models.gpt(vocab_size=11, dim=16, depth=3, heads=4, max_seq_len=8)
    assert count_writes(spec) == 6
    assert vf.resolve(spec)["stacks"][0]["layers"][2]["sublayers"][1]["body"]["writes"] == 6


def test_residual_writes_of_a_part_that_is_named_again_count_again() -> None:
    described = model(Shared("a", sub(MLP.spec())), Shared("a", sub(MLP.spec())))
    named = model(Shared("a", sub(MLP.spec())), Shared("a"))
    assert count_writes(named) == count_writes(described) == 2
    assert vf.resolve(named) == vf.resolve(described)
    count_writes(model(Shared("a", sub(Shared("a")))))  # refused elsewhere; counting it ends


def test_resolving_twice_changes_nothing() -> None:
    for spec in (
        vf.models.gpt(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=8, tie=True),
        vf.models.seq2seq(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=8, tie=True),
        vf.models.bert(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=8),
        vf.models.vit(image_size=8, patch_size=4, dim=16, depth=2, heads=4, classes=3),
    ):
        resolved = vf.resolve(spec)
        assert vf.resolve(resolved) == resolved
        assert resolved != spec


def test_a_resolved_spec_is_complete() -> None:
    resolved = vf.resolve(vf.models.gpt(vocab_size=11, dim=16, depth=1, heads=4, max_seq_len=8))
    for path, part in resolved.walk():
        missing = {f for f in field_map(part.part) if f not in part.args}
        assert not missing, path
        assert not [k for k, v in part.args.items() if isinstance(v, Inherit)], path


def test_a_fallback_stands_in_where_nothing_provides() -> None:
    assert vf.resolve(SoftmaxAttention.spec())["causal"] is False
    assert vf.resolve(SoftmaxAttention.spec(), causal=True)["causal"] is True


def test_cross_attention_does_not_inherit_causal() -> None:
    resolved = vf.resolve(CrossMultiHead.spec(), dim=16, heads=4, causal=True)
    assert resolved["attention"]["causal"] is False


# ---- mistakes ----


def test_all_mistakes_are_reported_at_once_with_their_paths() -> None:
    spec = model(
        TransformerLayer.spec(sublayers=[sub(MultiHead.spec(heads=3)), sub(MLP.spec(activation="gleu"))]),
        sub(GLU.spec(hiden=3), norm=MLP.spec()),
        vocab_size=None,
    )
    found = problems(spec)
    assert set(found) == {
        "embedding.vocab_size",
        "stacks.0.layers.0.sublayers.0.body.heads",
        "stacks.0.layers.0.sublayers.1.body.activation",
        "stacks.0.layers.1.body.hiden",
        "stacks.0.layers.1.norm",
    }
    with pytest.raises(vf.ConfigError) as error:
        vf.build(spec)
    assert len(error.value.problems) == 5
    assert all(path in str(error.value) for path in found)


def test_one_mistake_draws_no_others_below_it() -> None:
    assert set(problems(model(sub(MLP.spec(norm="rms_norm")), sub(MultiHead.spec(q_norm="rms_norm")), dim="16"))) == {
        "dim"
    }
    missing = model(sub(MLP.spec()), sub(MultiHead.spec())).replace(dim=vf.INHERIT)
    assert set(problems(missing)) == {"dim"}
    broken = vf.override(
        vf.models.vit(image_size=8, patch_size=4, dim=16, depth=1, heads=4), ["embedding.patch_size=0"]
    )
    assert set(problems(broken)) == {"embedding.patch_size"}


def test_independent_mistakes_below_a_mistake_are_still_found() -> None:
    assert set(problems(model(sub(LayerNorm.spec()), sub(MLP.spec(dim=-1)), dim=1.5))) == {
        "dim",
        "stacks.0.layers.0.body",
        "stacks.0.layers.1.body.dim",
    }


def test_missing_facts_name_the_field_and_the_remedy() -> None:
    (text,) = problems(MLP.spec()).values()
    assert text.startswith("dim: ")
    assert "surroundings" in text
    assert "set it here or on an enclosing part" in text


@pytest.mark.parametrize(
    ("facts", "hint"),
    [({"dmi": 3}, "did you mean 'dim'?"), ({"heds": 3}, "did you mean 'heads'"), ({"zzz": 0}, "known:")],
)
def test_misspelt_facts_are_refused(facts: dict[str, Any], hint: str) -> None:
    with pytest.raises(vf.ConfigError) as error:
        vf.build(LayerNorm.spec(dim=3), **facts)
    assert error.value.path == next(iter(facts))
    assert hint in str(error.value)


NEAREST: list[tuple[Callable[[], Any], str, list[str]]] = [
    (lambda: vf.build(MultiHead.spec(), dim=16, heads=7), "heads", ["dim = 16", "got 7", "4 or 8"]),
    (lambda: vf.build(MultiHead.spec(kv_heads=3), dim=16, heads=8), "kv_heads", ["heads = 8", "got 3", "2 or 4"]),
    (lambda: vf.build("unknown.yaml"), "", ["there is no file 'unknown.yaml'"]),
    (lambda: vf.from_dict({"part": "mlp", "hiden": 3}), "hiden", ["did you mean 'hidden'?"]),
    (lambda: vf.from_dict({"part": "layernorm"}), "part", ["did you mean 'layer_norm'"]),
    (lambda: vf.build(MLP.spec(dim=3, activation="gleu")), "activation", ["did you mean 'gelu'?", "got 'gleu'"]),
    (
        lambda: vf.build(vf.models.vit(image_size=30, patch_size=8, dim=16, depth=1, heads=4)),
        "embedding.image_size",
        ["patch_size = 8", "got 30", "24 or 32"],
    ),
    (lambda: vf.build({"part": "local", "window": 4}), "window", ["odd", "got 4", "3 or 5"]),
    (lambda: vf.build({"part": "sinusoidal", "dim": 5}), "dim", ["even", "got 5", "4 or 6"]),
    (lambda: vf.build(MLP.spec(norm="mlp")), "part", ["registered as feedforward"]),
    (lambda: vf.build(MLP.spec(mult=0.01), dim=16), "mult", ["no inner feature", "got 0.01", "1 / dim"]),
    (lambda: vf.build(SoftmaxAttention.spec(backend="sdap")), "backend", ["did you mean 'sdpa'?"]),
]


@pytest.mark.parametrize(("action", "path", "words"), NEAREST, ids=[str(n) for n in range(len(NEAREST))])
def test_errors_name_the_place_the_value_and_the_nearest_valid_ones(
    action: Callable[[], Any], path: str, words: list[str]
) -> None:
    with pytest.raises(vf.ConfigError) as error:
        action()
    assert error.value.path == path
    for word in words:
        assert word in str(error.value)


def test_heads_need_not_divide_when_the_head_size_is_given() -> None:
    assert vf.build(MultiHead.spec(dim_head=5), dim=16, heads=3).out.weight.shape == (16, 15)


def test_a_part_that_cannot_be_causal_is_refused_where_causal_is_asked_for() -> None:
    @vf.register("acausal_for_test")
    class Acausal(Mixer):
        can = vf.Can(causal=False)

        def forward(self, x: Any, streams: Any) -> Any:
            return x.mean(1, keepdim=True).expand_as(x)

    try:
        found = problems(model(sub(Acausal.spec()), sub(MLP.spec()), causal=True))
        assert set(found) == {"stacks.0.layers.0.body"}
        assert "multi_head" in found["stacks.0.layers.0.body"]
        assert not problems(model(sub(Acausal.spec())))
    finally:
        unregister("mixer", "acausal_for_test")


# ---- shared parts ----


def test_a_shared_part_is_one_module() -> None:
    layer = Shared("layer", sub(MLP.spec()))
    built = vf.build(model(layer, sub(MultiHead.spec()), Shared("layer")))
    layers = list(built.stacks[0].layers.in_order())
    assert layers[0] is layers[2]
    assert len(built.stacks[0].layers) == 2


def test_a_shared_part_must_resolve_equally_everywhere() -> None:
    spec = model(Shared("a", sub(MLP.spec())), TransformerLayer.spec(sublayers=[Shared("a")], dim=8))
    (text,) = problems(spec).values()
    assert "stacks.0.layers.1.sublayers.0" in text
    assert "resolves to other body, norm here than at stacks.0.layers.0" in text


def test_a_shared_name_needs_one_description() -> None:
    assert "nothing defines the shared part 'a'" in problems(model(Shared("a")))["stacks.0.layers.0"]
    twice = model(Shared("a", sub(MLP.spec())), Shared("a", sub(GLU.spec())))
    assert "described differently" in problems(twice)["stacks.0.layers.1"]
    assert not problems(model(Shared("a", sub(MLP.spec())), Shared("a", sub(MLP.spec(mult=4.0)))))


def test_the_description_may_stand_at_a_later_use() -> None:
    built = vf.build(model(Shared("a"), Shared("a", sub(MLP.spec()))))
    assert len(built.stacks[0].layers) == 1


def test_norms_of_one_spec_are_separate_modules() -> None:
    norm = RMSNorm.spec()
    built = vf.build(sub(MLP.spec(), norm=norm, out_norm=norm), dim=8)
    assert built.norm is not built.out_norm
