"""Every public name of upstream is here, in the module of the same name, or is said to be elsewhere and why.

The lists are those of 2.26.4 and 2.31.10. Constructors take all of upstream's keywords, and no others.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import variform as vf
import variform.dialects.x_transformers as ours
from variform.errors import ConfigError

EXPORTED = (
    *("AdaptiveRMSNorm", "Attention", "AttentionPool", "AutoregressiveWrapper", "BeliefStateWrapper"),
    *("ContinuousAutoregressiveWrapper", "ContinuousTransformerWrapper", "CrossAttender", "DPO", "Decoder", "Encoder"),
    *("EntropyBasedTokenizer", "FeedForward", "MultiInputTransformerWrapper", "NeoMLP", "NextLatentWrapper"),
    *("NonAutoregressiveWrapper", "PrefixDecoder", "RMSNorm", "TransformerBlock", "TransformerWrapper"),
    *("ViTransformerWrapper", "XLAutoregressiveWrapper", "XTransformer", "XValAutoregressiveWrapper"),
    *("XValTransformerWrapper", "default_device", "layer_schedule"),
)
"""What the package itself exports; `default_device` since 2.31."""

MODULES: dict[str, tuple[str, ...]] = {
    "autoregressive_wrapper": ("AutoregressiveWrapper", "top_p", "top_k", "top_a", "min_p", "contrastive_decode_fn"),
    "belief_state_wrapper": ("BeliefStateWrapper",),
    "continuous": ("ContinuousTransformerWrapper", "ContinuousAutoregressiveWrapper"),
    "continuous_autoencoder": (
        *("VariationalLatentBottleneck", "DeterministicLatentBottleneck", "ContinuousTransformerAutoencoder"),
    ),
    "discover_wrapper": ("TPREncoder", "DiscoverDecoder", "num_roles_for_scheme", "role_ids_for_tokens"),
    "dpo": ("DPO",),
    "entropy_based_tokenizer": ("EntropyBasedTokenizer",),
    "free_transformer": ("BinaryMapper", "FreeTransformer"),
    "full_bandwidth": (
        *("FullBandwidth", "LossBreakdown", "GLUCrossTransition", "ResidualTransition", "GRUGatingTransition"),
        *("LinearTransition", "ResidualGLUTransition"),
    ),
    "gpt_lejepa": ("LatentAutoregressive",),
    "gpt_vae": ("GPTVAE",),
    "multi_input": ("MultiInputTransformerWrapper",),
    "neo_mlp": ("RandomFourierEmbed", "NeoMLP"),
    "next_latent_wrapper": ("Losses", "ResidualDynamics", "RolloutGRU", "MSECosineSimLoss", "NextLatentWrapper"),
    "nonautoregressive_wrapper": ("Losses", "SelfCritic", "NonAutoregressiveWrapper"),
    "recirculation": ("Recirculation", "RecirculationMixer"),
    "up_wrapper": ("SyntheticDataGenerator", "UniversalPretrainWrapper", "random_sequences"),
    "x_transformers": (
        *("LayerIntermediates", "RMSNorm", "AdaptiveRMSNorm", "FeedForward", "Attention", "AttentionLayers"),
        *("Encoder", "Decoder", "PrefixDecoder", "CrossAttender", "AttentionPool", "ViTransformerWrapper"),
        *("TransformerBlock", "TransformerWrapper", "XTransformer", "layer_schedule", "default_device"),
    ),
    "xl_autoregressive_wrapper": (
        *("EpisodicMemories", "EpisodicMemoryWrapper", "LowRankLinear", "TTTMetaLearningTargetKLLoss"),
        *("TTTNextLatentPredictionLoss", "XLAutoregressiveWrapper"),
    ),
    "xm_latent_decoder": ("XMLatentDecoder", "lowest_loss_winner_fn", "lowest_entropy_winner_fn"),
    "xval": ("LossBreakdown", "GenerateReturn", "XValTransformerWrapper", "XValAutoregressiveWrapper"),
}
"""Public classes, and the functions that callers use, by module."""

PARTS: dict[str, tuple[str, str]] = {
    "ReluSquared": ("feedforward", "mlp"),
    "SoLU": ("nonlinearity", "solu"),
    "TokenEmbedding": ("embedding", "tokens"),
    "AbsolutePositionalEmbedding": ("position", "learned"),
    "ScaledSinusoidalEmbedding": ("position", "scaled_sinusoidal"),
    "RelativePositionBias": ("bias", "t5"),
    "CoPE": ("scoring", "cope"),
    "DynamicPositionBias": ("bias", "dynamic"),
    "AlibiPositionalBias": ("bias", "alibi"),
    "DataDependentAlibi": ("scoring", "forget"),
    "PerRowDataDependentAlibi": ("scoring", "forget_rows"),
    "RelativeProjPositionalBias": ("scoring", "projected_distance"),
    "RotaryEmbedding": ("rotation", "rotary"),
    "PolarEmbedding": ("rotation", "polar"),
    "LoRALinear": ("projection", "low_rank"),
    "LayerNorm": ("norm", "layer_norm"),
    "AdaptiveLayerNorm": ("norm", "adaptive"),
    "ScaleNorm": ("norm", "scale_norm"),
    "SimpleRMSNorm": ("norm", "rms_norm"),
    "MultiheadRMSNorm": ("norm", "rms_norm"),
    "DynamicTanh": ("norm", "dynamic_tanh"),
    "Derf": ("norm", "derf"),
    "Residual": ("residual", "scaled_stream"),
    "GRUGating": ("residual", "gru"),
    "OrthogonalResidualUpdate": ("residual", "orthogonal"),
    "MVSplitResidualUpdate": ("residual", "mean_split"),
    "AttentionResidual": ("entry", "layer_attention"),
    "AttentionAggregatedResidual": ("entry", "layer_attention"),
    "HyperConnection": ("residual", "hyper_connection"),
    "GatedMultiResidual": ("residual", "gated_multi"),
    "DynamicLIMe": ("entry", "layer_mixture"),
    "ShiftTokens": ("layer", "token_shift"),
    "FoldAxially": ("mixer", "folded"),
    "LayerScale": ("residual", "layer_scale"),
    "AdaptiveLayerScale": ("layer", "adaptive_branch"),
    "ConcatCombine": ("layer", "join_skip"),
    "GLU": ("feedforward", "glu"),
}
"""Modules inside of upstream's stacks: keywords put these parts of the core in their places."""

