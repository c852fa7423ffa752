"""`DiscoverDecoder` and `TPREncoder`: a sequence as one vector, and what symbols and places that vector is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from variform.dialects.x_transformers.autoregressive_wrapper import AutoregressiveWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.learned import causal_net, left_out
from variform.dialects.x_transformers.table import REQUIRED, Table, completed, problems_of, raise_any, table_of
from variform.dialects.x_transformers.wrapper import TransformerWrapper
from variform.errors import Problem, did_you_mean
from variform.parts.linear import Linear

ROLE_SCHEMES = ("bidirectional", "right_to_left", "left_to_right", "wickel", "bag_of_words")
"""What a symbol's role is: its place from both sides, from one, its neighbours, or nothing."""

ENCODER: Table = table_of(
    {
        "dim": (REQUIRED, (int,)),
        "num_fillers": (REQUIRED, (int,)),
        "num_roles": (REQUIRED, (int,)),
        "filler_dim": (24, (int,)),
        "role_dim": (24, (int,)),
        "mlp_dim": (None, (int,)),
    }
)
DECODER: Table = table_of(
    {
        "decoder": (REQUIRED, (nn.Module,)),
        "num_fillers": (REQUIRED, (int,)),
        "bos_id": (REQUIRED, (int,)),
        "pad_id": (REQUIRED, (int,)),
        "max_seq_len": (REQUIRED, (int,)),
        "enc_pos": ("last", (int, str)),
    }
)


def num_roles_for_scheme(scheme: str, *, max_seq_len: int, num_fillers: int) -> int:
    """How many roles a scheme tells apart.

    Raises:
        KeywordError: there is no such scheme.
    """
    _check_scheme(scheme)
    if scheme in ("left_to_right", "right_to_left"):
        return max_seq_len
    if scheme == "bidirectional":
        return max_seq_len * (max_seq_len + 1) // 2
    return (num_fillers + 1) ** 2 if scheme == "wickel" else 1


def role_ids_for_tokens(tokens: Tensor, lengths: Tensor, scheme: str, *, max_seq_len: int, num_fillers: int) -> Tensor:
    """The role of each token, 0 at padding: [B, L] and [B] -> [B, L].

    Raises:
        KeywordError: there is no such scheme.
        InputError: a row is longer than `max_seq_len`.
    """
    _check_scheme(scheme)
    if int(lengths.max()) > max_seq_len:
        raise InputError(f"rows have up to {int(lengths.max())} tokens, and roles are of {max_seq_len} at most")
    places, sizes = torch.arange(tokens.shape[1], device=tokens.device), lengths.unsqueeze(1)
    if scheme == "left_to_right":
        roles = places.expand_as(tokens)
    elif scheme == "right_to_left":
        roles = sizes - 1 - places
    elif scheme == "bidirectional":
        roles = (sizes - 1) * sizes // 2 + places
    elif scheme == "wickel":
        before = torch.where(places == 0, num_fillers, tokens.roll(1, 1))
        after = torch.where(places == sizes - 1, num_fillers, tokens.roll(-1, 1))
        roles = before * (num_fillers + 1) + after
    else:
        roles = torch.zeros_like(tokens)
    return roles.masked_fill(places >= sizes, 0)


def _check_scheme(scheme: str) -> None:
    if scheme not in ROLE_SCHEMES:
        hint = did_you_mean(scheme, ROLE_SCHEMES)
        raise KeywordError(f"one of {', '.join(ROLE_SCHEMES)} is needed", path="scheme", value=scheme, hint=hint)


