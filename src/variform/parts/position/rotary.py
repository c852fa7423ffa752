"""Rotary position embedding, with interpolation and NTK rescaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from variform.core.inherit import INHERIT
from variform.core.part import Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.ops.rotary import rotary_rows, rotary_tables, rotate
from variform.parts.kinds import Rotation
from variform.parts.position.absolute import look_up

Size = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


@register("rotary")
class RotaryRotation(Rotation):
    """Rotates feature pairs by an angle proportional to the position (Su et al. 2021, arXiv:2104.09864).

    Pair i of the first d = `rotary_dim` features turns by (p / s) (base r^(d/(d-2)))^(-2i/d), with
    s = `interpolation` (Chen et al. 2023, arXiv:2306.15595) and r = `ntk`, the NTK-aware rescaling of the base.
    With `xpos` (Sun et al. 2022, arXiv:2212.10554) pair i of a query is multiplied by z^(p / xpos) and that of a key
    divided by it, z = (2i + 0.4 d) / (1.4 d), so that products fade with the distance to past keys: for causal layers.

    Shapes:
        q, k: [B, H, L, dim_head] -> the same

    Args:
        dim_head: features of one head.
        max_seq_len: positions for which angles are kept ready; None computes them at each call, and so do calls with
            more tokens (those that stand beside the model's own do not count against its limit).
        rotary_dim: how many features, from the first, are rotated; all by default. Even.
        base: sets the longest wavelength.
        layout: "interleaved" pairs features (2i, 2i + 1); "half" pairs (i, i + d / 2), as Llama checkpoints do.
        interpolation: positions are divided by it, to stretch a trained range.
        ntk: length ratio of the NTK-aware rescaling.
        xpos: over how many positions pairs fade by z; None for no fading. The factors leave the range of float32 some
            thirty thousand positions away from `max_seq_len` / 2, or from 0 without one.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        dim_head: Size = INHERIT,
        max_seq_len: Size | None = INHERIT,
        rotary_dim: Size | None = None,
        base: Positive = 10000.0,
        layout: Literal["interleaved", "half"] = "interleaved",
        interpolation: Positive = 1.0,
        ntk: Positive = 1.0,
        xpos: Positive | None = None,
    ) -> None:
        super().__init__()
        self.xpos = xpos
        self.dim = rotary_dim or dim_head
        self.max_seq_len = max_seq_len
        self.ahead = 0
        self.base = base
        self.interleaved = layout == "interleaved"
        self.interpolation = interpolation
        self.ntk = ntk
        width = self.dim // 2 if self.interleaved else self.dim
        self.register_buffer("cos", torch.empty(max_seq_len or 0, width, dtype=torch.float32), persistent=False)
        self.register_buffer("sin", torch.empty(max_seq_len or 0, width, dtype=torch.float32), persistent=False)
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """Pairs need an even number of features, at most those of a head."""
        name = "dim_head" if facts["rotary_dim"] is None else "rotary_dim"
        dim, head = facts[name], facts["dim_head"]
        if dim % 2:
            hint = f"nearest: {dim - 1} or {dim + 1}" if dim > 1 else "nearest: 2"
            return [Problem(name, "features are rotated in pairs: an even number is needed", dim, hint)]
        if dim > head:
            return [Problem("rotary_dim", f"cannot rotate more than the {head} features of a head", dim)]
        if facts["ntk"] != 1.0 and dim == 2:
            return [Problem("ntk", "rescaling the base needs more than two rotated features", facts["ntk"])]
        return []

    def reset_parameters(self) -> None:
        """Compute the tables where the buffers are (float64 for float64 models, float32 otherwise)."""
        if self.max_seq_len is None or self.cos.is_meta:
            return
        wide = torch.float64 if self.cos.dtype == torch.float64 else torch.float32
        self.cos, self.sin = self._rows(self.max_seq_len + self.ahead, wide, self.cos.device)

    def reach(self, ahead: int) -> None:
        """Longer tables, where there are any."""
        if ahead > self.ahead:
            self.ahead = ahead
            self.reset_parameters()

    def _rows(self, length: int, dtype: torch.dtype, device: Any) -> tuple[Tensor, Tensor]:
        tables = rotary_tables(
            length,
            self.dim,
            self.base,
            interpolation=self.interpolation,
            ntk=self.ntk,
            dtype=dtype,
            device=device,
        )
        return rotary_rows(*tables, length, interleaved=self.interleaved)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryRotation:
        """Follow the module to its device, but never into half precision: angles need their digits."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reset_parameters()
        return self

    def forward(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys to their positions."""
        rows = self._at(q_positions, q)
        same = k_positions is q_positions and k.shape[2] == q.shape[2]
        k_rows = rows if same else self._at(k_positions, k)
        if self.xpos is not None:
            faded = self._fading(q_positions, q)
            k_faded = faded if same else self._fading(k_positions, k)
            k_rows = (k_rows[0] / k_faded, k_rows[1] / k_faded)
            rows = (rows[0] * faded, rows[1] * faded)
        return rotate(q, rows, interleaved=self.interleaved), rotate(k, k_rows, interleaved=self.interleaved)

    def _at(self, positions: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        length = x.shape[2]
        if self.max_seq_len is None or length > self.max_seq_len:
            return self._computed(positions, length, x)
        if positions is None:
            return self.cos[:length], self.sin[:length]
        cos, sin = look_up(positions, self.cos), look_up(positions, self.sin)
        return (cos.unsqueeze(1), sin.unsqueeze(1)) if positions.dim() == 2 else (cos, sin)

    def _fading(self, positions: Tensor | None, x: Tensor) -> Tensor:
        """The factors of a query at each position, in the form of `rotary_rows`; a key's are their inverses."""
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if positions is None:
            positions = torch.arange(x.shape[2], device=x.device)
        pairs = torch.arange(0, self.dim, 2, dtype=torch.float64, device=x.device)
        power = (positions.to(torch.float64) - (self.max_seq_len or 0) // 2) / (self.xpos or 1.0)
        factors = (((pairs + 0.4 * self.dim) / (1.4 * self.dim)) ** power.unsqueeze(-1)).to(wide)
        factors = factors if self.interleaved else torch.cat((factors, factors), -1)
        return factors.unsqueeze(1) if positions.dim() == 2 else factors

    def _computed(self, positions: Tensor | None, length: int, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if positions is None:
            return self._rows(length, wide, x.device)
        steps = torch.arange(0, self.dim, 2, dtype=torch.float64, device=x.device) / self.dim
        base = self.base if self.ntk == 1.0 else self.base * self.ntk ** (self.dim / (self.dim - 2))
        angles = positions.to(torch.float64).unsqueeze(-1) / self.interpolation * base**-steps
        cos, sin = angles.cos().to(wide), angles.sin().to(wide)
        if not self.interleaved:
            cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return (cos.unsqueeze(1), sin.unsqueeze(1)) if positions.dim() == 2 else (cos, sin)
