"""What the wrappers of further objectives have in common: the model they take, and its pieces by upstream's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import KeywordError
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.errors import did_you_mean
from variform.parts.embedding.module import ModuleEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.wrappers.gaussian import Sketch

SKETCH = {"num_slices": "slices", "domain": "domain", "num_knots": "knots"}


def causal_net(net: nn.Module, dim: int | None = None, path: str = "net") -> TransformerWrapper:
    """A `TransformerWrapper` that tells the next token, one answer a token.

    Raises:
        KeywordError: it is none, or its answers are others; `dim` is not that of its layers.
    """
    if not isinstance(net, TransformerWrapper):
        raise KeywordError(f"{path} is a TransformerWrapper, not {type(net).__name__}", path=path)
    if not net.native.causal:
        hint = "build the wrapper around a Decoder"
        raise KeywordError("what comes cannot be learned by layers that see it", path=path, hint=hint)
    heads, draft = net.draft.heads, net.draft
    if heads.return_only_embed or heads.num_output_heads > 1 or heads.average_pool_embed or heads.attn_pool:
        raise KeywordError("one head with logits of each token is needed", path=path)
    if heads.add_continuous_pred_head or heads.squeeze_out_last_dim or draft.use_cls_token:
        raise KeywordError("one head with logits of each token is needed", path=path)
    width = net.native.dim
    if dim is not None and dim != width:
        raise KeywordError(f"the layers have {width} features", path="dim", value=dim)
    return net


def refuse_losses(given: Mapping[str, Any]) -> None:
    """Weights of losses are not negative, and there is a step at least.

    Raises:
        KeywordError: naming the keyword.
    """
    for name, value in given.items():
        if name.endswith("_loss_weight") and isinstance(value, int | float) and value < 0:
            raise KeywordError("must not be negative", path=name, value=value)
    if given.get("num_rollouts", 1) < 1:
        raise KeywordError("must be greater than 0", path="num_rollouts", value=given["num_rollouts"])


def sketch_of(options: Mapping[str, Any]) -> Sketch:
    """The statistic that `sigreg_loss_kwargs` describe.

    Raises:
        KeywordError: unknown keywords, or values that are none.
    """
    for name in options:
        if name not in SKETCH:
            message = f"the statistic has no keyword {name!r}"
            raise KeywordError(message, path=f"sigreg_loss_kwargs.{name}", hint=did_you_mean(name, SKETCH))
    with in_upstream_terms():
        return Sketch(**{SKETCH[name]: value for name, value in options.items()})


def sigreg_loss(
    x: Tensor, num_slices: int = 1024, domain: tuple[float, float] = (-5, 5), num_knots: int = 17
) -> Tensor:
    """How far vectors [.., dim] are from a Gaussian; see `variform.wrappers.gaussian.Sketch`."""
    return Sketch(num_slices, domain, num_knots)(x)


def token_table(net: TransformerWrapper) -> dict[str, nn.Module | Tensor]:
    """The vectors of tokens, under the key that upstream's wrappers hold them beside the model."""
    for part in net.native.embedding.modules() if net.native.embedding is not None else ():
        if isinstance(part, ModuleEmbedding):
            return {"token_emb.": part.module}
        if isinstance(part, TokenEmbedding):
            return {"token_emb.emb.weight": part.weight}
    return {}


def left_out(hidden: Tensor, ids: Tensor) -> Tensor:
    """The hidden states of the tokens, without those of what stands in front."""
    return hidden[:, hidden.shape[1] - ids.shape[1] :]
