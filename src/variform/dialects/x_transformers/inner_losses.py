"""What weights that learn while a text is read learn from, other than the next token, and low-rank maps for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.dialects.x_transformers.attention_layers import Encoder
from variform.dialects.x_transformers.errors import KeywordError


class TTTMetaLearningTargetKLLoss(nn.Module):
    """Per token KL(p || q): predictions p of the hidden states against predictions q of the same, encoded once more.

    Shapes:
        intermediates.last_layer_hiddens: [B, L, dim], mask: [B, L] bool -> [B, L]

    Args:
        dim: features of the hidden states.
        num_classes: classes of the predictions.
        depth: blocks of the encoder.
        heads: of the encoder.
        dim_head: features of a head.
        **keywords: further ones of `Encoder`.
    """

    def __init__(
        self, *, dim: int, num_classes: int, depth: int = 1, heads: int = 4, dim_head: int = 64, **keywords: Any
    ) -> None:
        super().__init__()
        self.encoder = Encoder(dim=dim, depth=depth, heads=heads, attn_dim_head=dim_head, **keywords)
        self.to_prediction = nn.Linear(dim, num_classes)
        self.to_meta_prediction = nn.Linear(dim, num_classes)

    def forward(self, intermediates: Any, mask: Tensor | None = None) -> Tensor:
        """The divergence of each token."""
        hiddens: Tensor = intermediates.last_layer_hiddens
        chances = self.to_prediction(hiddens).softmax(-1)
        targets = self.to_meta_prediction(self.encoder(hiddens, mask=mask)).log_softmax(-1)
        return F.kl_div(targets, chances, reduction="none").sum(-1)


class TTTNextLatentPredictionLoss(nn.Module):
    """Per token the error of a small MLP that predicts the next hidden state, in the last place the first one.

    Shapes:
        intermediates.last_layer_hiddens: [B, L, dim], mask: [B, L] bool -> [B, L]

    Args:
        dim: features of the hidden states.
        hidden_dim: features within the MLP.
        num_layers: maps of the MLP.
        loss_type: "smooth_l1" or "mse".

    Raises:
        KeywordError: another loss.
    """

    def __init__(
        self,
        *,
        dim: int,
        hidden_dim: int | None = None,
        num_layers: int = 3,
        loss_type: Literal["smooth_l1", "mse"] = "smooth_l1",
    ) -> None:
        super().__init__()
        inner = hidden_dim or dim
        layers: list[nn.Module] = [nn.LayerNorm(dim)]
        for place in range(num_layers):
            last = place + 1 == num_layers
            layers.append(nn.Linear(inner if place else dim, dim if last else inner))
            layers += [] if last else [nn.GELU()]
        self.predictor = nn.Sequential(*layers)
        errors: dict[str, Callable[..., Tensor]] = {"smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}
        if loss_type not in errors:
            raise KeywordError(f"one of {', '.join(errors)}", path="loss_type", value=loss_type)
        self.loss_fn = errors[loss_type]

    def forward(self, intermediates: Any, mask: Tensor | None = None) -> Tensor:
        """The error of each token; 0 where the next one is padding."""
        hiddens: Tensor = intermediates.last_layer_hiddens
        errors = self.loss_fn(self.predictor(hiddens), hiddens.roll(-1, 1).detach(), reduction="none").mean(-1)
        return errors if mask is None else errors.masked_fill(~mask.roll(-1, 1), 0.0)


class LowRankLinear(nn.Module):
    """A linear map whose weight A B is of low rank and begins at zero, in the place of another map.

    Shapes:
        x: [.., in] -> [.., out]; A: [out, low_rank_dim], B: [low_rank_dim, in]

    Args:
        module: the map that it replaces; its offset is taken over.
        low_rank_dim: the rank.

    Raises:
        KeywordError: the weight is no matrix, or the rank is not below its sizes.
    """

    def __init__(self, module: nn.Module, low_rank_dim: int) -> None:
        super().__init__()
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise KeywordError(f"{type(module).__name__} has no weight that is a matrix", path="ttt_low_rank_paths")
        if not 0 < low_rank_dim < min(weight.shape):
            message = f"the rank must lie in 1..{min(weight.shape) - 1}, below the sizes of the weight"
            raise KeywordError(message, path="ttt_low_rank_paths", value=low_rank_dim)
        rows, columns = weight.shape
        self.weight_a = nn.Parameter(torch.randn(rows, low_rank_dim, dtype=weight.dtype, device=weight.device))
        self.weight_b = nn.Parameter(weight.new_zeros(low_rank_dim, columns))
        self.bias = nn.Parameter(bias.detach().clone()) if isinstance(bias, Tensor) else None

    @property
    def weight(self) -> Tensor:
        """A B."""
        return self.weight_a @ self.weight_b

    def forward(self, x: Tensor) -> Tensor:
        """x B^T A^T + b."""
        return F.linear(x, self.weight, self.bias)
