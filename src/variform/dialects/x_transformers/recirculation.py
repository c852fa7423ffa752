"""`Recirculation`: each token is read twice, the second time with what deep layers made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.dialects.x_transformers.call import MODEL_CALL, refuse_call
from variform.dialects.x_transformers.decoding import in_upstream_terms
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.learned import causal_net
from variform.dialects.x_transformers.model import ModelDraft
from variform.dialects.x_transformers.table import REQUIRED, Table, problems_of, raise_any, table_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.generate.readers import evaluating
from variform.parts.kinds import State
from variform.stack.state import room
from variform.wrappers.recirculation import Mixer
from variform.wrappers.recirculation import Recirculation as Native

RecirculationMixer = Mixer
KEYWORDS: Table = table_of(
    {
        "source_layer": (REQUIRED, (int, tuple)),
        "destination_layer": (REQUIRED, (int, tuple)),
        "alpha": (0.15, (int, float, tuple)),
        "beta": (None, (int, float, tuple)),
        "ramp_steps": (10, (int,)),
        "use_learned": (False, (bool,)),
        "learned_hidden": (None, (int,)),
    }
)


CALL = {**MODEL_CALL, "prepend_embeds": None, "mask": None, "return_attn_z_loss": False}
"""Arguments of the model that are known and not supported, with their defaults."""


@dataclass
class RecirculationCache:
    """What was read, from which a call goes on; it is void after that.

    Args:
        ids: [B, L] token ids.
        state: the decode state.
    """

    ids: Tensor
    state: State

    @property
    def cache_length(self) -> int:
        """How many tokens were read."""
        return self.ids.shape[1]


class Recirculation(nn.Module):
    """A model that reads each token twice; see `variform.wrappers.recirculation.Recirculation`.

    Shapes:
        x: [B, L] token ids -> [B, L, num_tokens] logits

    Args:
        net: a causal `TransformerWrapper` that can cache keys and values.
        source_layer: the attention, counted from 0, whose input is mixed in; several as a tuple.
        destination_layer: the attention that reads the mixture; several as a tuple.
        alpha: factor of the source; one, or one for each.
        beta: factor of the destination; 1 - alpha by default.
        ramp_steps: over how many tokens alpha grows.
        use_learned: factors for each feature, told by a small network.
        learned_hidden: features of that network.
        **keywords: none; unknown ones are refused.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    net: TransformerWrapper

    def __init__(
        self,
        net: nn.Module,
        source_layer: int | tuple[int, ...],
        destination_layer: int | tuple[int, ...],
        alpha: float | tuple[float, ...] = 0.15,
        beta: float | tuple[float, ...] | None = None,
        ramp_steps: int = 10,
        use_learned: bool = False,
        learned_hidden: int | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"source_layer": source_layer, "destination_layer": destination_layer, "alpha": alpha}
        given |= {"beta": beta, "ramp_steps": ramp_steps, "use_learned": use_learned}
        given |= {"learned_hidden": learned_hidden, **keywords}
        raise_any(problems_of(type(self).__name__, KEYWORDS, given, KEYWORDS))
        # Not registered: its parameters are the inner model's, and must not be listed twice.
        self.__dict__["net"] = made = causal_net(net)
        if made.looped or made.recycling:
            raise KeywordError("recirculation is not compatible with a looped transformer", path="net")
        if not made.can_cache_kv:
            raise KeywordError("the net must be able to cache keys and values", path="net")
        if learned_hidden is not None and (not use_learned or learned_hidden < 1):
            message = "a positive number is needed, and use_learned"
            raise KeywordError(message, path="learned_hidden", value=learned_hidden)
        sources, targets = _several(source_layer, 1), _several(destination_layer, 1)
        if len(sources) != len(targets):
            message = f"as many as sources, {len(sources)}, are needed"
            raise KeywordError(message, path="destination_layer", value=destination_layer)
        count = len(sources)
        mixers = [Mixer(made.native.dim, learned_hidden) for _ in range(count)] if use_learned else None
        routes = list(zip(sources, targets, strict=True))
        with in_upstream_terms():
            self.inner = Native(made.native, routes, _several(alpha, count), _several(beta, count), ramp_steps, mixers)

    @property
    def learned_mixers(self) -> nn.Module | None:
        """What tells the factors."""
        return self.inner.mixers

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what; the layers stand there twice."""
        held: dict[str, nn.Module] = {"net.": self.net, "attn_layers.": self.net.attn_layers}
        return held if self.inner.mixers is None else {**held, "learned_mixers.": self.inner.mixers}

    @property
    def stands_for(self) -> TransformerWrapper:
        """The model that it is used in the place of, by `AutoregressiveWrapper` say."""
        return self.net

    @property
    def reader(self) -> Native:
        """The model that reads twice, which decodes in the place of the other."""
        return self.inner

    @property
    def draft(self) -> ModelDraft:
        """What describes the model."""
        return self.net.draft

    @property
    def looped(self) -> bool:
        """It is not."""
        return False

    @property
    def add_continuous_pred_head(self) -> bool:
        """Nothing but logits is told."""
        return False

    @property
    def output_is_log_prob(self) -> bool:
        """Whether the answers are logarithms of probabilities."""
        return self.net.output_is_log_prob

    @property
    def max_seq_len(self) -> int:
        """The longest text of the model."""
        return self.net.max_seq_len

    @property
    def can_cache_kv(self) -> bool:
        """It does."""
        return True

    @property
    def can_cache_kv_outside_max_seq_len(self) -> bool:
        """Whether nothing but the caller bounds the length."""
        return self.net.can_cache_kv_outside_max_seq_len

    def forward(
        self,
        x: Tensor,
        cache: RecirculationCache | None = None,
        return_intermediates: bool = False,
        seq_start_pos: Tensor | None = None,
        *,
        excise_prepend_embeds: bool = False,
        input_not_include_cache: bool | None = None,
        **more: Any,
    ) -> Any:
        """Read tokens one after another.

        Args:
            x: token ids; with a cache, the new ones behind those that were read.
            cache: what an earlier call gave with `return_intermediates=True`.
            return_intermediates: return (logits, cache).
            seq_start_pos: [B] where each row begins, of rows padded on the left.
            excise_prepend_embeds: nothing stands in front.
            input_not_include_cache: whether x is the new tokens alone, and not all; by default as the net was built.
            **more: the model's other arguments, at their defaults.
        """
        refuse_call(type(self).__name__, CALL, more)
        if x.dim() != 2 or not x.shape[1]:
            raise InputError(f"token ids are [batch, length], at least one; got {list(x.shape)}")
        known = 0 if cache is None else cache.cache_length
        alone = self.draft.input_not_include_cache if input_not_include_cache is None else input_not_include_cache
        new = x if alone else x[:, known:]
        if cache is not None and (x.shape[0] != cache.ids.shape[0] or not new.shape[1]):
            raise InputError(f"the cache holds {list(cache.ids.shape)} tokens, and {list(x.shape)} hold no new ones")
        places = torch.arange(known, known + new.shape[1], device=x.device)
        valid = None if seq_start_pos is None else places >= seq_start_pos.unsqueeze(1)
        with in_upstream_terms():
            if cache is None:
                longest = self.inner.max_seq_len or 2 * x.shape[1]
                state = self.inner.init_state(len(x), longest)
            else:
                state = cache.state
                if room(state) < new.shape[1]:
                    raise InputError(f"the cache has room for {room(state)} tokens more")
            logits, state = self.inner(new, valid=valid, state=state)
        read = new if cache is None else torch.cat((cache.ids, new), 1)
        return (logits, RecirculationCache(read, state)) if return_intermediates else logits

    def learn_parameters(
        self,
        x: Tensor,
        steps: int = 100,
        optimizer_cls: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 32,
    ) -> float:
        """Train the networks that tell the factors, and nothing else; the last loss.

        Args:
            x: [N, L] token ids; targets of 0 do not count.
            steps: of the optimiser.
            optimizer_cls: from parameters and keywords to an optimiser.
            optimizer_kwargs: `lr=3e-4, weight_decay=1e-4` by default.
            batch_size: rows of a step, drawn with replacement.
        """
        if self.inner.mixers is None:
            raise InputError("use_learned=True is needed: there is nothing to learn")
        if steps < 1:
            raise InputError("at least one step is needed")
        params = list(self.inner.mixers.parameters())
        options = {"lr": 3e-4, "weight_decay": 1e-4} if optimizer_kwargs is None else dict(optimizer_kwargs)
        optimiser, loss = optimizer_cls(params, **options), torch.zeros(())
        with evaluating(self.net), torch.enable_grad():
            for _ in range(steps):
                rows = x[torch.randint(0, len(x), (batch_size,), device=x.device)]
                logits = self(rows)[:, :-1]
                loss = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], ignore_index=0)
                optimiser.zero_grad()
                loss.backward(inputs=params)  # type: ignore[no-untyped-call]
                optimiser.step()
        return loss.item()


def _several(value: Any, count: int) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,) * count
