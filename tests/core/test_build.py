"""Building: modules from specs, reproducible, harmless, also without memory."""

import copy
from typing import Any

import pytest
import torch

import variform as vf
from variform.core.build import materialise
from variform.core.spec import Spec

SPECS = {
    "gpt": vf.models.gpt(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=8, tie=True),
    "bert": vf.models.bert(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=8),
    "vit": vf.models.vit(image_size=8, patch_size=4, dim=16, depth=2, heads=4, classes=3),
    "seq2seq": vf.models.seq2seq(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=8, tie=True),
}


def weights(model: Any) -> dict[str, Any]:
    return dict(model.state_dict())


def test_two_builds_under_one_seed_are_equal() -> None:
    for spec in SPECS.values():
        built = []
        for _ in range(2):
            torch.manual_seed(3)
            built.append(weights(vf.build(spec)))
        assert built[0].keys() == built[1].keys()
        assert all(torch.equal(built[0][name], built[1][name]) for name in built[0])


def test_two_builds_share_nothing() -> None:
    one, two = vf.build(SPECS["gpt"]), vf.build(SPECS["gpt"])
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in two.parameters()}


def test_every_part_carries_its_resolved_spec() -> None:
    model = vf.build(SPECS["gpt"])
    resolved = vf.resolve(SPECS["gpt"])
    assert model.spec == resolved
    assert model.stacks[0].layers[1].spec == resolved["stacks"][0]["layers"][1]
    torch.manual_seed(0)
    one = vf.build(model)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), vf.build(model.spec).parameters(), strict=True))


def test_a_spec_may_be_data_or_facts_may_be_given() -> None:
    assert vf.build({"part": "mlp"}, dim=8).up.weight.shape == (32, 8)
    assert vf.build({"part": "mlp"}, dim=8, dtype=torch.float64).up.weight.dtype == torch.float64


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_meta_builds_allocate_nothing_and_materialise_as_if_built_there(spec: Spec) -> None:
    empty = vf.build(spec, device="meta")
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    torch.manual_seed(5)
    real = materialise(empty, "cpu")
    torch.manual_seed(5)
    built = vf.build(spec)
    assert weights(real).keys() == weights(built).keys()
    for name, tensor in weights(built).items():
        assert torch.isfinite(weights(real)[name]).all(), name
        assert weights(real)[name].std().item() == pytest.approx(tensor.std().item(), rel=0.5, abs=1e-6), name


def test_tied_modules_stay_tied_through_copies_and_materialisation() -> None:
    for model in (
        vf.build(SPECS["gpt"]),
        copy.deepcopy(vf.build(SPECS["gpt"])),
        materialise(vf.build(SPECS["gpt"], device="meta"), "cpu"),
    ):
        assert model.head.embedding is model.embedding
        assert model.head.embedding.weight is model.embedding.weight


def test_a_failed_build_reports_before_making_anything() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with pytest.raises(vf.ConfigError):
        vf.build(vf.override(SPECS["gpt"], ["stacks.0.layers.1.sublayers.1.body.activation=x"]))
    assert torch.equal(torch.random.get_rng_state(), before)
