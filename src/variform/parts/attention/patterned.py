"""Softmax attention over fixed patterns: global tokens, random pairs, and their unions with windows."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from variform.core.inherit import inherit
from variform.core.part import Can, Facts
from variform.core.registry import register
from variform.errors import Problem
from variform.ops.masks import Causal, Coarse, Global, Mask, RandomBy, RandomLinks, Window
from variform.ops.masks.counts import real_tensors
from variform.parts.attention.kv_cache import buffer_state, join_cache
from variform.parts.attention.softmax import attend, backend_problems
from variform.parts.kinds import Attention, Sides, State

Rate = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Index = Annotated[int, Field(ge=0)]


def attend_along(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sides: Sides,
    structure: Mask,
    scale: float | None,
    dropout: float,
    backend: str,
) -> Tensor | tuple[Tensor, State]:
    """Attend along a pattern of positions; with a state, to everything that was cached before as well."""
    if sides.state is None or sides.cache is None:
        return attend(q, k, v, sides, structure, scale, dropout, backend)
    k, v, sides, state = join_cache(k, v, sides, sides.state, sides.cache, positioned=True)
    return attend(q, k, v, sides, structure, scale, dropout, backend), state


@register("global")
class GlobalAttention(Attention):
    """Attention through global tokens (Longformer, Beltagy et al. 2020, arXiv:2004.05150, without its window).

    Position i attends to j where i or j is a global token: they see all and are seen by all. Causal: and j <= i. A
    position that sees none, as those before the first global token of a causal model, gets zeros.

    Shapes:
        q, k, v: as for softmax attention, with Lq == Lk

    Args:
        tokens: positions of the global tokens.
        causal: only the past.
        dropout: probability of dropping an attention weight, in training.
        scale: factor on Q K^T; D^-0.5 by default.
        backend: as for softmax attention.
    """

    can: ClassVar[Can] = Can(cross=False)
    takes_scores: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        tokens: tuple[Index, ...] = (0,),
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        scale: Positive | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.causal = causal
        self.dropout = dropout
        self.scale = scale
        self.backend = backend
        self.fixed = Global(tokens)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The backend exists."""
        return backend_problems(facts)

    def pattern(self) -> Mask:
        """The rows and columns of the global tokens."""
        return self.fixed

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend along the pattern; with a state, to everything that was cached before as well."""
        structure = Causal() & self.pattern() if self.causal else self.pattern()
        dropout = self.dropout if self.training else 0.0
        return attend_along(q, k, v, sides, structure, self.scale, dropout, self.backend)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Buffers for keys and values of every position."""
        return buffer_state(batch, max_len, like, heads, dim_key, dim_value)


@register("longformer")
class LongformerAttention(Attention):
    """A sliding window and global tokens (Longformer, Beltagy et al. 2020, arXiv:2004.05150).

    Position i attends to j within the window, or where i or j is a global token. Causal: and j <= i. One set of
    projections serves both, as in BigBird.

    Shapes:
        q, k, v: as for softmax attention, with Lq == Lk

    Args:
        window: how many positions a query sees, its own included: to both sides (an odd number), or back if causal.
        tokens: positions of the global tokens.
        causal: only the past.
        dropout: probability of dropping an attention weight, in training.
        scale: factor on Q K^T; D^-0.5 by default.
        backend: as for softmax attention.
    """

    can: ClassVar[Can] = Can(cross=False)
    takes_scores: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        window: Size,
        tokens: tuple[Index, ...] = (0,),
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        scale: Positive | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.causal = causal
        self.dropout = dropout
        self.scale = scale
        self.backend = backend
        side = window // 2
        near = Window(window - 1) if causal else Window(side, side)
        self.fixed = near | Global(tokens) if tokens else near

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """A window around a position has as many places before as after."""
        window, found = facts["window"], backend_problems(facts)
        if not facts["causal"] and window % 2 == 0:
            message = "a window to both sides is centred on its query: an odd size is needed"
            found.append(Problem("window", message, window, f"nearest: {window - 1} or {window + 1}"))
        return found

    def pattern(self) -> Mask:
        """The window and the global tokens."""
        return self.fixed

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend along the pattern; with a state, to everything that was cached before as well."""
        structure = Causal() & self.pattern() if self.causal else self.pattern()
        dropout = self.dropout if self.training else 0.0
        return attend_along(q, k, v, sides, structure, self.scale, dropout, self.backend)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Buffers for keys and values of every position."""
        return buffer_state(batch, max_len, like, heads, dim_key, dim_value)


