"""Hydra's schemas of the parts, and the example that builds a model from configuration files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue

import variform as vf
from variform.dialects.xformers.factory import xFormer
from variform.dialects.xformers.factory.hydra_helper import GROUPS, import_xformer_config_schema, schema_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "build_model" / "conf"


def composed(*overrides: str) -> Any:
    import_xformer_config_schema()
    with initialize_config_dir(str(EXAMPLE), version_base="1.3"):
        return compose("config", list(overrides)).xformer


def test_every_part_has_a_schema_with_all_its_keys() -> None:
    stored = import_xformer_config_schema()
    assert stored == tuple(f"xformers/{group}/{name}_schema" for group, parts in GROUPS.items() for name in parts)
    known = ConfigStore.instance()
    for path in stored:
        assert known.load(f"{path}.yaml").node.name == path.split("/")[-1].removesuffix("_schema")
    local = OmegaConf.structured(schema_of(GROUPS["attention"], "local"))
    assert OmegaConf.to_container(local) == {
        "name": "local",
        "dropout": None,
        "causal": None,
        "window_size": None,
        "force_sparsity": None,
    }
    assert schema_of(GROUPS["ff"], "MLP")().dropout == MISSING
    assert schema_of(GROUPS["ff"], "MLP")().dim_model is None


def test_values_are_checked_by_type_and_choices_are_told_by_value() -> None:
    mlp = OmegaConf.structured(schema_of(GROUPS["ff"], "MLP"))
    assert OmegaConf.merge(mlp, {"activation": "gelu", "dropout": 0.5}).activation == "gelu"
    for wrong in ({"dropout": "lots"}, {"hiden": 3}, {"bias": [1]}, {"hidden_layer_multiplier": 1.5}):
        with pytest.raises(Exception, match=next(iter(wrong))):
            OmegaConf.merge(mlp, wrong)


@pytest.mark.parametrize("stacks", ["encoder_local", "encoder_random"])
def test_the_example_builds_what_the_files_say(stacks: str) -> None:
    config = composed(f"stack@xformer.stack_configs=[{stacks}]")
    model = instantiate(config, _convert_="all")
    assert isinstance(model, xFormer)
    assert list(config.stack_configs) == [stacks]
    assert model.dropped == ()
    assert vf.describe(model, batch=1, length=8).params == sum(p.numel() for p in model.parameters())
    assert model.encoders[0].dim_model == 384
    assert model.encoders[0].pose_encoding.longest == 1024
    assert model.encoders[0].pose_encoding.vocab_size == 64


def test_the_example_as_it_stands_has_three_stacks() -> None:
    config = composed()
    assert list(config.stack_configs) == ["encoder_local", "encoder_random", "decoder_nystrom_favor"]
    model = instantiate(config, _convert_="all")
    names = [type(block.mha.attention).__name__ for block in (*model.encoders, *model.decoders)]
    assert names == ["LocalAttention", "RandomAttention", "NystromAttention"]
    assert type(model.decoders[0].cross_mha.attention).__name__ == "FavorAttention"
    x = torch.randint(0, 64, (1, 12))
    assert model(src=x, tgt=x).shape == (1, 12, 384)


def test_the_command_line_is_checked() -> None:
    only = "stack@xformer.stack_configs=[encoder_local]"
    place = "xformer.stack_configs.encoder_local.multi_head_config.attention"
    heads = composed(only, f"{place}.window_size=7").stack_configs.encoder_local.multi_head_config
    assert heads.attention.window_size == 7
    for wrong in (f"{place}.window=7", f"{place}.window_size=wide"):
        with pytest.raises(ConfigCompositionException):
            composed(only, wrong)
    config = composed(only, "xformer.stack_configs.encoder_local.multi_head_config.num_heads=5")
    with pytest.raises(Exception, match=r"stack_configs\.encoder_local\.multi_head_config\.num_heads: must divide"):
        instantiate(config, _convert_="all")
    config = composed(only, "xformer.stack_configs.encoder_local.feedforward_config.dropout=???")
    with pytest.raises(MissingMandatoryValue, match="dropout"):
        instantiate(config, _convert_="all")
