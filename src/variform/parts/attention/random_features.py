"""The random features of FAVOR: buffers that are saved with the model, and drawn anew every so many training steps."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor, nn

from variform.errors import ShapeError
from variform.ops.favor import Features, log_features, orthogonal_features

RECENT = 16
"""Calls whose features are known when they are computed again: a layer may serve several times in one step."""


class RandomFeatures(nn.Module):
    """Logarithms of positive random features (`variform.ops.favor.log_features`).

    The buffers `features` [dim, columns] and `calls` (training calls so far) are in the state dict: a model that is
    loaded computes what the saved one did, and goes on to draw the same features. The first ones come from torch's
    generator; the seed of later ones is made from those that they replace, so that neither dropout nor the other
    processes of a run notice a draw.

    Args:
        dim: features of a head; None takes it from the first input.
        count: number of random features; ceil(dim (1 + log2 dim)), made even, by default.
        kind: "sm_orf" (positive), "sm_hyp" (hyperbolic) or "sm_reg" (hyperbolic, all directions of length sqrt(dim)).
        every: draw anew after this many training calls; None never does.
        normalize: scale each input to the length sqrt(dim) first.
        temperature: inputs are multiplied by it; by dim^(-1/4) when None.
    """

    features: Tensor
    calls: Tensor

    def __init__(
        self,
        dim: int | None,
        count: int | None = None,
        kind: Features = "sm_reg",
        every: int | None = None,
        normalize: bool = False,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.given_count = count
        self.kind = kind
        self.every = every
        self.normalize = normalize
        self.temperature = temperature
        self.register_buffer("features", torch.empty(self._shape() if dim else (0, 0)))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=RECENT)
        self.reset_parameters()

    @property
    def mirrored(self) -> bool:
        """Whether each direction serves twice, with both signs."""
        return self.kind != "sm_orf"

    @property
    def count(self) -> int:
        """How many features come out."""
        assert self.dim is not None
        count = self.given_count or default_count(self.dim)
        return count + count % 2 if self.mirrored else count

    def _shape(self) -> tuple[int, int]:
        assert self.dim is not None
        return self.dim, self.count // 2 if self.mirrored else self.count

    def reset_parameters(self) -> None:
        """Draw features from torch's generator, and count from 0."""
        if self.features.is_meta:
            return
        with torch.no_grad():
            self.calls.zero_()
            if self.dim:
                self.features.copy_(
                    orthogonal_features(*self._shape(), self.kind == "sm_reg", device=self.calls.device)
                )

    def forward(self, *inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logarithms of the features of each input, in two parts; all inputs of one call count as one call.

        Shapes:
            [..., dim] -> ([..., count], [..., 1]), to be added
        """
        if self.dim is None:
            self._begin(inputs[0].shape[-1], inputs[0])
        features = self.features
        if self.training and self.every is not None:
            features = features_of_call(self, inputs, self.every)
        for x in inputs:
            if x.shape[-1] != self.dim:
                raise ShapeError(f"these random features were drawn for {self.dim} features a head, not {x.shape[-1]}")
        return [log_features(x, features, self.mirrored, self.normalize, self.temperature) for x in inputs]

    def _begin(self, dim: int, like: Tensor | None = None) -> None:
        """Take the size from what comes first."""
        self.dim = dim
        device = self.features.device if like is None else like.device
        with torch.no_grad():
            features = orthogonal_features(*self._shape(), self.kind == "sm_reg", device=device)
            self.features = features.to(self.features.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        saved = state_dict.get(f"{prefix}features")
        if self.dim is None and saved is not None and saved.numel():
            self._begin(saved.shape[0])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """What it is."""
        return f"{self.kind}, dim={self.dim}, count={self.count if self.dim else self.given_count}, every={self.every}"


def default_count(dim: int) -> int:
    """ceil(dim (1 + log2 dim)), made even: enough for the error to fall as the paper's bound says."""
    count = math.ceil(dim * (1 + math.log2(dim)))
    return count + count % 2


def features_of_call(part: RandomFeatures, inputs: tuple[Tensor, ...], every: int) -> Tensor:
    """The features of a training call; those it had, where it is computed again in a backward pass."""
    marks = torch.stack([x.detach().sum(dtype=torch.float64) for x in inputs])
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        return next((then for seen, then in reversed(part.recent) if torch.equal(seen, marks)), part.features)
    part.features, part.calls = renewed(part.features, part.calls, every, part.kind == "sm_reg")
    if not torch.compiler.is_compiling():
        part.recent.append((marks, part.features))
    return part.features


def _renewed(features: Tensor, calls: Tensor, every: int, regular: bool) -> tuple[Tensor, Tensor]:
    """The features of the next training call, and the new number of calls.

    An operator of its own, because whether it draws depends on data: a compiled model calls it as it is. A forward pass
    that is computed again, within a backward pass (activation checkpointing, reversible layers), is not another call.
    """
    if torch._C._current_graph_task_id() != -1:
        return features.clone(), calls.clone()
    done = int(calls)
    if done == 0 or done % every:
        return features.clone(), calls + 1
    generator = torch.Generator().manual_seed(hash(tuple(features.flatten().tolist())) % (1 << 62))
    dim, columns = features.shape
    return orthogonal_features(dim, columns, regular, generator=generator).to(features), calls + 1


renewed = torch.library.custom_op("variform::renewed_features", _renewed, mutates_args=())


@renewed.register_fake
def _(features: Tensor, calls: Tensor, every: int, regular: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(features), torch.empty_like(calls)
