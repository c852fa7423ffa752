"""Blocks as upstream built them, where that was not what it said: for checkpoints that were trained so."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from variform.dialects.xformers.components.residual import (
    PostNorm,
    Residual,
    ResidualNormStyle,
    get_deepnorm_coefficients,
)
from variform.dialects.xformers.factory.block import Block


def as_upstream(block: Block, prefix: str, names: Container[str]) -> None:
    """Take back what the dialect does right and upstream did not.

    With more than one layer no layer was the last: the final norm and the simplicial embedding were lost. DeepNorm's
    factor was that of an encoder of these layers alone, whatever else the model held.

    Args:
        block: of the dialect; changed in place.
        prefix: what its weights' names begin with.
        names: the weights of the checkpoint.
    """
    if block.residual_norm_style == ResidualNormStyle.Pre and isinstance(block.wrap_ff, PostNorm):
        inner = block.wrap_ff.sublayer
        if f"{prefix}wrap_ff.sublayer.layer.norm.weight" not in names and f"{prefix}wrap_ff.layer.norm.weight" in names:
            block.wrap_ff = inner
    if block.final_norm is not None and f"{prefix}final_norm.weight" not in names:
        block.register_module("final_norm", None)
    if block.num_layers > 1 and getattr(block, "simplicial_embedding", None) is not None:
        block.register_module("simplicial_embedding", None)
    if block.residual_norm_style == ResidualNormStyle.DeepNorm:
        coefficients, _ = get_deepnorm_coefficients(block.num_layers, 0)
        assert coefficients is not None
        for module in block.modules():
            scaled: Any = module
            if isinstance(module, Residual):
                scaled.scale = coefficients.alpha
