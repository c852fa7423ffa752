"""`BinaryMapper`: codes of random bits, through which gradients pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.dialects.x_transformers.errors import InputError, KeywordError

NAT = math.log(2)
"""One bit, in nats."""


class BinaryMapper(nn.Module):
    """Draws one of 2^bits codes from logits of its bits, and lets gradients pass.

    code = sum_b 2^b [u_b <= sigmoid(l_b / T)]; in training the one-hot code carries the gradient of the
    probabilities of all codes (straight through), and the loss is relu(bits log 2 - H(l) - threshold), in nats: what
    the bits tell beyond the threshold.

    Shapes:
        logits: [..., bits] -> [..., 2^bits], []

    Args:
        bits: of a code.
        kl_loss_threshold: nats that the bits may tell for free.
    """

    codes: Tensor
    power_two: Tensor

    def __init__(self, bits: int = 1, kl_loss_threshold: float = NAT) -> None:
        super().__init__()
        if bits < 1:
            raise KeywordError("at least one bit is needed", path="bits", value=bits)
        self.bits = bits
        self.num_codes = 2**bits
        self.kl_loss_threshold = kl_loss_threshold
        powers = 2 ** torch.arange(bits)
        self.register_buffer("power_two", powers, persistent=False)
        codes = torch.arange(self.num_codes).unsqueeze(1).bitwise_and(powers) != 0
        self.register_buffer("codes", codes, persistent=False)

    def forward(
        self,
        logits: Tensor,
        temperature: float = 1.0,
        straight_through: bool | None = None,
        calc_aux_loss: bool | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The drawn codes, one-hot, and the loss.

        Args:
            logits: of the bits.
            temperature: greater than 0; above one, bits are nearer to coin flips.
            straight_through: whether gradients pass; in training by default.
            calc_aux_loss: whether the loss is computed; in training by default, else it is 0.
            mask: which codes count in the loss, [...] bool; all by default.

        Raises:
            InputError: logits of another number of bits.
        """
        if logits.shape[-1] != self.bits:
            raise InputError(f"logits of {self.bits} bits are needed, not {list(logits.shape)}")
        passes = self.training if straight_through is None else straight_through
        drawn = torch.rand_like(logits) <= (logits / temperature).sigmoid()
        chosen = F.one_hot((self.power_two * drawn).sum(-1), self.num_codes).to(logits.dtype)
        loss = logits.new_zeros(())
        if self.training if calc_aux_loss is None else calc_aux_loss:
            told = F.relu(self.bits * NAT - _entropy(logits) - self.kl_loss_threshold)
            loss = told.mean() if mask is None else told[mask.expand(told.shape)].mean()
        if passes:
            codes = self.codes.to(logits.dtype)
            chances = (F.logsigmoid(logits) @ codes.T + F.logsigmoid(-logits) @ (1 - codes).T).exp()
            chosen = chosen + chances - chances.detach()
        return chosen, loss


def _entropy(logits: Tensor) -> Tensor:
    """The sum of the entropies of bits, in nats."""
    chance = logits.sigmoid()
    return -(chance * F.logsigmoid(logits) + (1 - chance) * F.logsigmoid(-logits)).sum(-1)
