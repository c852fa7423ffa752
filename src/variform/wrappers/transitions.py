"""How features of an earlier place are fused into those of this one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from variform.ops.blend import blend
from variform.parts.linear import Linear
from variform.parts.norm.norms import RMSNorm


def _norm(dim: int) -> RMSNorm:
    return RMSNorm(dim, eps=1e-24)


class Gated(nn.Module):
    """norm(W norm(z) * sigmoid(V norm(x))) of features z and the stream x (arXiv:2608.08888, eq. 4).

    Shapes:
        latents, stream: [.., dim] -> [.., dim]; the same for the others
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_state = Linear(dim, dim, bias=False)
        self.to_gate = Linear(dim, dim, bias=False)
        self.latent_norm, self.stream_norm, self.norm = _norm(dim), _norm(dim), _norm(dim)

    def forward(self, latents: Tensor, stream: Tensor) -> Tensor:
        """Fuse."""
        state = self.to_state(self.latent_norm(latents))
        return self.norm(state * self.to_gate(self.stream_norm(stream)).sigmoid())


class Added(nn.Module):
    """norm(x + s W norm(z)), where s is learned."""

    def __init__(self, dim: int, scale_init: float = 0.1) -> None:
        super().__init__()
        self.proj = Linear(dim, dim, bias=False)
        self.latent_norm, self.norm = _norm(dim), _norm(dim)
        self.scale = nn.Parameter(torch.tensor(scale_init))

    def forward(self, latents: Tensor, stream: Tensor) -> Tensor:
        """Fuse."""
        return self.norm(stream + self.proj(self.latent_norm(latents)) * self.scale)


class Recurrent(nn.Module):
    """norm((1 - g) x + g tanh(W [norm(z), norm(x)])), g = sigmoid(V [norm(z), norm(x)] + b), with b = -1 at first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.latent_norm, self.stream_norm, self.norm = _norm(dim), _norm(dim), _norm(dim)
        self.gate = Linear(2 * dim, dim)
        self.to_candidate = Linear(2 * dim, dim, bias=False)
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, latents: Tensor, stream: Tensor) -> Tensor:
        """Fuse."""
        both = torch.cat((self.latent_norm(latents), self.stream_norm(stream)), -1)
        return self.norm(blend(stream, self.to_candidate(both).tanh(), self.gate(both).sigmoid()))


class Summed(nn.Module):
    """norm(W norm(z) + V norm(x))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_state = Linear(dim, dim, bias=False)
        self.to_stream = Linear(dim, dim, bias=False)
        self.latent_norm, self.stream_norm, self.norm = _norm(dim), _norm(dim), _norm(dim)

    def forward(self, latents: Tensor, stream: Tensor) -> Tensor:
        """Fuse."""
        return self.norm(self.to_state(self.latent_norm(latents)) + self.to_stream(self.stream_norm(stream)))


class AddedGated(nn.Module):
    """norm(x + s gated(z, x)), where s is learned."""

    def __init__(self, dim: int, scale_init: float = 1.0) -> None:
        super().__init__()
        self.glu = Gated(dim)
        self.scale = nn.Parameter(torch.tensor(scale_init))
        self.norm = _norm(dim)

    def forward(self, latents: Tensor, stream: Tensor) -> Tensor:
        """Fuse."""
        return self.norm(stream + self.glu(latents, stream) * self.scale)


TRANSITIONS: dict[str, type[nn.Module]] = {
    "glu": Gated,
    "residual": Added,
    "gru": Recurrent,
    "linear": Summed,
    "residual_glu": AddedGated,
}
"""By name."""