def _read(owner: str, table: Table, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords with their defaults."""
    problems = problems_of(owner, table, keywords, table)
    problems += [
        Problem(name, "must be positive", value)
        for name, value in keywords.items()
        if name in table and name.split("_")[0] in ("dim", "num", "filler", "role", "mlp", "max")
        if isinstance(value, int) and value < 1
    ]
    raise_any(problems)
    return completed(table, keywords)


class TPREncoder(nn.Module):
    """A tensor product representation that imitates vectors of sequences (DISCOVER, arXiv:2608.29530).

    y_o = sum_n sum_{f, g} B_{o f g} filler(x_n)_f role(r_n)_g + b_o, and with `mlp_dim` a network behind it.

    Shapes:
        tokens, role_ids: [B, L] integers -> [B, dim]

    Args:
        **keywords: `dim`; `num_fillers` symbols of `filler_dim` features; `num_roles` roles of `role_dim`; `mlp_dim`.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        given = _read(type(self).__name__, ENCODER, keywords)
        self.dim: int = given["dim"]
        sizes = given["filler_dim"], given["role_dim"]
        self.filler_emb = nn.Embedding(given["num_fillers"], sizes[0])
        self.role_emb = nn.Embedding(given["num_roles"], sizes[1])
        self.binding = nn.Parameter(torch.zeros(self.dim, *sizes))
        self.bias = nn.Parameter(torch.zeros(self.dim))
        for table in (self.filler_emb, self.role_emb):
            nn.init.normal_(table.weight, std=0.05)
        inner = given["mlp_dim"]
        self.mlp = None if inner is None else nn.Sequential(Linear(self.dim, inner), nn.SiLU(), Linear(inner, self.dim))

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module | Tensor]:
        """Where upstream's checkpoints have what."""
        held: dict[str, nn.Module | Tensor] = {"binding": self.binding, "bias": self.bias}
        held |= {"filler_emb.": self.filler_emb, "role_emb.": self.role_emb}
        return held if self.mlp is None else {**held, "mlp.": self.mlp}

    def state(self, tokens: Tensor, role_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The sum over symbols in their roles, before the network: [B, dim].

        Args:
            tokens: symbols.
            role_ids: their roles.
            mask: [B, L] bool, True at those that count.
        """
        roles = self.role_emb(role_ids)
        if mask is not None:
            roles = roles.masked_fill(~mask.unsqueeze(-1), 0.0)
        pairs = torch.einsum("bnf,bng->bfg", self.filler_emb(tokens), roles)
        return torch.einsum("ofg,bfg->bo", self.binding, pairs) + self.bias

    def readout(self, state: Tensor) -> Tensor:
        """The network behind the sum."""
        if self.mlp is None:
            return state
        found: Tensor = self.mlp(state)
        return found

    def forward(self, tokens: Tensor, role_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The vectors; the arguments are those of `state`."""
        if mask is not None:
            tokens, role_ids = tokens.masked_fill(~mask, 0), role_ids.masked_fill(~mask, 0)
        for name, ids, table in (("tokens", tokens, self.filler_emb), ("role_ids", role_ids, self.role_emb)):
            if int(ids.min()) < 0 or int(ids.max()) >= table.num_embeddings:
                raise InputError(f"{name} lie in [0, {table.num_embeddings}), padding is told by `mask`")
        return self.readout(self.state(tokens, role_ids, mask))

    def fit(
        self,
        tokens: Tensor,
        role_ids: Tensor,
        target_encodings: Tensor,
        *,
        mask: Tensor | None = None,
        steps: int = 2000,
        batch_size: int = 1024,
        lr: float = 3e-3,
        ema_decay: float = 0.9,
        optim: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ) -> float:
        """Imitate vectors by the squared error, which is returned: its moving average.

        Args:
            tokens: [N, L] symbols.
            role_ids: [N, L] their roles.
            target_encodings: [N, dim].
            mask: [N, L] bool.
            steps: of the optimiser.
            batch_size: rows of a step, drawn with replacement.
            lr: learning rate.
            ema_decay: of the average, which begins with 0.
            optim: from parameters and `lr=` to an optimiser.
        """
        if role_ids.shape != tokens.shape or target_encodings.shape != (len(tokens), self.dim):
            shapes = f"{list(role_ids.shape)} roles and {list(target_encodings.shape)} vectors"
            raise InputError(
                f"{list(tokens.shape)} tokens need as many roles and [{len(tokens)}, {self.dim}], not {shapes}"
            )
        optimiser, average = optim(self.parameters(), lr=lr), 0.0
        for _ in range(steps):
            rows = torch.randint(0, len(tokens), (batch_size,), device=tokens.device)
            found = self(tokens[rows], role_ids[rows], None if mask is None else mask[rows])
            loss = F.mse_loss(found, target_encodings[rows].detach())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            average = ema_decay * average + (1 - ema_decay) * loss.item()
        return average


class DiscoverDecoder(nn.Module):
    """A language model as a bottleneck: a sequence is read to one vector, from which it is written again.

    Shapes:
        tokens: [B, L] token ids -> [B, dim]; with targets [B, T], logits [B, T, num_tokens]

    Args:
        **keywords: `decoder`, a causal `TransformerWrapper`; `num_fillers` symbols; `bos_id` and `pad_id`;
            `max_seq_len`, the longest output; `enc_pos`, the token whose hidden state is the vector, "last" by default.

    Raises:
        KeywordError: unknown keywords, and values that do not fit.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        given = _read(type(self).__name__, DECODER, keywords)
        self.decoder: TransformerWrapper = causal_net(given["decoder"], path="decoder")
        if isinstance(given["enc_pos"], str) and given["enc_pos"] != "last":
            raise KeywordError("'last' or a place is needed", path="enc_pos", value=given["enc_pos"])
        if not 0 <= given["bos_id"] < self.decoder.num_tokens:
            message = f"must be one of the {self.decoder.num_tokens} tokens"
            raise KeywordError(message, path="bos_id", value=given["bos_id"])
        self.num_fillers: int = given["num_fillers"]
        self.bos_id: int = given["bos_id"]
        self.pad_id: int = given["pad_id"]
        self.max_seq_len: int = given["max_seq_len"]
        self.enc_pos: int | str = given["enc_pos"]

    @property
    def dim(self) -> int:
        """Features of a vector."""
        return self.decoder.native.dim

    @property
    def upstream_modules(self) -> Mapping[str, nn.Module]:
        """Where upstream's checkpoints have what."""
        return {"decoder.": self.decoder}

    def encode(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The vector of each sequence, [B, dim].

        Args:
            tokens: token ids, padded on the right.
            mask: [B, L] bool, True at real tokens; by default all but `pad_id`.
        """
        mask = tokens != self.pad_id if mask is None else mask
        if mask.dtype != torch.bool or mask.shape != tokens.shape:
            raise InputError(f"mask must be a boolean tensor {list(tokens.shape)}; got {list(mask.shape)}")
        hidden = self.decoder(tokens.masked_fill(~mask, 0), mask=mask, return_embeddings=True)
        hidden = left_out(hidden, tokens)
        place = mask.sum(1) - 1 if self.enc_pos == "last" else torch.full_like(mask.sum(1), int(self.enc_pos))
        return hidden[torch.arange(len(hidden), device=hidden.device), place]

    @torch.no_grad()
    def decode(
        self,
        encodings: Tensor,
        lengths: Tensor | None = None,
        *,
        eos_id: int | None = None,
        max_len: int | None = None,
    ) -> Tensor:
        """The most probable sequences of vectors, filled up with `pad_id`: [B, dim] -> [B, N].

        Args:
            encodings: the vectors.
            lengths: [B] how long each is; or
            eos_id: the token with which each ends.
            max_len: the longest, where they end with a token; `max_seq_len` by default.
        """
        if (lengths is None) == (eos_id is None):
            raise InputError("provide either lengths or eos_id")
        if lengths is not None and max_len is not None:
            raise InputError("lengths say how long sequences are: leave max_len out")
        total = int(lengths.max()) if lengths is not None else max_len or self.max_seq_len
        if total > self.max_seq_len:
            raise InputError(f"{total} tokens are more than max_seq_len = {self.max_seq_len}")
        rows = len(encodings)
        begin = torch.full((rows, 1), self.bos_id, device=encodings.device)
        made: Tensor = AutoregressiveWrapper(self.decoder).generate(
            begin, total, eos_token=eos_id, temperature=0.0, prepend_embeds=encodings.unsqueeze(1)
        )
        out = F.pad(made, (0, total - made.shape[1]), value=self.pad_id)
        if eos_id is not None:
            ends = made == eos_id
            lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, total)
        assert lengths is not None
        return out.masked_fill(torch.arange(total, device=out.device) >= lengths.unsqueeze(1), self.pad_id)

    @torch.no_grad()
    def surgery(
        self, tokens: Tensor, edited_tokens: Tensor, role_ids_old: Tensor, role_ids_new: Tensor, tpr: TPREncoder
    ) -> Tensor:
        """Sequences written from vectors that are changed as if their symbols were others: [B, L] -> [B, L].

        To the vector of the sequence is added what `tpr` makes of the edited one, less what it makes of the original.

        Args:
            tokens: the sequences.
            edited_tokens: the others, of the same lengths.
            role_ids_old: roles of the tokens.
            role_ids_new: roles of the others.
            tpr: imitates this model's vectors.
        """
        mask = tokens != self.pad_id
        if not edited_tokens.shape == tokens.shape == role_ids_old.shape == role_ids_new.shape:
            raise InputError("one token and role id per position is needed, for both sequences")
        if not torch.equal(mask, edited_tokens != self.pad_id):
            raise InputError("edits must fall inside each sequence, never on padded positions")
        for name, ids in (("tokens", tokens), ("edited_tokens", edited_tokens)):
            real = ids[mask]
            if int(real.min()) < 0 or int(real.max()) >= self.num_fillers:
                raise InputError(f"{name} are symbols in [0, {self.num_fillers}) within their length")
        old, new = (
            tpr.readout(tpr.state(ids.masked_fill(~mask, 0), roles, mask))
            for ids, roles in ((tokens, role_ids_old), (edited_tokens, role_ids_new))
        )
        return self.decode(self.encode(tokens, mask) + new - old, lengths=mask.sum(1))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """The vectors, or the logits of targets that are written from them.

        Args:
            tokens: [B, L], padded on the right.
            targets: [B, T].
        """
        encodings = self.encode(tokens)
        if targets is None:
            return encodings
        begin = torch.full((len(tokens), 1), self.bos_id, device=tokens.device)
        given = torch.cat((begin, targets[:, :-1]), 1)
        given = given.masked_fill(given == self.pad_id, 0) if self.pad_id < 0 else given
        logits: Tensor = self.decoder(given, prepend_embeds=encodings.unsqueeze(1), excise_prepend_embeds=True)
        return logits
