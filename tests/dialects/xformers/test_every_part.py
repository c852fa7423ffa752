"""What old code does with every registered attention and feedforward, whichever it is."""

from typing import Any

import pytest
import torch

import variform as vf
from tests.dialects.xformers.cases import SEQ, attention, encoder, fill, ids, mlp, swept
from variform.dialects.xformers.building import keys_of, known_keys
from variform.dialects.xformers.components import build_multi_head_attention
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY
from variform.dialects.xformers.components.feedforward import FEEDFORWARD_REGISTRY
from variform.dialects.xformers.factory import weight_init, xFormer, xFormerWeightInit
from variform.weights.xformers import from_native, to_native

LENGTH, DIM, HEADS = 16, 16, 2
SUPERSET: dict[str, Any] = {
    "dropout": 0.0,
    "causal": False,
    "seq_len": LENGTH,
    "dim_head": DIM / HEADS,
    "num_heads": HEADS,
    "window_size": 1,
    "num_rules": 2,
    "r": 0.5,
}
ATTENTIONS = pytest.mark.parametrize("name", list(ATTENTION_REGISTRY))


def heads(name: str) -> Any:
    known = known_keys(ATTENTION_REGISTRY) | ATTENTION_REGISTRY.surroundings
    superset = {key: value for key, value in SUPERSET.items() if key in known}
    described = {"name": name, **superset, **swept(ATTENTION_REGISTRY, LENGTH)}
    config = {"dim_model": DIM, "num_heads": HEADS, "residual_dropout": 0.0, "attention": described}
    return build_multi_head_attention(config).eval()


@ATTENTIONS
def test_it_is_built_from_a_superset_and_called_either_way(name: str) -> None:
    module, x = heads(name), torch.randn(2, LENGTH, DIM)
    y = module(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert torch.equal(y, module(x, x, x))
    assert torch.equal(y, module(query=x, key=x, value=x))


@pytest.mark.filterwarnings("ignore")  # of tracing: sizes become constants
@ATTENTIONS
def test_it_is_traced(name: str) -> None:
    module, x = heads(name), torch.randn(2, LENGTH, DIM)
    for inputs in (1, 3):
        traced = torch.jit.trace(module, (torch.randn(2, LENGTH, DIM),) * inputs)
        torch.testing.assert_close(traced(*(x,) * inputs), module(x))


@ATTENTIONS
def test_its_class_sorts_keywords(name: str) -> None:
    superset = {key: value for key, value in SUPERSET.items() if key != "dim_head"}
    superset |= {"dim_model": DIM, "dim_head": DIM // HEADS, "pool_size": 3, **swept(ATTENTION_REGISTRY, LENGTH)}
    item = ATTENTION_REGISTRY[name]
    known = keys_of(item)
    assert item.constructor(**superset).dropped == tuple(key for key in superset if key not in known)
    with pytest.raises(vf.ConfigError, match="no attention has a key 'windw_size'; did you mean 'window_size'"):
        item.constructor(**superset, windw_size=3)


@pytest.mark.parametrize("name", list(FEEDFORWARD_REGISTRY))
def test_the_class_of_a_feedforward_sorts_keywords(name: str) -> None:
    superset = {"dim_model": DIM, **mlp(**swept(FEEDFORWARD_REGISTRY)), "hidden_layer_multiplier": 2}
    del superset["name"]
    item = FEEDFORWARD_REGISTRY[name]
    known = keys_of(item)
    assert item.constructor(**superset).dropped == tuple(key for key in superset if key not in known)
    with pytest.raises(vf.ConfigError, match="no feedforward has a key 'dropuot'; did you mean 'dropout'"):
        item.constructor(**superset, dropuot=0.1)


CONFIGS = [
    encoder(multi_head_config=attention(name, seq_len=SEQ, **swept(ATTENTION_REGISTRY))) for name in ATTENTION_REGISTRY
]
CONFIGS += [encoder(feedforward_config=mlp(name=name, **swept(FEEDFORWARD_REGISTRY))) for name in FEEDFORWARD_REGISTRY]
NAMES = [*ATTENTION_REGISTRY, *FEEDFORWARD_REGISTRY]


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_every_scheme_initialises_it(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_init, "_assert_if_not_initialized", True)
    for scheme in xFormerWeightInit:
        model = xFormer(config, weight_init=scheme)
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_a_model_of_it_equals_its_spec(config: dict[str, Any]) -> None:
    model = fill(xFormer({**config, "num_layers": 2}))
    native = vf.build(model.spec).double().eval()
    native.load_state_dict(to_native(model.state_dict()))
    torch.testing.assert_close(model(ids()), native(ids()), rtol=0, atol=1e-10)
    back = from_native(native.state_dict(), model.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