ELSEWHERE: dict[str, str] = {
    "Attend": "attention requests are run by backends of `variform.ops.attention`",
    "Intermediates": "of an attention: `LayerIntermediates.attn_intermediates`",
    "DetachMultiple": "saves nothing: both models are run once and the pairs' gradients are summed by autograd anyway",
    "GaussianNLL": "the loss of `ContinuousTransformerWrapper(probabilistic=True)`",
    "TTTModuleWrapper": "fast weights are run by `variform.wrappers.fast_weights`, and modules stay as they are",
    "Scale": "a factor inside of a stack",
    "always": "a decorator of its module",
    "not_equals": "a decorator of its module",
    "equals": "a decorator of its module",
}
"""What is not here, and why."""

STRICT_ENDS = ("Wrapper", "Transformer", "Decoder", "Encoder", "Tokenizer", "Block", "Layers", "Attender", "Pool")
CLASSES = [
    (module, name)
    for module, names in MODULES.items()
    for name in names
    if name[0].isupper() and not name.startswith(("Losses", "LossBreakdown", "GenerateReturn", "LayerIntermediates"))
]

STRICT = [
    (module, name)
    for module, name in CLASSES
    if (name.endswith(STRICT_ENDS) and name != "EpisodicMemoryWrapper")  # it is no user's: one module as another
    or name in ("DPO", "GPTVAE", "NeoMLP", "LatentAutoregressive", "ContinuousTransformerAutoencoder", "Attention")
]
"""Classes that users describe models with; small modules refuse unknown keywords as Python does."""


def loaded(root: str, name: str) -> Any:
    with patch("torch.compile", lambda method: method):  # upstream compiles a method as it is imported
        return importlib.import_module(f"{root}.{name}")


