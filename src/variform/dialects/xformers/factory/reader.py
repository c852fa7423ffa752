"""Reading a block's configuration: every value checked, every mistake kept, nothing of the user's changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch

from variform.dialects.xformers.building import as_mapping, build_part, checked, plan_part
from variform.dialects.xformers.components.attention.mixing import NativeMixer
from variform.dialects.xformers.components.feedforward import FEEDFORWARD_REGISTRY
from variform.dialects.xformers.components.multi_head_config import build_multi_head_attention, plan_multi_head
from variform.dialects.xformers.components.patch_embedding import read_patch_embedding
from variform.dialects.xformers.components.positional_embedding import POSITION_EMBEDDING_REGISTRY
from variform.dialects.xformers.components.simplicial_embedding import SimplicialEmbedding
from variform.dialects.xformers.errors import Wrong, config_error, join, wrongs
from variform.dialects.xformers.utils import Registry
from variform.errors import ConfigError, did_you_mean, nearest_divisors

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "<required>"})()
"""Stands for a required argument, so that one that is missing is reported with all other mistakes."""


class PartConfig(dict[str, Any]):
    """The configuration of a part: a dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Reader:
    """Collects the problems of one configuration."""

    def __init__(self) -> None:
        self.problems: list[Wrong] = []

    def wrong(self, path: str, message: str, **more: Any) -> None:
        """Note a problem."""
        self.problems.append(Wrong(path, message, **more))

    def value(self, name: str, annotation: Any, value: Any) -> Any:
        """A plain value of the annotated type."""
        if value is REQUIRED:
            self.wrong(name, "this key is needed", like=TypeError)
            return None
        value, wrong = checked(name, annotation, value)
        if wrong is not None:
            self.problems.append(wrong)
            return None
        return value

    def feedforward(self, config: Any, dim_model: int | None) -> PartConfig:
        """The description of a feedforward."""
        own = self._part("feedforward_config", FEEDFORWARD_REGISTRY, config, dim_model)
        self._same_size("feedforward_config", own, dim_model)
        return own

    def position(self, config: Any, dim_model: int | None) -> PartConfig | None:
        """The description of a position embedding."""
        name = "position_encoding_config"
        return None if config is None else self._part(name, POSITION_EMBEDDING_REGISTRY, config, dim_model)

    def heads(self, name: str, config: Any, dim_model: int | None, cross: bool = False) -> PartConfig:
        """The description of multi-head attention, to the sequence itself or to another."""
        own = self._copy(name, config)
        if not own:
            return own
        if dim_model is not None and own.get("dim_model") is None:
            own["dim_model"] = dim_model
        _, problems = plan_multi_head(own)
        self._same_size(name, own, dim_model)
        self.problems += [problem.below(name) for problem in problems if dim_model or problem.path != "dim_model"]
        if problems:
            return own
        made = self._try(name, lambda: build_multi_head_attention(own))
        mixes = made is not None and isinstance(made.attention, NativeMixer)
        if cross and mixes and made.attention.requires_same_k_q_dimensions:
            message = "it mixes one sequence, and cannot attend to another"
            self.wrong(
                f"{name}.attention", message, value=type(made.attention).__name__, hint="scaled_dot_product, say"
            )
        return own

    def patches(self, config: Any, dim_model: int | None) -> dict[str, Any] | None:
        """The arguments of a patch embedding; what comes out has the block's features."""
        if config is None:
            return None
        name = "patch_embedding_config"
        own = self._copy(name, config)
        if not own:
            return own
        if dim_model is not None and own.get("out_channels") is None:
            own["out_channels"] = dim_model
        _, problems = read_patch_embedding(own)
        self.problems += [problem.below(name) for problem in problems if dim_model or problem.path != "out_channels"]
        if not problems and own["out_channels"] != dim_model:
            self.wrong(f"{name}.out_channels", f"the block has dim_model = {dim_model}", value=own["out_channels"])
        return own

    def simplicial(self, config: Any, dim_model: int | None) -> dict[str, Any] | None:
        """The arguments of simplicial embeddings."""
        if config is None:
            return None
        own = self._copy("simplicial_embeddings", config)
        try:
            SimplicialEmbedding(**own)
        except ConfigError as error:
            self.problems += wrongs(error, "simplicial_embeddings")
            return own
        except TypeError:
            message = "simplicial embeddings are described by L and, optionally, temperature"
            self.wrong("simplicial_embeddings", message, value=dict(own), like=TypeError)
            return own
        if dim_model is not None and dim_model % own["L"]:
            hint = nearest_divisors(dim_model, own["L"])
            message = f"must divide dim_model = {dim_model}"
            self.wrong("simplicial_embeddings.L", message, value=own["L"], hint=hint, like=AssertionError)
        return own

    def unknown(self, given: Iterable[str], known: Iterable[str]) -> None:
        """Keys that no block has."""
        names = sorted(set(known))
        for key in given:
            self.wrong(key, f"a block has no key {key!r}", hint=did_you_mean(key, names), like=TypeError)

    def finish(self) -> None:
        """Raise what was found.

        Raises:
            ConfigError: with all problems.
        """
        if self.problems:
            raise config_error(self.problems)

    def _same_size(self, name: str, config: PartConfig, dim_model: int | None) -> None:
        own = config.get("dim_model", dim_model)
        if dim_model is not None and own != dim_model:
            self.wrong(join(name, "dim_model"), f"the block has dim_model = {dim_model}", value=own)

    def _part(self, name: str, registry: Registry, config: Any, dim_model: int | None) -> PartConfig:
        own = self._copy(name, config)
        if not own:
            return own
        if dim_model is not None and own.get("dim_model") is None:
            own["dim_model"] = dim_model
        _, problems = plan_part(registry, own)
        self.problems += [problem.below(name) for problem in problems if dim_model or problem.path != "dim_model"]
        if not problems:
            self._try(name, lambda: build_part(registry, own))
        return own

    def _try(self, name: str, build: Callable[[], Any]) -> Any:
        """Build a part without memory for its weights: some mistakes only the part itself can see."""
        with torch.random.fork_rng(devices=[]), torch.device("meta"), suppress(RuntimeError, NotImplementedError):
            try:
                return build()
            except ConfigError as error:
                self.problems += wrongs(error, name)
        return None

    def _copy(self, name: str, config: Any) -> PartConfig:
        """The user's mapping, copied as deep as its mappings and lists go."""
        given = None if config is REQUIRED else as_mapping(config)
        if not given:
            message = "this key is needed" if config is REQUIRED else "expected a dict with keys"
            more = {} if config is REQUIRED else {"value": config}
            self.wrong(name, message, like=TypeError, **more)
            return PartConfig()
        return PartConfig({str(key): plain_copy(value) for key, value in given.items()})


def plain_copy(value: Any) -> Any:
    """Mappings and lists copied, everything else as it is."""
    if isinstance(value, Mapping):
        return {key: plain_copy(item) for key, item in value.items()}
    return [plain_copy(item) for item in value] if isinstance(value, list) else value
