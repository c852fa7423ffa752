"""`NeoMLP`: the nodes of a network as tokens of an encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from variform.dialects.x_transformers.attention_layers import Encoder
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.table import REQUIRED, Table, problems_of, raise_any, table_of
from variform.errors import Problem
from variform.parts.linear import Linear

SIZES = ("dim_in", "dim_hidden", "dim_out", "dim_model", "depth")
KEYWORDS: Table = table_of(
    {**dict.fromkeys(SIZES, (REQUIRED, (int,))), "encoder_kwargs": ({}, (dict,))},
)
ENCODER = {"attn_dim_head": 16, "heads": 4}


class RandomFourierEmbed(nn.Module):
    """cos(2 pi (w x + b)) of a number x, with frequencies and phases that do not learn.

    Shapes:
        times: [...] -> [..., dim]
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = Linear(1, dim).requires_grad_(False)

    def forward(self, times: Tensor) -> Tensor:
        """The features of each number."""
        return torch.cos(2 * math.pi * self.proj(times.unsqueeze(-1)))


class NeoMLP(nn.Module):
    """A map of numbers to numbers whose nodes talk by self-attention (NeoMLP, openreview A8Vuf2e8y6).

    Inputs, hidden nodes and outputs are tokens of an encoder: input i is W cos(2 pi (w x_i + b)) + e_i, the others are
    vectors of their own; output j is <y_j, u_j> + c_j of its token y_j.

    Shapes:
        x: [dim_in] or [B, dim_in] -> [dim_out] or [B, dim_out]

    Args:
        **keywords: `dim_in`, `dim_hidden` and `dim_out` nodes, of `dim_model` features; `depth` layers;
            `encoder_kwargs`, those of the `Encoder` (`attn_dim_head=16, heads=4` by default).

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        problems = problems_of(type(self).__name__, KEYWORDS, keywords, KEYWORDS)
        problems += [
            Problem(name, "must be positive", keywords[name])
            for name in SIZES
            if isinstance(keywords.get(name), int) and keywords[name] < 1
        ]
        raise_any(problems)
        dim = keywords["dim_model"]
        options = keywords.get("encoder_kwargs", ENCODER)
        for name in ("dim", "depth"):
            if name in options:
                message = f"{name} is settled by {'dim_model' if name == 'dim' else name} already"
                raise KeywordError(message, path=f"encoder_kwargs.{name}")
        self.dim_in: int = keywords["dim_in"]
        self.input_embed = _nodes(self.dim_in, dim)
        self.hidden_embed = _nodes(keywords["dim_hidden"], dim)
        self.output_embed = _nodes(keywords["dim_out"], dim)
        self.random_fourier = nn.Sequential(RandomFourierEmbed(dim), Linear(dim, dim))
        self.transformer = Encoder(dim=dim, depth=keywords["depth"], **options)
        self.to_output_weights = nn.Parameter(torch.randn(keywords["dim_out"], dim))
        self.to_output_bias = nn.Parameter(torch.zeros(keywords["dim_out"]))

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module | Tensor]:
        """Where upstream's checkpoints have what."""
        own = ("input_embed", "hidden_embed", "output_embed", "to_output_weights", "to_output_bias")
        held: dict[str, nn.Module | Tensor] = {name: getattr(self, name) for name in own}
        return {**held, "random_fourier.": self.random_fourier, "transformer.": self.transformer}

    def forward(self, x: Tensor, return_embeds: bool = False) -> Any:
        """The outputs.

        Args:
            x: numbers.
            return_embeds: return (outputs, (input, hidden and output nodes, [B, n, dim_model] each)).
        """
        if x.dim() not in (1, 2) or x.shape[-1] != self.dim_in or not x.is_floating_point():
            raise InputError(f"x is floats, [{self.dim_in}] or [batch, {self.dim_in}]; got {x.dtype} {list(x.shape)}")
        rows = x.reshape(-1, self.dim_in)
        known = self.random_fourier(rows) + self.input_embed
        others = torch.cat((self.hidden_embed, self.output_embed)).expand(len(rows), -1, -1)
        nodes: Tensor = self.transformer(torch.cat((known, others), 1))
        parts = nodes.split([len(self.input_embed), len(self.hidden_embed), len(self.output_embed)], 1)  # type: ignore[no-untyped-call]
        out = (parts[2] * self.to_output_weights).sum(-1) + self.to_output_bias
        out = out[0] if x.dim() == 1 else out
        return (out, parts) if return_embeds else out


def _nodes(count: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, dim) * 0.02)