@pytest.mark.parametrize("name", EXPORTED)
def test_the_package_exports(name: str) -> None:
    assert hasattr(ours, name)
    assert name in ours.__all__


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in MODULES.items() for name in names])
def test_modules_have(module: str, name: str) -> None:
    assert hasattr(loaded(ours.__name__, module), name)


@pytest.mark.parametrize("part", sorted(set(PARTS.values())))
def test_parts_are_registered(part: tuple[str, str]) -> None:
    assert part in set(vf.parts())


def test_the_lists_are_complete() -> None:
    theirs = pytest.importorskip("x_transformers", reason="x-transformers is not installed (extra dev)")
    import pkgutil

    missing = []
    for module in pkgutil.iter_modules(theirs.__path__):
        found = loaded("x_transformers", module.name)
        for name, value in vars(found).items():
            own = inspect.isclass(value) and value.__module__ == found.__name__ and not name.startswith("_")
            here = name in MODULES.get(module.name, ()) or hasattr_of(module.name, name)
            if own and not here and name not in PARTS and name not in ELSEWHERE:
                missing.append(f"{module.name}.{name}")
    assert not missing
    exported = {
        name for name in dir(theirs) if not name.startswith("_") and not inspect.ismodule(getattr(theirs, name))
    }
    assert exported <= set(EXPORTED)


def hasattr_of(module: str, name: str) -> bool:
    try:
        return hasattr(loaded(ours.__name__, module), name)
    except ModuleNotFoundError:
        return False


def parameters(kind: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(kind.__init__).parameters)
    found.pop("self")
    return found


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_constructors_take_upstreams_keywords(module: str, name: str) -> None:
    theirs = upstreams(module, name)
    kind = getattr(loaded(ours.__name__, module), name)
    own = parameters(kind)
    wanted = {key for key, one in parameters(theirs).items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    left = wanted - set(own)
    if left and any(one.kind is one.VAR_KEYWORD for one in own.values()):
        left = refused(kind, own, left)
    assert not left


def refused(kind: Any, own: dict[str, inspect.Parameter], asked: set[str]) -> set[str]:
    """Of these keywords, those that a class does not know."""
    positional = [
        object() for one in own.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    unknown = "xyzzy"
    with pytest.raises(ConfigError) as told:
        kind(*positional, **dict.fromkeys(asked, object()), **{unknown: 1})
    names = set(re.findall(r"has no keyword '(\w+)'", str(told.value)))
    assert unknown in names
    return names - {unknown}


def upstreams(module: str, name: str) -> Any:
    """The class of the installed release, or skip."""
    pytest.importorskip("x_transformers", reason="x-transformers is not installed (extra dev)")
    try:
        theirs = getattr(loaded("x_transformers", module), name, None)
    except ModuleNotFoundError:
        theirs = None
    if theirs is None:
        pytest.skip("of another release")
    return theirs


@pytest.mark.parametrize(("module", "name"), STRICT)
def test_unknown_keywords_are_errors_with_what_was_meant(module: str, name: str) -> None:
    theirs = parameters(upstreams(module, name))
    kind = getattr(loaded(ours.__name__, module), name)
    own = parameters(kind)
    positional = [
        object() for one in own.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    required = {one.name: object() for one in own.values() if one.default is one.empty and one.kind is one.KEYWORD_ONLY}
    places = list(own)[: len(positional)]
    known = [key for key, one in theirs.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    meant = max((key for key in known if key not in (*places, *required)), key=len, default="dim_head")
    with pytest.raises((ConfigError, TypeError)) as told:
        kind(*positional, **required, **{meant[:-1]: 1})
    assert f"no keyword '{meant[:-1]}'" in str(told.value)
    assert meant in str(told.value).replace(f"'{meant[:-1]}'", "")


def test_every_public_name_is_found_in_the_documentation() -> None:
    pages = "".join(page.read_text() for page in (Path(__file__).parents[3] / "docs").glob("*.md"))
    names = {*EXPORTED, *ours.__all__, *(name for names in MODULES.values() for name in names)}
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", pages)] == []
