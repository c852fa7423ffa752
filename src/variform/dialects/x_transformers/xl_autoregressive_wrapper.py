"""`XLAutoregressiveWrapper`: texts in segments that remember, and weights that learn while a text is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.x_transformers.decoding import in_upstream_terms, refuse_others
from variform.dialects.x_transformers.episodic import EpisodicMemories, EpisodicMemoryWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.filters import Filter, filters_of, top_k, top_p
from variform.dialects.x_transformers.inner_losses import (
    LowRankLinear,
    TTTMetaLearningTargetKLLoss,
    TTTNextLatentPredictionLoss,
)
from variform.dialects.x_transformers.memory import memories_of
from variform.dialects.x_transformers.paths import module_at, replaced
from variform.dialects.x_transformers.table import Route, Table, apply_all, problems_of, put, raise_any
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.parts.memories import Memories
from variform.stack.model import Transformer
from variform.wrappers.fast_weights import FastWeights, Weights, constants
from variform.wrappers.segments import Segments, by_length

__all__ = [
    "EpisodicMemories",
    "EpisodicMemoryWrapper",
    "LowRankLinear",
    "TTTMetaLearningTargetKLLoss",
    "TTTNextLatentPredictionLoss",
    "XLAutoregressiveWrapper",
    "top_k",
    "top_p",
]

SIDE_STREAMS = ("context", "context_mask", "condition")
"""Arguments of the model that mean the same for every token."""

KEYWORDS: Table = {
    "ignore_index": Route(-100, put("ignore_index"), types=(int,)),
    "pad_value": Route(0, put("pad_value"), types=(int,)),
    "tbptt_steps": Route(1, put("tbptt_steps"), types=(int,)),
    "ttt_module_paths": Route((), put("ttt_module_paths"), types=(tuple, list)),
    "ttt_lr": Route(1e-3, put("ttt_lr"), types=(int, float)),
    "ttt_wd": Route(0.01, put("ttt_wd"), types=(int, float)),
    "ttt_use_muon": Route(False, put("ttt_use_muon")),
    "ttt_muon_steps": Route(5, put("ttt_muon_steps"), needs="ttt_use_muon", types=(int,)),
    "ttt_muon_lr": Route(1e-2, put("ttt_muon_lr"), needs="ttt_use_muon", types=(int, float)),
    "ttt_low_rank_paths": Route((), put("ttt_low_rank_paths"), types=(tuple, list)),
    "ttt_custom_loss_module": Route(None, put("ttt_custom_loss_module"), types=(nn.Module,)),
    "ttt_next_latent_loss": Route(False, put("ttt_next_latent_loss")),
    "episodic_mem_len": Route(0, put("episodic_mem_len"), types=(int,)),
}
"""Keyword -> the attribute of the wrapper's draft."""


