import pytest
import torch

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.key_condition import KeyCondition


def test_keys_and_values_are_of_both() -> None:
    torch.manual_seed(0)
    part = vf.build(KeyCondition.spec(body=MultiHead.spec(), project=False), dim=8, heads=2).double()
    x, told = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    both = x + told.unsqueeze(1)
    expected = part.body(x, {"key_input": both, "value_input": both})
    torch.testing.assert_close(part(x, {"condition": told}), expected)
    torch.testing.assert_close(part(x, {"condition": told.unsqueeze(1).expand(-1, 5, -1)}), expected)
    torch.testing.assert_close(part(x, {}), part.body(x, {}))


def test_keys_and_values_may_be_of_the_condition_alone() -> None:
    part = vf.build(KeyCondition.spec(body=MultiHead.spec(), added=False, project=False), dim=8, heads=2)
    x, told = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(part(x, {"condition": told}), part.body(x, {"key_input": told, "value_input": told}))
    with pytest.raises(ShapeError, match="which is missing"):
        part(x, {})


def test_what_does_not_fit_is_refused() -> None:
    part = vf.build(KeyCondition.spec(body=MultiHead.spec()), dim=8, heads=2)
    with pytest.raises(ShapeError, match="condition"):
        part(torch.randn(2, 5, 8), {"condition": torch.randn(2, 4, 8)})
    with pytest.raises(ConfigError, match="reads its queries, keys and values off one input"):
        vf.build(KeyCondition.spec(body=MLP.spec()), dim=8)


def test_a_condition_of_another_width_is_mapped() -> None:
    part = vf.build(KeyCondition.spec(body=MultiHead.spec()), dim=8, heads=2, dim_condition=3)
    x, told = torch.randn(2, 5, 8), torch.randn(2, 3)
    both = x + (told @ part.map.weight.T).unsqueeze(1)
    torch.testing.assert_close(part(x, {"condition": told}), part.body(x, {"key_input": both, "value_input": both}))
    with pytest.raises(ConfigError, match="without a map"):
        vf.build(KeyCondition.spec(body=MultiHead.spec(), project=False), dim=8, heads=2, dim_condition=3)