@register("bigbird")
class BigBirdAttention(Attention):
    """Window, global and random blocks (BigBird, Zaheer et al. 2020, arXiv:2007.14062, internal global tokens).

    Between blocks of positions: the `window_blocks` around a query's own, the first `global_blocks`, which see all and
    are seen by all, and `random_blocks` earlier ones drawn for each block, which see it back. The draws depend on
    positions alone, not on the length: any length works, and decoding sees what training saw. Causal: and j <= i.

    Shapes:
        q, k, v: as for softmax attention, with Lq == Lk

    Args:
        block: positions of a block.
        window_blocks: how many blocks a query sees around its own, that one included (odd).
        global_blocks: how many blocks at the start are global.
        random_blocks: how many earlier blocks are drawn for each block.
        seed: equal seeds draw equal blocks.
        causal: only the past.
        dropout: probability of dropping an attention weight, in training.
        scale: factor on Q K^T; D^-0.5 by default.
        backend: as for softmax attention.
    """

    can: ClassVar[Can] = Can(cross=False)
    takes_scores: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        block: Size = 64,
        window_blocks: Size = 3,
        global_blocks: Count = 2,
        random_blocks: Count = 3,
        seed: int = 0,
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        scale: Positive | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.causal = causal
        self.dropout = dropout
        self.scale = scale
        self.backend = backend
        between: Mask = Window(window_blocks // 2, window_blocks // 2)
        if global_blocks:
            between = between | Global(range(global_blocks))
        if random_blocks:
            between = between | RandomLinks(random_blocks, seed)
        self.fixed = Coarse(between, block)

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The window is centred on a block."""
        window, found = facts["window_blocks"], backend_problems(facts)
        if window % 2 == 0:
            message = "the window is centred on the query's own block: an odd number is needed"
            found.append(Problem("window_blocks", message, window, f"nearest: {window - 1} or {window + 1}"))
        return found

    def pattern(self) -> Mask:
        """The union, between blocks."""
        return self.fixed

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend along the pattern; with a state, to everything that was cached before as well."""
        structure = Causal() & self.pattern() if self.causal else self.pattern()
        dropout = self.dropout if self.training else 0.0
        return attend_along(q, k, v, sides, structure, self.scale, dropout, self.backend)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Buffers for keys and values of every position."""
        return buffer_state(batch, max_len, like, heads, dim_key, dim_value)


@register("random")
class RandomAttention(Attention):
    """Attention to random positions (BigBird, Zaheer et al. 2020, arXiv:2007.14062, the random part alone).

    Position i attends to itself and to every other j with probability r, the same for all rows and heads. Causal: and
    j <= i. Whether a pair is kept is a function of its positions and the seed, which is saved with the weights.

    Shapes:
        q, k, v: as for softmax attention, with Lq == Lk

    Args:
        r: probability of each pair.
        constant_masking: keep one set of pairs; otherwise training draws another at each call, from torch's generator,
            and evaluation uses the one of the seed.
        seed: equal seeds keep equal pairs.
        causal: only the past.
        dropout: probability of dropping an attention weight, in training.
        scale: factor on Q K^T; D^-0.5 by default.
        backend: as for softmax attention.
    """

    can: ClassVar[Can] = Can(cross=False)
    takes_scores: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    seed: Tensor

    def __init__(
        self,
        r: Annotated[float, Field(gt=0, le=1)] = 0.01,
        constant_masking: bool = True,
        seed: int = 0,
        causal: bool = inherit(False),
        dropout: Rate = 0.0,
        scale: Positive | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.causal = causal
        self.dropout = dropout
        self.scale = scale
        self.backend = backend
        self.r = r
        self.constant_masking = constant_masking
        with real_tensors():
            self.given_seed = torch.tensor(
                seed, device="cpu"
            )  # a number to look at where the model itself is without data
        self.register_buffer("seed", torch.empty((), dtype=torch.int64))
        self.reset_parameters()

    @classmethod
    def check(cls, facts: Facts) -> list[Problem]:
        """The backend exists."""
        return backend_problems(facts)

    def reset_parameters(self) -> None:
        """The seed that was given."""
        self.seed.copy_(self.given_seed)

    def pattern(self) -> Mask:
        """The pairs of the seed, or newly drawn ones, and the diagonal."""
        seed = self.seed
        if self.training and not self.constant_masking:
            seed = torch.randint(0, 1 << 31, (), device=seed.device)
        elif seed.is_meta or isinstance(seed, FakeTensor):
            seed = self.given_seed
        return Window(0) | RandomBy(self.r, seed)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend along the pattern; with a state, to everything that was cached before as well."""
        structure = Causal() & self.pattern() if self.causal else self.pattern()
        dropout = self.dropout if self.training else 0.0
        return attend_along(q, k, v, sides, structure, self.scale, dropout, self.backend)

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Buffers for keys and values of every position."""
        return buffer_state(batch, max_len, like, heads, dim_key, dim_value)