class XLAutoregressiveWrapper(nn.Module):
    """Trains a `TransformerWrapper` on texts of any length, in segments of `max_seq_len` tokens, and continues them.

    Each segment remembers the last `max_mem_len` tokens (Dai et al. 2019, arXiv:1901.02860); `variform.wrappers`'
    `Segments` is the native form. With `ttt_module_paths`, modules learn while a text is read: each row has weights of
    its own, which take a gradient step after each segment (`FastWeights`).

    Shapes:
        x: [B, L] token ids -> the loss, a scalar

    Args:
        net: the model.
        **keywords: `ignore_index`, `pad_value`; `tbptt_steps`, how many segments gradients flow through;
            `ttt_module_paths`, paths of modules that learn, here or upstream, or pairs of them (what gives the
            gradients, what takes them); `ttt_lr`, `ttt_wd`, `ttt_use_muon`, `ttt_muon_steps`, `ttt_muon_lr` of their
            steps; `ttt_low_rank_paths`, (path, rank) of maps that are replaced by maps of low rank, which learn;
            `ttt_custom_loss_module`, what they learn from, a module of (intermediates, mask), or
            `ttt_next_latent_loss`; `episodic_mem_len`, learned keys beside each attention's, which "episodic_mems"
            among the paths lets learn too.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    def __init__(self, net: nn.Module, *positional: Any, **keywords: Any) -> None:
        super().__init__()
        given = {**dict(zip(("ignore_index", "pad_value", "tbptt_steps"), positional, strict=False)), **keywords}
        raise_any(problems_of(type(self).__name__, KEYWORDS, given, KEYWORDS))
        if not isinstance(net, TransformerWrapper):
            raise KeywordError(f"net is a TransformerWrapper, not {type(net).__name__}", path="net")
        if not net.max_seq_len:
            raise KeywordError("segments have max_seq_len tokens: the model must have it", path="net")
        draft = SimpleNamespace()
        apply_all(draft, KEYWORDS, given)
        self.ignore_index: int = draft.ignore_index
        self.pad_value: int = draft.pad_value
        self.max_seq_len = net.max_seq_len
        self.net: nn.Module = EpisodicMemoryWrapper(net, draft.episodic_mem_len) if draft.episodic_mem_len else net
        self.__dict__["model"] = net  # not registered a second time
        with in_upstream_terms():
            sizes: dict[str, Any] = {"shift": net.shift_mem_down, "backward": draft.tbptt_steps}
            ends: dict[str, Any] = {"ignored": draft.ignore_index, "pad": draft.pad_value}
            segments = Segments(net.native, net.max_seq_len, net.max_mem_len, **sizes, **ends)
            self.__dict__["segments"] = segments
            self.fast = self._fast_weights(draft)
        self.ttt_custom_loss_module = self._inner_loss(draft, net)

    def _fast_weights(self, draft: Any) -> FastWeights | None:
        pairs = [(item, item) if isinstance(item, str) else tuple(item) for item in draft.ttt_module_paths]
        for item in draft.ttt_low_rank_paths:
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise KeywordError("pairs of (path, rank) are needed", path="ttt_low_rank_paths", value=item)
            path, rank = item
            linear, name = module_at(self.__dict__["model"], path)
            replaced(self.__dict__["model"], name, LowRankLinear(linear, rank))
            pairs.append((name, name))
        if not pairs:
            return None
        if draft.tbptt_steps < 2:
            message = "weights that learn are trained through several segments: more than one is needed"
            raise KeywordError(message, path="tbptt_steps", value=draft.tbptt_steps)
        modules = {path: self._learner(path) for pair in pairs for path in pair}
        muon = draft.ttt_muon_lr if draft.ttt_use_muon else None
        return FastWeights(modules, pairs, draft.ttt_lr, draft.ttt_wd, muon, draft.ttt_muon_steps)

    def _learner(self, path: str) -> nn.Module:
        if path == "episodic_mems" and isinstance(self.net, EpisodicMemoryWrapper):
            return self.net.episodic_mems
        return module_at(self.__dict__["model"], path)[0]

    def _inner_loss(self, draft: Any, net: TransformerWrapper) -> nn.Module | None:
        custom: nn.Module | None = draft.ttt_custom_loss_module
        if self.fast is None and (custom is not None or draft.ttt_next_latent_loss):
            raise KeywordError("has no effect without modules that learn", path="ttt_custom_loss_module")
        if not draft.ttt_next_latent_loss:
            return custom
        if custom is not None:
            message = "choose one: ttt_custom_loss_module or ttt_next_latent_loss"
            raise KeywordError(message, path="ttt_next_latent_loss")
        return TTTNextLatentPredictionLoss(dim=net.native.dim)

    @property
    def native(self) -> Transformer:
        """The model of the core."""
        model: TransformerWrapper = self.__dict__["model"]
        return model.native

    @property
    def spec(self) -> Spec:
        """The full description of the model."""
        return self.native.spec

    @property
    def has_ttt(self) -> bool:
        """Whether modules learn while a text is read."""
        return self.fast is not None

    @property
    def learners(self) -> Mapping[str, nn.Module]:
        """The modules that learn while a text is read, by the paths that were given."""
        return {} if self.fast is None else self.fast.modules

    @property
    def has_episodic_mem(self) -> bool:
        """Whether attentions have learned keys of this wrapper beside their own."""
        return isinstance(self.net, EpisodicMemoryWrapper)

    @property
    def upstream_modules(self) -> dict[str, nn.Module]:
        """What upstream's checkpoints hold, by the beginnings of their keys."""
        loss = self.ttt_custom_loss_module
        inner: dict[str, nn.Module] = {"net.": self.net}
        if isinstance(self.net, EpisodicMemoryWrapper):
            inner = {"net.net.": self.net.net, "net.episodic_mems.": self.net.episodic_mems}
        return inner if loss is None else {**inner, "ttt_custom_loss_module.": loss}

    def forward(
        self,
        x: Tensor,
        mems: Sequence[Tensor] | None = None,
        dropout_mems: bool = False,
        ttt_recurrent_steps: int = 1,
        **streams: Any,
    ) -> Tensor:
        """The mean loss over the text.

        Args:
            x: token ids.
            mems: [B, M, dim] a self-attention, of what came before the text.
            dropout_mems: every segment begins without memories.
            ttt_recurrent_steps: how many steps the weights that learn take after a segment, reading it each time; the
                loss is that of the last reading.
            **streams: `context`, `context_mask` and `condition` of the model.
        """
        segments: Segments = self.__dict__["segments"]
        refuse_others(self.forward, streams, SIDE_STREAMS)
        if ttt_recurrent_steps > 1 and self.fast is None:
            raise KeywordError("no module learns: give ttt_module_paths", path="ttt_recurrent_steps")
        memories = self._memories(mems)
        with in_upstream_terms():
            if self.fast is not None:
                with torch.enable_grad():
                    return self._learning(x, memories, dropout_mems, ttt_recurrent_steps, streams)
            with self._episodes():
                loss: Tensor = segments(x, memories, dropout_mems, **streams)
            return loss

    def _learning(self, x: Tensor, memories: Memories, forget: bool, times: int, streams: Mapping[str, Any]) -> Tensor:
        fast, segments = self.fast, self.__dict__["segments"]
        assert fast is not None
        weights, total = fast.begin(x.shape[0]), x.new_zeros((), dtype=torch.float32)
        pieces = list(segments.cut(x))
        for place, (read, wanted, weight, constant) in enumerate(pieces):
            for time in range(times):
                last = time + 1 == times
                seen = segments.begin() if forget else memories
                hidden, logits, left = self._run(read, seen, weights, streams)
                losses = segments.loss_of_rows(logits, wanted)
                if last:
                    total = total + weight * losses.mean()
                    memories = left.detached() if constant else left
                if not (last and place + 1 == len(pieces)):
                    weights = fast.stepped(weights, self._inner(hidden, losses, wanted), graph=self.training)
            if constant:
                weights = constants(weights)
        return total

    def _run(
        self, read: Tensor, memories: Memories, weights: Weights, streams: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Memories]:
        native: Any = self.native
        assert self.fast is not None
        with self.fast.used(weights), self._episodes():
            hidden, left = native(read, memories=memories, hidden=True, **streams)
            return hidden, native.head(hidden, {}), left

    def _inner(self, hidden: Tensor, losses: Tensor, wanted: Tensor) -> Tensor:
        """What the weights of each row learn from, [B]."""
        if self.ttt_custom_loss_module is None:
            return losses
        counted = wanted != self.ignore_index
        own: Tensor = self.ttt_custom_loss_module(SimpleNamespace(last_layer_hiddens=hidden), mask=counted)
        return (own * counted).sum(1) / counted.sum(1).clamp(min=1) if own.dim() > 1 else own

    def generate(
        self,
        start_tokens: Tensor | Sequence[Tensor],
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        filter_logits_fn: str | Filter = top_k,
        filter_kwargs: Mapping[str, Any] | None = None,
        mems: Sequence[Tensor] | None = None,
        cache_kv: bool = True,
        **streams: Any,
    ) -> Tensor:
        """Continue prompts of any length, to any length; returns the new tokens alone.

        Modules that learn do so while the prompt is read, and stay as they are for the new tokens.

        Shapes:
            start_tokens: [L] or [B, L], or a list of [L_i] -> [N] or [B, N], N <= seq_len

        Args:
            start_tokens: token ids.
            seq_len: how many tokens to add; fewer when all rows have ended.
            eos_token: ends a row, which is then filled up with `pad_value`; one inside the prompt does not count.
            temperature: divides the filtered logits; 0 takes the most probable token.
            filter_logits_fn: "top_k", "top_p", "top_a", "min_p" or a function of logits.
            filter_kwargs: keywords for the filter.
            mems: [B, M, dim] a self-attention, of what came before the prompts.
            cache_kv: keep keys and values within a segment; the tokens are the same without.
            **streams: `context`, `context_mask` and `condition` of the model.
        """
        refuse_others(self.generate, streams, SIDE_STREAMS)
        segments: Segments = self.__dict__["segments"]
        filters = filters_of(filter_logits_fn, filter_kwargs, temperature)
        if not isinstance(start_tokens, Tensor):
            if mems is not None:
                raise InputError("mems belong to rows of one length: give the rows one by one")
            options: dict[str, Any] = {"eos_token": eos_token, "temperature": temperature, "cache_kv": cache_kv}
            options |= {"filter_logits_fn": filter_logits_fn, "filter_kwargs": filter_kwargs}
            again = partial(self.generate, seq_len=seq_len, **options)
            with in_upstream_terms():
                return by_length(again, start_tokens, seq_len, eos_token, self.pad_value, streams)
        with in_upstream_terms(), self._weights_after(start_tokens, mems, streams) as (rest, memories):
            options = {"eos": eos_token, "greedy": temperature == 0, "filters": filters, "use_cache": cache_kv}
            return segments.generate(rest, seq_len, memories=memories, **options, **streams)

    @contextmanager
    def _weights_after(
        self, prompt: Tensor, mems: Sequence[Tensor] | None, streams: Mapping[str, Any]
    ) -> Iterator[tuple[Tensor, Memories]]:
        """What of the prompt is still to be read, with which memories, under the weights that it has led to."""
        memories, fast, segments = self._memories(mems), self.fast, self.__dict__["segments"]
        if fast is None:
            with self._episodes():
                yield prompt, memories
            return
        text = prompt.unsqueeze(0) if prompt.dim() == 1 else prompt
        if text.dim() != 2 or not text.shape[1]:
            raise InputError(f"at least one token to begin with is needed, got {list(prompt.shape)}")
        training = self.training
        self.eval()
        try:
            with torch.enable_grad():
                weights, rest = fast.begin(text.shape[0]), text
                while rest.shape[1] > 1:
                    read, wanted = rest[:, : self.max_seq_len], rest[:, 1 : self.max_seq_len + 1]
                    read = read[:, : wanted.shape[1]]
                    hidden, logits, left = self._run(read, memories, weights, streams)
                    losses = segments.loss_of_rows(logits, wanted)
                    weights = fast.stepped(weights, self._inner(hidden, losses, wanted), graph=False)
                    if rest.shape[1] <= self.max_seq_len:
                        break  # the last segment is still open: what it leaves behind is read again, and no memory yet
                    memories, rest = left.detached(), rest[:, self.max_seq_len :]
            with fast.used(weights), self._episodes():
                yield rest if prompt.dim() == 2 else rest[0], memories
        finally:
            self.train(training)

    def _memories(self, mems: Sequence[Tensor] | None) -> Memories:
        model: TransformerWrapper = self.__dict__["model"]
        return memories_of(mems, None, model.max_mem_len, model.shift_mem_down)

    def _episodes(self) -> Any:
        return self.net.remembering() if isinstance(self.net, EpisodicMemoryWrapper) else nullcontext()
