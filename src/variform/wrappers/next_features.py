"""Predicting the next features of a sequence of numbers: losses of one step and of several, and generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from variform.errors import ConfigError, ShapeError
from variform.generate.readers import evaluating
from variform.stack.model import Transformer
from variform.wrappers.reading import Reading

Predict = Callable[[Tensor, Tensor | None], Tensor]
"""From features [B, L, d] and which are real [B, L] to predictions [B, L, d], or [2, B, L, d] of a Gaussian."""

Error = Callable[[Tensor, Tensor], Tensor]
"""From predictions and targets [B, L, d] to errors of that shape."""


def gaussian(features: Tensor) -> Tensor:
    """Mean and variance from pairs of features, (mean, log variance): [..., 2d] -> [2, ..., d]."""
    mean, log_variance = features[..., ::2], features[..., 1::2]
    return torch.stack((mean, log_variance.exp()))


def gaussian_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Half of log v + (t - m)^2 / v: the negative log likelihood of a Gaussian, less its constant."""
    mean, variance = prediction.unbind()
    # torch's own looks at the values, which stops a compiler; as there, the least variance passes the gradient.
    variance = variance + (variance.clamp(min=1e-6) - variance).detach()
    return 0.5 * (variance.log() + (target - mean).square() / variance)


def drawn(prediction: Tensor, temperature: float = 1.0) -> Tensor:
    """A draw from Gaussians [2, ..., d], with the gradient of mean and variance; the mean at temperature 0."""
    mean, variance = prediction.unbind()
    deviation = variance.clamp(min=1e-5).sqrt() * temperature
    return mean + torch.randn_like(mean) * deviation if temperature else mean


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(t - p)^2."""
    return (target - prediction).square()


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """|t - p|."""
    return (target - prediction).abs()


ERRORS: dict[str, Error] = {"squared": squared_error, "absolute": absolute_error, "gaussian": gaussian_error}
"""Errors by name."""


def real_targets(valid: Tensor, length: int) -> Tensor:
    """Which targets are real, from which inputs are: [B, L] of all `length` features, or [B, L - 1] of the targets.

    Raises:
        ShapeError: it has another length.
    """
    if valid.shape[1] not in (length, length - 1):
        raise ShapeError(f"which features are real is told for all {length} or for the {length - 1} targets")
    return valid[:, 1:] if valid.shape[1] == length else valid


def next_step_error(predict: Predict, x: Tensor, valid: Tensor | None, error: Error) -> tuple[Tensor, Tensor | None]:
    """The error of each prediction of the features after the first, and which of them count.

    Shapes:
        x: [B, L, d]; valid: [B, L] bool -> [B, L - 1, d], [B, L - 1]
    """
    if x.dim() != 3 or x.shape[1] < 2:
        raise ShapeError(f"at least two features a row are needed, [batch, length, features]; got {list(x.shape)}")
    counted = None if valid is None else real_targets(valid, x.shape[1])
    seen = None if valid is None else valid[:, : x.shape[1] - 1]
    return error(predict(x[:, :-1], seen), x[:, 1:]), counted


def rollout_error(
    predict: Predict,
    x: Tensor,
    lengths: Tensor,
    steps: int,
    error: Error,
    feed: Callable[[Tensor], Tensor],
) -> Tensor:
    """The errors of `steps` predictions in a row, each made with those before it in the place of what was real.

    Every row is continued from a place of its own, drawn evenly from those with a feature before and `steps` behind.
    Gradients flow through what is fed back.

    Shapes:
        x: [B, L, d]; lengths: [B], all above `steps` -> [B, steps, d]

    Args:
        predict: the model.
        x: real features, padded on the right.
        lengths: how many of each row are real.
        steps: how many predictions.
        error: compares predictions with what was real.
        feed: what is fed back for a prediction.
    """
    places = lengths - steps  # there are so many first predictions: of feature 1 to lengths - steps
    start = 1 + (torch.rand(len(x), device=x.device) * places).long()
    x = x[:, : int(start.max()) + steps]
    index = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
    rows = torch.arange(len(x), device=x.device)
    fed, predictions = x, []
    for step in range(steps):
        here = start + step
        whole = predict(fed[:, : int(here.max())], None)  # nothing behind a row's end is seen: the model is causal
        prediction = whole[..., rows, here - 1, :]
        predictions.append(prediction)
        if step + 1 < steps:
            now = (index == here.unsqueeze(1)).unsqueeze(-1)
            fed = torch.where(now, feed(prediction).unsqueeze(1), fed)
    wanted = x[rows.unsqueeze(1), start.unsqueeze(1) + torch.arange(steps, device=x.device)]
    return error(torch.stack(predictions, -2), wanted)


def generate_features(reading: Reading, prompt: Tensor, steps: int, feed: Callable[[Tensor], Tensor]) -> Tensor:
    """Continue features: [B, L, d] -> [B, steps, d], each prediction fed back as `feed` says."""
    made: list[Tensor] = []
    new = prompt
    for _ in range(steps):
        new = feed(reading.read(new)[..., -1:, :])
        made.append(new)
    return torch.cat(made, 1) if made else prompt[:, :0]


class NextFeatures(nn.Module):
    """Trains a causal model of features to predict the next, and continues sequences with it.

    The model maps [B, L, d] to [B, L, d], or to [B, L, 2d] for `loss="gaussian"`, which learns mean and variance. With
    `rollout` > 1 it is trained on its own predictions, as world models are (Assran et al. 2025, V-JEPA 2,
    arXiv:2506.09985, two steps).

    Shapes:
        x: [B, L, d] -> the loss, a scalar

    Args:
        model: a causal model of features (`Transformer` with a `FeatureEmbedding`).
        loss: "squared", "absolute" or "gaussian".

    Raises:
        ConfigError: another loss, or a model that sees what it should predict.
    """

    def __init__(self, model: Transformer, loss: Literal["squared", "absolute", "gaussian"] = "squared") -> None:
        super().__init__()
        if loss not in ERRORS:
            raise ConfigError(f"one of {', '.join(ERRORS)} is needed", path="loss", value=loss)
        if not model.causal:
            raise ConfigError("the next features cannot be learned by a model that sees them: causal=True is needed")
        self.model = model
        self.loss = loss

    def forward(self, x: Tensor, valid: Tensor | None = None, rollout: int = 1) -> Tensor:
        """The mean error of the predictions.

        Args:
            x: features.
            valid: [B, L] bool, True at real features; with a rollout padding is on the right.
            rollout: how many predictions in a row are compared.
        """
        if rollout > 1:
            lengths = row_lengths(x, valid)
            enough = long_enough(lengths, rollout)
            errors = rollout_error(self._predict, x[enough], lengths[enough], rollout, ERRORS[self.loss], self._feed)
            return errors.mean()
        errors, counted = next_step_error(self._predict, x, valid, ERRORS[self.loss])
        return errors.mean() if counted is None else errors[counted].mean()

    @torch.no_grad()
    def generate(self, prompt: Tensor, steps: int, temperature: float = 1.0, use_cache: bool = True) -> Tensor:
        """Continue features, [B, L, d] -> [B, steps, d]; `temperature` scales the deviations of a Gaussian."""
        model = self.model
        cached = model if use_cache else None
        with evaluating(model):
            reading = Reading(model, model.max_seq_len, cached, prompt.shape[1] + steps)
            return generate_features(reading, prompt, steps, lambda out: self._feed(self._shaped(out), temperature))

    def _predict(self, x: Tensor, valid: Tensor | None) -> Tensor:
        return self._shaped(self.model(x, valid=valid))

    def _shaped(self, out: Tensor) -> Tensor:
        return gaussian(out) if self.loss == "gaussian" else out

    def _feed(self, prediction: Tensor, temperature: float = 1.0) -> Tensor:
        return drawn(prediction, temperature) if self.loss == "gaussian" else prediction


def row_lengths(x: Tensor, valid: Tensor | None) -> Tensor:
    """How many features of each row are real, of rows padded on the right, [B].

    Raises:
        ShapeError: padding elsewhere.
    """
    if valid is None:
        return torch.full((x.shape[0],), x.shape[1], device=x.device)
    lengths = valid.sum(1)
    if not torch.equal(valid, torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)):
        raise ShapeError("several predictions in a row need rows that are padded on the right alone")
    return lengths


def long_enough(lengths: Tensor, steps: int) -> Tensor:
    """Which rows can be predicted `steps` times in a row, [B] bool.

    Raises:
        ShapeError: none.
    """
    enough = lengths > steps
    if not bool(enough.any()):
        raise ShapeError(f"no row has more than {steps} features, so that none can be predicted {steps} times")
    return enough
