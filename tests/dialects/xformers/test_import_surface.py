"""Every name that code written against the original imports: from the modules it imports them from."""

import importlib
import subprocess
import sys

import pytest

ROOT = "variform.dialects.xformers"

# Module below the import root -> names. The modules and names of xFormers 0.0.16, as its users, its documentation and
# its tests import them.
NAMES = {
    "": "_is_triton_available",
    "components": """Activation Attention AttentionConfig InputProjection InputProjectionConfig MultiHeadDispatch
        MultiHeadDispatchConfig NormalizationType PatchEmbeddingConfig PostNorm PreNorm Residual ResidualNormStyle
        build_activation build_attention build_multi_head_attention build_patch_embedding""",
    "components.attention": """ATTENTION_REGISTRY Attention AttentionConfig AttentionMask BlockSparseAttention
        FavorAttention GlobalAttention LinformerAttention LocalAttention NystromAttention OrthoFormerAttention
        RandomAttention ScaledDotProduct _DENSITY_THRESHOLD build_attention maybe_sparsify register_attention""",
    "components.attention.attention_mask": "AttentionMask",
    "components.attention.attention_patterns": """alibi_pattern axial_2d_pattern block_sparsify_tensor
        causal_1d_pattern dilated_2d_pattern global_token_pattern horizontal_axial_2d_distance layout_to_pattern
        local_1d_pattern local_2d_distance local_2d_gausian_distribution local_2d_pattern pattern_to_layout
        quick_bigbird_layout quick_bslongformer_layout quick_fixed_layout quick_variable_layout random_pattern
        random_pattern_from_probability_matrix swin_attention_pattern vertical_axial_2d_distance""",
    "components.attention.base": "Attention AttentionConfig",
    "components.attention.core": "SparseCS _create_random_sparsity scaled_dot_product_attention",
    "components.attention._sputnik_sparse": "SparseCS _dense_to_sparse",
    "components.attention.feature_maps": "FeatureMapType NormDistribution SMHyperbolic SMOrf SMReg",
    "components.attention.nystrom": "NystromAttention NystromSelfAttentionConfig",
    "components.attention.sparsity_config": """BSLongformerSparsityConfig BigBirdSparsityConfig DenseSparsityConfig
        FixedSparsityConfig SparsityConfig VariableSparsityConfig""",
    "components.attention.utils": "bool_mask_to_additive iterative_pinv maybe_merge_masks reshape_key_padding_mask",
    "components.feedforward": """FEEDFORWARD_REGISTRY Feedforward FeedforwardConfig FusedMLP MLP build_feedforward
        register_feedforward""",
    "components.feedforward.fused_mlp": "FusedMLP FusedMlpConfig",
    "components.feedforward.mixture_of_experts": "GateConfig MixtureOfExperts MoEConfig RoundRobinGate",
    "components.feedforward.mlp": "MLP MlpConfig",
    "components.multi_head_dispatch": "MultiHeadDispatch MultiHeadDispatchConfig",
    "components.activations": "Activation build_activation",
    "components.patch_embedding": """ConditionalReshape PatchEmbeddingConfig PatchToSequence PoolType
        build_patch_embedding""",
    "components.positional_embedding": """POSITION_EMBEDDING_REGISTRY RotaryEmbedding build_positional_embedding
        register_positional_embedding""",
    "components.positional_embedding.rotary": "RotaryEmbedding apply_rotary_pos_emb rotate_half",
    "components.residual": """NormalizationType PostNorm PreNorm RequiresWrappedInputs Residual ResidualNormStyle
        get_deepnorm_coefficients""",
    "components.reversible": "Deterministic ReversibleBlock ReversibleSequence",
    "components.simplicial_embedding": "SimplicialEmbedding SimplicialEmbeddingConfig",
    "components.attention.blocksparse": "BlockSparseAttention",
    "components.attention.compositional": "CompositionalAttention CompositionalAttentionConfig",
    "components.attention.favor": "FavorAttention FavorAttentionConfig",
    "components.attention.fourier_mix": "FourierMix",
    "components.attention.global_tokens": "GlobalAttention GlobalAttentionConfig",
    "components.attention.lambda_layer": "LambdaLayer LambdaLayerConfig",
    "components.attention.linformer": "LinformerAttention LinformerSelfAttentionConfig",
    "components.attention.local": "LocalAttention LocalAttentionConfig",
    "components.attention.ortho": "OrthoFormerAttention OrthoformerAttentionConfig",
    "components.attention.pooling": "Pooling PoolingAttentionConfig",
    "components.attention.random": "RandomAttention RandomAttentionConfig",
    "components.attention.scaled_dot_product": "ScaledDotProduct ScaledDotProductConfig",
    "components.attention.visual": "Visual VisualAttentionConfig",
    "components.feedforward.conv_mlp": "Conv2DFeedforward ConvMlpConfig",
    "components.input_projection": "InputProjection InputProjectionConfig",
    "components.positional_embedding.param": "LearnablePositionalEmbedding",
    "components.positional_embedding.sine": "SinePositionalEmbedding",
    "components.positional_embedding.vocab": "VocabEmbedding VocabEmbeddingConfig",
    "factory": """xFormer xFormerConfig xFormerDecoderBlock xFormerDecoderConfig xFormerEncoderBlock
        xFormerEncoderConfig xFormerStackConfig xFormerWeightInit""",
    "factory.block_configs": "LayerPosition xFormerDecoderConfig xFormerEncoderConfig",
    "factory.block_factory": "xFormerDecoderBlock xFormerEncoderBlock",
    "factory.hydra_helper": "import_xformer_config_schema",
    "factory.model_factory": "xFormer xFormerConfig xFormerStackConfig",
    "factory.weight_init": "_assert_if_not_initialized xFormerWeightInit",
    "helpers.hierarchical_configs": "BasicLayerConfig get_hierarchical_configuration",
    "helpers.test_utils": "init_torch_distributed_local",
    "helpers.timm_sparse_attention": "TimmSparseAttention",
    "benchmarks.benchmark_pytorch_transformer": "evaluate train",
    "ops": "masked_matmul",
    "sparse": "BlockSparseTensor SparseCSRTensor",
}

SURFACE = [(module, name) for module, names in NAMES.items() for name in names.split()]


@pytest.mark.parametrize(("module", "name"), SURFACE, ids=[f"{module}.{name}".strip(".") for module, name in SURFACE])
def test_a_name_is_where_it_was(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(f"{ROOT}.{module}".rstrip(".")), name)


def test_no_kernels_of_triton_are_used() -> None:
    from variform.dialects.xformers import _is_triton_available

    assert _is_triton_available() is False


def test_unmodified_imports_work_under_the_alias() -> None:
    surface = [(f"xformers.{module}".rstrip("."), name) for module, name in SURFACE]
    lines = [
        "from variform.dialects import alias",
        "alias('xformers')",
        *(f"from {module} import {name}" for module, name in surface),
        "import xformers.components.attention.attention_patterns as AP",
        "import variform.dialects.xformers.factory as ours",
        "assert xFormer is ours.xFormer",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
