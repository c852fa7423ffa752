"""What deep layers have made of a token is mixed into what shallow ones read of it, and the token is read again."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.spec import Spec
from variform.errors import ConfigError, ShapeError
from variform.parts.kinds import State
from variform.parts.linear import Linear
from variform.stack.decodable import refuse_undecodable
from variform.stack.multi_stream import MultiStreamStack
from variform.stack.recurrent import LoopedStack, RecycledStack
from variform.stack.tapped import Change, layer_stack, mixing_steps, tapped_mixing
from variform.wrappers.rollouts import checked_model, logits_of


def as_long_as(source: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    """Vectors of the directions of `source` and the lengths of `target`, zeros where there is no direction."""
    length = source.norm(dim=-1, keepdim=True)
    scale = target.norm(dim=-1, keepdim=True) / length.clamp(min=eps)
    found: Tensor = source * scale.masked_fill(length <= eps, 0.0)
    return found


class Mixer(nn.Module):
    """Both factors of a mixture for each feature, sigmoid(f(norm([source, target]))), f an MLP with GELU.

    Shapes:
        source, target: [.., dim] -> [.., dim], [.., dim]

    Args:
        dim: features.
        hidden: of the MLP; `dim` by default.
        init_alpha: factor of the source at first.
        init_beta: factor of the target at first.
    """

    def __init__(self, dim: int, hidden: int | None = None, init_alpha: float = 0.1, init_beta: float = 0.9) -> None:
        super().__init__()
        size = dim if hidden is None else hidden
        for name, value in (("init_alpha", init_alpha), ("init_beta", init_beta)):
            if not 0 < value < 1:
                raise ConfigError("a number in (0, 1) is needed", path=name, value=value)
        self.input_norm = nn.LayerNorm(2 * dim)
        last = Linear(size, 2 * dim)
        self.mlp = nn.Sequential(Linear(2 * dim, size), nn.GELU(), Linear(size, size), nn.GELU(), last)
        nn.init.normal_(last.weight, std=0.02)
        begin = [math.log(value / (1 - value)) for value in (init_alpha, init_beta)]
        with torch.no_grad():
            last.bias.copy_(torch.tensor(begin).repeat_interleave(dim))

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The factors."""
        both = self.mlp(self.input_norm(torch.cat((source, target), -1))).sigmoid()
        alpha, beta = both.chunk(2, -1)
        return alpha, beta


class Recirculation(nn.Module):
    """Reads each token twice: the second time some attentions read a mixture (arXiv:2608.17981).

    z = alpha * (z_source / |z_source|) |z_target| + beta * z_target of the first reading stands in the place of what
    the attention `target` reads; keys and values of the second reading are those that are kept, the answer is that of
    the first. alpha grows over the first tokens. A model for `vf.generate`, token after token.

    Shapes:
        ids: [B, L] -> logits [B, L, V]; with a state, (that, new state)

    Args:
        model: a causal model of the core that can decode.
        routes: (source, target), attentions counted from 0.
        alphas: one for each route.
        betas: one for each route; None for 1 - alpha.
        ramp: over how many tokens alpha grows to its value.
        mixers: tell both factors, one module for each route; `alphas`, `betas` and `ramp` have no effect then.

    Raises:
        ConfigError: another model, or values that do not fit.
    """

    causal = True

    def __init__(
        self,
        model: nn.Module,
        routes: Sequence[tuple[int, int]],
        alphas: Sequence[float],
        betas: Sequence[float | None],
        ramp: int = 10,
        mixers: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.model = checked_model(model)
        refuse_undecodable(self.model)
        if any(isinstance(part, (LoopedStack, RecycledStack)) for part in self.model.modules()):
            raise ConfigError("is not compatible with stacks that run several times", path="model")
        if len(self.model.stacks) != 1 or any(isinstance(part, MultiStreamStack) for part in self.model.modules()):
            raise ConfigError("one stack, and one residual stream a token, are needed", path="model")
        steps = len(mixing_steps(layer_stack(self.model).layers))
        for source, target in routes:
            for name, place in (("source", source), ("destination", target)):
                if not 0 <= place < steps:
                    message = f"{name} {place} is out of range: there are {steps} attention layers"
                    raise ConfigError(message, path="routes", value=(source, target))
            if target >= source:
                message = "each destination must be shallower than its source"
                raise ConfigError(message, path="routes", value=(source, target))
        if len({target for _, target in routes}) < len(routes):
            raise ConfigError("destinations must be unique", path="routes", value=tuple(routes))
        for name, values in (("alphas", alphas), ("betas", betas), ("mixers", mixers or routes)):
            if len(values) != len(routes):
                raise ConfigError(f"one for each of the {len(routes)} routes", path=name, value=len(values))
        if ramp < 0:
            raise ConfigError("must not be negative", path="ramp", value=ramp)
        self.routes = tuple((source, target) for source, target in routes)
        self.alphas = tuple(alphas)
        self.betas = tuple(betas)
        self.ramp = ramp
        self.mixers = None if mixers is None else nn.ModuleList(mixers)

    @property
    def spec(self) -> Spec:
        """The description of the model."""
        return self.model.spec

    @property
    def vocab_size(self) -> int | None:
        """The number of different tokens."""
        return self.model.vocab_size

    @property
    def max_seq_len(self) -> int | None:
        """The longest text."""
        return self.model.max_seq_len

    def init_state(self, batch: int, max_len: int | None = None, **options: Any) -> State:
        """An empty decode state of the model."""
        return self.model.init_state(batch, max_len, **options)

    def forward(
        self,
        ids: Tensor,
        *,
        valid: Tensor | None = None,
        state: State | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Any:
        """Read tokens one after another.

        Args:
            ids: token ids.
            valid: [B, L] bool, False at padding.
            state: a decode state, which holds the context.
            context: for cross attention.
            context_mask: [B, Lc] bool, False at padding of the context.
            condition: for adaptive parts.
        """
        if ids.dim() != 2 or not ids.shape[1]:
            raise ShapeError(f"token ids are [batch, length], one at least; got {list(ids.shape)}")
        kept: dict[str, Any] = {
            name: x for name, x in (("context", context), ("context_mask", context_mask)) if x is not None
        }
        own = self.model.init_state(len(ids), ids.shape[1], **kept) if state is None else state
        more = {} if condition is None else {"condition": condition}
        made = []
        for place in range(ids.shape[1]):
            real = None if valid is None else valid[:, place : place + 1]
            logits, own = self._read(ids[:, place : place + 1], real, own, more)
            made.append(logits)
        whole = torch.cat(made, 1)
        return whole if state is None else (whole, own)

    def _read(self, token: Tensor, valid: Tensor | None, state: State, more: dict[str, Any]) -> tuple[Tensor, State]:
        """The logits of the first reading, and the state of the second."""
        read: dict[int, Tensor] = {}
        # Without autograd a state that was used is void; with it, nothing is overwritten.
        first = state if torch.is_grad_enabled() else copy.deepcopy(state)
        # Views and no hooks: activations that are computed again in the backward pass are changed again.
        hidden, _ = tapped_mixing(self.model, read)(token, valid=valid, state=first, hidden=True, **more)
        seen = state["seen"]
        counts = torch.full_like(token[:, 0], state["count"]) if seen is None else seen
        changes: dict[int, Change] = {}
        for route, (source, target) in enumerate(self.routes):
            changes[target] = partial(_other, by=self._mixed(route, read[source][:, -1:], read[target][:, -1:], counts))
        _, state = tapped_mixing(self.model, None, changes)(token, valid=valid, state=state, hidden=True, **more)
        return logits_of(self.model, hidden), state

    def _mixed(self, route: int, source: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        if self.mixers is not None:
            alpha, beta = self.mixers[route](source, target)
        else:
            grown = (
                (counts.to(target.dtype) / self.ramp).clamp(max=1.0) if self.ramp else torch.ones_like(target[:, 0, 0])
            )
            alpha = (self.alphas[route] * grown).view(-1, 1, 1)
            fixed = self.betas[route]
            beta = 1 - alpha if fixed is None else fixed
        found: Tensor = alpha * as_long_as(source, target) + beta * target
        return found


def _other(x: Tensor, by: Tensor) -> Tensor:
    """The last token's features are others; what stands in front, in the first call, stays."""
    return torch.cat((x[:, :-1], by), 1)
