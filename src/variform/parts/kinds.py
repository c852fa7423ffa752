"""The kinds: abstract base classes, one a slot type, each with its own `forward`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from variform.core.dims import Shape
from variform.core.part import Can, Facts, Part
from variform.errors import ShapeError
from variform.ops.masks import Mask
from variform.ops.scores import ScoreMod
from variform.ops.weightings import Normaliser
from variform.parts.beside import Beside
from variform.parts.flows import Flow, each_token
from variform.parts.memories import Recall

Streams = Mapping[str, Any]
"""Named side inputs, read-only inside a part: `positions, valid, segments, mask, bias, context, ...`.

Where a caller asks for losses, `losses` holds those so far as (name, scalar) pairs; a part with losses of its own
publishes them behind these.
"""

CONTENTS = ("ids", "features", "heads", "scores", "mask")
"""What a named tensor of a program can hold: integer ids, features of tokens, features of heads, attention scores or
weights, offsets and masks of scores. Sizes alone do not tell them apart."""

Output = Tensor | tuple[Tensor, dict[str, Any]]
"""What a part over streams returns: `x`, or `(x, published)` when it publishes streams or keeps state."""

State = dict[str, Any]
"""A tree of tensors that decoding carries from call to call."""


class StreamPart(Part):
    """Common contract of layers, mixers and feedforwards: `forward(x, streams) -> x` or `(x, published)`.

    Shapes:
        x: [B, L, dim]

    Class attributes:
        takes_views: whether keys and values are read off the streams `key_input` and `value_input`, [B, L, dim] each,
            where a sublayer hands them over; a part with a `body` leaves that to its body, and does nothing to `x`.

    Attributes:
        remembers: whether it is run on the tokens of earlier segments too, where a model is given memories.
    """

    follows: ClassVar[frozenset[str]] = frozenset({"dim"})
    takes_views: ClassVar[bool] = False
    remembers: bool = False

    @abstractmethod
    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Transform `x`; publish by returning `(x, {"name": tensor})`."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, streams: Streams) -> Output: ...

    @classmethod
    def in_streams(cls, args: Facts) -> dict[str, Shape]:
        """The shapes of streams that it reads, where it declares them: `B` and `L` are those of its input."""
        return {}

    @classmethod
    def out_streams(cls, args: Facts, x: Shape, streams: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shapes of the streams that it publishes itself, so that a step of a program can name them.

        Args:
            args: the resolved fields.
            x: the shape of its input.
            streams: the shapes of the streams that it is given.

        Raises:
            ShapeError: it publishes, and does not say of what shape.
        """
        told = cls.publishes(args)
        if told:
            raise ShapeError(f"{cls.kind} {cls.name!r} publishes {', '.join(told)} and defines no out_streams(...)")
        return {}

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Empty decode state for `batch` rows of at most `max_len` tokens: by default the children's, by name."""
        return {
            name: child.init_state(batch, max_len, streams)
            for name, child in self.named_children()
            if isinstance(child, StreamPart) and holds_state(child)
        }


class Layer(StreamPart):
    """A residual step or a group of them: what a stack is a list of.

    Class attributes:
        takes_many: whether `x` may be several residual streams a token, [B, L, S, dim], each treated alike.
    """

    kind: ClassVar[str] = "layer"
    takes_many: ClassVar[bool] = False


class Mixer(StreamPart):
    """Mixes information over the sequence; works on whole features, heads are its own business."""

    kind: ClassVar[str] = "mixer"


class FeedForward(StreamPart):
    """Transforms each token on its own."""

    kind: ClassVar[str] = "feedforward"


class Stack(StreamPart):
    """An ordered list of layers with a way to execute them."""

    kind: ClassVar[str] = "stack"


@dataclass(slots=True)
class Sides:
    """What a head-level attention knows beside q, k and v.

    Args:
        q_positions: [L] or [B, L] integers; None with `k_positions` None means 0..L-1 on both sides.
        k_positions: the same for the keys.
        q_segments: [B, Lq] document numbers; given together with `k_segments`.
        k_segments: the same for the keys.
        q_valid: [B, Lq] bool, False at padding among the new tokens.
        k_valid: [B, Lk] bool, False at padding among the keys.
        mask: what may attend to what, beyond causality and padding.
        scores: score modifiers, applied in order.
        cache: where new keys go and what they join (decoding); see `variform.stack.state`.
        state: this attention's own decode state.
        x: [B, Lq, dim] what the queries were made of, for what depends on a token beyond its q.
        streams: those of the mixer, for attentions that declare what they read.
        published: where an attention puts the streams that it declares to publish; the mixer hands them on.
        beside: further keys and values, of attentions that take them.
    """

    q_positions: Tensor | None = None
    k_positions: Tensor | None = None
    q_segments: Tensor | None = None
    k_segments: Tensor | None = None
    q_valid: Tensor | None = None
    k_valid: Tensor | None = None
    mask: Mask | None = None
    scores: tuple[ScoreMod, ...] = ()
    cache: Mapping[str, Any] | None = None
    state: State | None = None
    x: Tensor | None = None
    streams: Streams | None = None
    published: dict[str, Any] = field(default_factory=dict)
    beside: Beside | None = None


class Attention(Part):
    """A head-level attention.

    Shapes:
        q: [B, H, Lq, D]
        k: [B, Hk, Lk, D], query head i uses key head i // (H // Hk)
        v: [B, Hk, Lk, Dv]
        returns: [B, H, Lq, Dv], or (that, new state) when `sides.state` is given
    """

    kind: ClassVar[str] = "attention"
    takes_scores: ClassVar[bool] = False
    """Whether it has scores that a position bias can change."""
    takes_beside: ClassVar[bool] = False
    """Whether it attends to the keys and values of `Sides.beside` too."""
    takes_positions: ClassVar[bool] = False
    """Whether its weights depend on where a query stands, also among the queries of another sequence."""
    of_context: ClassVar[bool] = False
    """Whether it serves cross attention alone."""

    @classmethod
    def scores_taken(cls, args: Facts) -> bool:
        """`takes_scores` with these arguments."""
        return cls.takes_scores

    @classmethod
    def positions_taken(cls, args: Facts) -> bool:
        """`takes_positions` with these arguments."""
        return cls.takes_positions

    @property
    def able(self) -> Can:
        """What this attention can do, as it is filled."""
        return self.can

    @classmethod
    def queries_mixed(cls, args: Facts) -> bool:
        """Whether a query's result depends on other queries with these arguments, even over another sequence."""
        return False

    @classmethod
    def value_size(cls, args: Facts) -> int | None:
        """How many features a value has to have; None where any will do."""
        return None

    @classmethod
    def takes_joined(cls, args: Facts) -> bool:
        """Whether it needs no state of its own where its caller joins new keys and values to those before them."""
        return False

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]:
        """Attend."""

    if TYPE_CHECKING:

        def __call__(self, q: Tensor, k: Tensor, v: Tensor, sides: Sides) -> Tensor | tuple[Tensor, State]: ...

    def init_state(self, batch: int, max_len: int, like: Tensor, heads: int, dim_key: int, dim_value: int) -> State:
        """Empty decode state; `like` gives dtype and device."""
        raise NotImplementedError(f"{type(self).__name__} does not decode")


class Norm(Part):
    """Normalises the last dimension: `forward(x, condition=None) -> x`."""

    kind: ClassVar[str] = "norm"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise; `condition`, [B, dim_condition] or [B, L, dim_condition], is used by adaptive norms alone."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, condition: Tensor | None = None) -> Tensor: ...


class Nonlinearity(Part):
    """A function of features, each token for itself: `forward(x) -> x`, [..., dim] -> the same."""

    kind: ClassVar[str] = "nonlinearity"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class Gate(Part):
    """What the two branches of a gated unit pass before they are multiplied: `forward(gate, up) -> (gate, up)`.

    Shapes:
        gate, up: [..., hidden] -> the same
    """

    kind: ClassVar[str] = "gate"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Change both branches."""

    if TYPE_CHECKING:

        def __call__(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]: ...


class Position(Part):
    """A position code that is added to the embeddings: `forward(positions, length, like) -> [.., L, dim]`."""

    kind: ClassVar[str] = "position"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, positions: Tensor | None, length: int, like: Tensor) -> Tensor:
        """The codes of `positions` ([L] or [B, L]; None means 0..length-1), in the dtype of `like`."""

    if TYPE_CHECKING:

        def __call__(self, positions: Tensor | None, length: int, like: Tensor) -> Tensor: ...


class Rotation(Part):
    """Rotates queries and keys by their positions: `forward(q, k, q_positions, k_positions) -> (q, k)`.

    Shapes:
        q: [B, H, Lq, D], k: [B, Hk, Lk, D]; positions: [L] or [B, L] integers, None means 0..L-1
        returns: the same, or `widening` times as many features
    """

    kind: ClassVar[str] = "rotation"
    follows: ClassVar[frozenset[str]] = frozenset({"dim_head"})
    widening: ClassVar[int] = 1
    """How many features of a query or key come from each."""

    @abstractmethod
    def forward(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rotate both sides to their positions."""

    def reach(self, ahead: int) -> None:
        """Be ready for so many positions beyond `max_seq_len`: what stands before the tokens does not count there."""

    if TYPE_CHECKING:

        def __call__(
            self, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
        ) -> tuple[Tensor, Tensor]: ...


class Bias(Part):
    """A position-dependent change of attention scores: `forward() -> ScoreMod`."""

    kind: ClassVar[str] = "bias"
    follows: ClassVar[frozenset[str]] = frozenset({"heads"})

    @abstractmethod
    def forward(self) -> ScoreMod:
        """The score modifier with the current parameters."""

    if TYPE_CHECKING:

        def __call__(self) -> ScoreMod: ...


class Scoring(Part):
    """A change of attention scores, which may go by queries, keys and tokens: `forward(q, k, sides, kept) -> ScoreMod`.

    Class attributes:
        first: whether it comes before position biases, on the products of queries and keys.
        positioned: whether it goes by positions.
        accumulates: whether queries change what later queries see, and it keeps the sum while decoding.
    """

    kind: ClassVar[str] = "scoring"
    follows: ClassVar[frozenset[str]] = frozenset({"heads", "dim", "dim_head"})
    first: ClassVar[bool] = False
    positioned: ClassVar[bool] = False
    accumulates: ClassVar[bool] = False

    @property
    def kept_size(self) -> int:
        """How many numbers of each token are kept beside its keys, of all query heads together."""
        return 0

    def keep(self, sides: Sides) -> Tensor | None:
        """What is to be known of the new tokens as keys: [B, H, L, kept_size / H]; None where nothing is."""
        return None

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod:
        """The score modifier of a call.

        Args:
            q: [B, H, Lq, D].
            k: [B, Hk, Lk, D], those cached before included.
            sides: of the call, with positions and padding of all keys.
            kept: what `keep` answered for all keys, [B, H, Lk, kept_size / H]; of an accumulating part the sum so far.
        """

    if TYPE_CHECKING:

        def __call__(self, q: Tensor, k: Tensor, sides: Sides, kept: Tensor | None) -> ScoreMod: ...


class Weighting(Part):
    """How the scores of a row become weights, in the place of a softmax: `forward(sides) -> Normaliser`.

    Class attributes:
        mixes_queries: whether a query's weights depend on other queries, so that nothing of it is causal.
    """

    kind: ClassVar[str] = "weighting"
    follows: ClassVar[frozenset[str]] = frozenset({"heads"})
    mixes_queries: ClassVar[bool] = False

    @abstractmethod
    def forward(self, sides: Sides) -> Normaliser:
        """The normaliser with the current parameters."""

    @classmethod
    def queries_mixed(cls, args: Facts) -> bool:
        """`mixes_queries` with these arguments."""
        return cls.mixes_queries

    if TYPE_CHECKING:

        def __call__(self, sides: Sides) -> Normaliser: ...


class Memory(Part):
    """Keys and values beside those of the sequence: `forward() -> (k, v)`, [Hk, M, D] and [Hk, M, Dv]."""

    kind: ClassVar[str] = "memory"
    follows: ClassVar[frozenset[str]] = frozenset({"kv_heads", "dim_head"})

    @abstractmethod
    def forward(self) -> tuple[Tensor, Tensor]:
        """The keys and values."""


class KeyValues(Part):
    """How keys and values are made of tokens: `forward(of_k, of_v) -> (first, second)`, then `expand` to k and v.

    Decoding keeps `first` and `second` of each token, [B, heads, L, features] each. Where they are the keys and values
    themselves, the attention keeps them; where they are smaller (`compressed`), the mixer does.

    Shapes:
        of_k, of_v: [B, L, inputs]
    """

    kind: ClassVar[str] = "key_values"
    follows: ClassVar[frozenset[str]] = frozenset({"inputs", "kv_heads", "dim_head", "dim_value"})
    compressed: ClassVar[bool] = False

    @abstractmethod
    def forward(self, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of each token; of_k and of_v are one tensor but where they are views of their own."""

    def expand(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, Hk, L, dim_head] and values [B, Hk, L, dim_value]."""
        return first, second

    if TYPE_CHECKING:

        def __call__(self, of_k: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]: ...


class Projection(Part):
    """A map of each token's features: `forward(x) -> y`, [..., inputs] to [..., outputs]."""

    kind: ClassVar[str] = "projection"
    follows: ClassVar[frozenset[str]] = frozenset({"inputs", "outputs"})

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class Embedding(Part):
    """Turns a model's raw input into [B, L, dim]: `forward(inputs, streams) -> x` or `(x, published)`."""

    kind: ClassVar[str] = "embedding"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, inputs: Tensor, streams: Streams) -> Output:
        """Embed; a part that changes the length republishes `positions`, `valid` and `segments`."""

    @classmethod
    def takes(cls, args: Facts) -> str:
        """What its input holds, of `CONTENTS`."""
        return "ids"

    @classmethod
    def in_sizes(cls, args: Facts) -> tuple[int | str, ...]:
        """The sizes of its input: numbers, `B` rows and `L` tokens; by default those of ids."""
        return ("B", "L")

    @classmethod
    def out_shape(cls, args: Facts, inputs: Shape, streams: Mapping[str, Shape]) -> Shape:
        """The shape of the result, as a step of a program; by default that of ids [B, L] with `dim` features.

        Args:
            args: the resolved fields.
            inputs: the shape of the input.
            streams: the shapes of the streams that it is given.

        Raises:
            ShapeError: the input does not fit.
        """
        if len(inputs) != 2 or args.get("dim") is None:
            raise ShapeError(f"embedding {cls.name!r} takes ids of [B, L], or defines out_shape(...)")
        return (*inputs, args["dim"])

    @classmethod
    def out_streams(cls, args: Facts, x: Shape, streams: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shapes of the streams that it publishes itself, given those it reads."""
        return {}

    @abstractmethod
    def example_inputs(self, batch: int, length: int | None = None) -> Tensor:
        """An input of the sizes asked for; `length` is ignored where the input has no such size."""
        raise NotImplementedError(f"{type(self).__name__} does not define example_inputs(batch, length)")

    if TYPE_CHECKING:

        def __call__(self, inputs: Tensor, streams: Streams) -> Output: ...


class Residual(Part):
    """Joins a branch to the residual stream: `forward(x, branch) -> x`.

    One that reads streams (`reads`) is given them, `forward(x, branch, streams)`; one that keeps decode state returns
    `(x, {"state": ...})` where `streams["state"]` is given. See `join`.
    """

    kind: ClassVar[str] = "residual"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @classmethod
    def adds(cls, args: Facts) -> bool:
        """Whether it adds something of the branch alone to the stream as it is, as reversible layers need it."""
        return False

    @abstractmethod
    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Output:
        """Join [B, L, dim] and [B, L, dim]."""

    def init_state(self, batch: int, max_len: int, streams: Streams) -> State:
        """Empty decode state, of residuals that keep one."""
        raise NotImplementedError(f"{type(self).__name__} keeps no decode state")

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, branch: Tensor, streams: Streams | None = None) -> Output: ...


class MultiResidual(Residual):
    """Several residual streams a token, between layers of a `multi_stream` stack: [B, L, S, dim].

    A branch reads a mixture of them (`open`), and what it gives is written to each with a factor (`forward`).
    """

    follows: ClassVar[frozenset[str]] = frozenset({"dim", "residual_streams"})

    @classmethod
    def views(cls, args: Facts) -> int:
        """How many mixtures it hands to the branch: one, or three, for queries, keys and values apart."""
        return 1

    @abstractmethod
    def open(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """What a branch reads, [B, L, dim] each; what it joins, [B, L, S, dim]; and its factors, [B, L, S]."""

    def forward(self, x: Tensor, branch: Tensor, streams: Streams | None = None, gains: Tensor | None = None) -> Tensor:
        """Write a branch [B, L, dim] to the streams [B, L, S, dim]; without `gains`, `x` is opened first."""
        if gains is None:
            _, x, gains = self.open(x)
        return x + gains.unsqueeze(-1) * branch.unsqueeze(-2)

    if TYPE_CHECKING:

        def __call__(
            self, x: Tensor, branch: Tensor, streams: Streams | None = None, gains: Tensor | None = None
        ) -> Tensor: ...


class Entry(Part):
    """What the branch of a residual step reads: `forward(x, streams) -> (views, published)`.

    It sees the residual stream and what earlier steps published; what it returns is normed and goes to the body, and
    the stream itself stays as it is. One view is the input of the body; of three, the first is what an attention makes
    its queries of, the second and third are what it makes its keys and values of (the body finds them in the streams
    `key_input` and `value_input`, which are of that call alone).
    """

    kind: ClassVar[str] = "entry"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @classmethod
    def views(cls, args: Facts) -> int:
        """How many inputs it gives the body: 1 or 3."""
        return 1

    @abstractmethod
    def forward(self, x: Tensor, streams: Streams) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """From [B, L, dim] to one or three of that shape, and what is published."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, streams: Streams) -> tuple[tuple[Tensor, ...], dict[str, Any]]: ...


class Head(Part):
    """Reads the answer off the last hidden states: `forward(x, streams) -> output`."""

    kind: ClassVar[str] = "head"
    follows: ClassVar[frozenset[str]] = frozenset({"dim"})

    @abstractmethod
    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """From [B, L, dim] to the model's output."""

    @classmethod
    def out_shape(cls, args: Facts, x: Shape) -> Shape:
        """The shape of the output for an input of shape `x`.

        Raises:
            ShapeError: by default: a head that is a step of a program has to say it.
        """
        raise ShapeError(f"head {cls.name!r} does not say the shape of its output: define out_shape(args, x)")

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, streams: Streams) -> Tensor: ...


class Op(Part):
    """A step of a program: some tensors in, one or several out, no side inputs.

    Sizes are inferred before anything is built: `shapes` maps the shapes of the inputs, known or named sizes, to
    those of the outputs. `facts` of a step: `dim` is the last size of its first input, where that is a number.

    Class attributes:
        arity: how many tensors it takes; None for one or more.
        ids: the places of inputs that are integer ids.
        spare: the places of inputs that may be larger than needed, and of batch size 1.
        lone: the places of inputs that may be of batch size 1 where another input has the whole batch.
        ordered: whether the result depends on where in the sequence a row stands.
        accepts: what each input may hold, one set of `CONTENTS` a place; anything but ids for places left out.
        pairwise: whether scores may come in chunks of queries, with the keys so far: each is treated on its own.

    An op that does not treat each token on its own either cannot decode (`can.decode`), or is `stateful`: it defines
    `flow`, `init_state` and `step`.
    """

    kind: ClassVar[str] = "op"
    pairwise: ClassVar[bool] = False
    arity: ClassVar[int | None] = 1
    ids: ClassVar[tuple[int, ...]] = ()
    spare: ClassVar[tuple[int, ...]] = ()
    lone: ClassVar[tuple[int, ...]] = ()
    ordered: ClassVar[bool] = False
    accepts: ClassVar[tuple[frozenset[str], ...]] = ()

    @classmethod
    @abstractmethod
    def shapes(cls, args: Facts, inputs: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The shapes of the outputs.

        Raises:
            ShapeError: the inputs do not fit the op, or one another.
        """

    @classmethod
    def sizes(cls, args: Facts, inputs: tuple[Shape, ...]) -> Facts:
        """What the op's own fields may inherit from the shapes of its inputs, beside `dim`.

        Args:
            args: the fields that are given, not checked yet.
            inputs: the shapes.
        """
        return {}

    @classmethod
    def makes(cls, args: Facts, contents: tuple[str, ...]) -> tuple[str, ...]:
        """What the outputs hold, one of `CONTENTS` each, "" where that is open; by default what the first input does.

        Args:
            args: the fields.
            contents: what the inputs hold.
        """
        return contents[:1]

    @classmethod
    def constants(cls, args: Facts) -> dict[str, Shape]:
        """Fixed tensors that the op reads beside its inputs, by name, to be shown in tables."""
        return {}

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the outputs."""

    def flow(self, inputs: tuple[Flow, ...], outputs: tuple[Shape, ...]) -> tuple[Flow, ...]:
        """What is known of the outputs where tokens come in chunks; by default those of a function of each token.

        Args:
            inputs: what is known of the inputs.
            outputs: the shapes of the outputs, for the whole sequence.

        Raises:
            ShapeError: these inputs cannot be read in chunks.
        """
        return each_token(self, inputs, outputs)

    def init_state(self, batch: int, max_len: int, like: Tensor, inputs: tuple[Flow, ...]) -> State | None:
        """Empty decode state; None where `forward` serves chunks as well, which is the default.

        Args:
            batch: rows.
            max_len: the most tokens a row will hold.
            like: gives dtype and device.
            inputs: what is known of the inputs.

        Raises:
            ShapeError: the op does not reach as far as `max_len`.
        """
        return None

    def step(self, inputs: tuple[Tensor, ...], state: State, streams: Streams) -> tuple[tuple[Tensor, ...], State]:
        """Compute the outputs for a chunk of tokens, and the new state.

        Args:
            inputs: of the chunk.
            state: what the call before left here, or `init_state`.
            streams: `positions` of the chunk, and `cache`: where its tokens go and what they join (`stack.state`).
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no decode state")


class Model(Part):
    """A whole model: what `vf.build` of a preset returns and `vf.generate` takes."""

    kind: ClassVar[str] = "model"

    @abstractmethod
    def init_state(self, batch: int, max_len: int | None = None, *, bucket: int = 0, **streams: Any) -> State:
        """Empty decode state for `batch` rows of at most `max_len` tokens."""

    @abstractmethod
    def example_inputs(self, batch: int, length: int | None = None) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments of `forward`, of the sizes asked for (cost, checks, export).

        Args:
            batch: rows.
            length: tokens a row; the longest the model takes by default. Ignored where the input has no such size.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define example_inputs(batch, length)")

    def example_state(self, batch: int, max_len: int | None = None) -> State:
        """Empty decode state, with example side inputs where it has to read them."""
        given = self.example_inputs(batch, max_len)[1]
        streams: dict[str, Any] = {name: x for name, x in given.items() if name != "condition"}  # told in each call
        return self.init_state(batch, max_len, **streams)


def call(part: StreamPart, x: Tensor, streams: Streams, slot: str, published: dict[str, Any]) -> Tensor:
    """Call a child and merge what it publishes into `published`; the one place where this is done.

    Decode state is keyed by call: the child sees its own branch of the tree under `slot`, and its new state is
    put there.

    Args:
        part: the child.
        x: its main input.
        streams: the streams it may read.
        slot: the name of this call within the caller (the field's name, or its place in a list).
        published: what the caller has published so far; changed in place.
    """
    state, recall = streams.get("state"), streams.get("memories")
    if state is not None:
        streams = {**streams, "state": state.get(slot)}
    out = part(x, streams) if recall is None or not part.remembers else _recalled(part, x, streams, recall)
    if not isinstance(out, tuple):
        return out
    x, new = out
    if "state" in new:
        branches = published.setdefault("state", {})
        branches[slot] = new["state"]
        if len(new) > 1:
            published.update(new)
            published["state"] = branches
    else:
        published.update(new)
    return x


def _recalled(part: StreamPart, x: Tensor, streams: Streams, recall: Recall) -> Output:
    """Run a step on the tokens remembered and those of this segment, and keep the latter."""
    out = part(*recall.opened(x, streams))
    y, new = out if isinstance(out, tuple) else (out, {})
    return y[:, recall.length :], {**new, "memories": recall.after(x)}


def join(
    residual: Residual, x: Tensor, branch: Tensor, streams: Streams, slot: str, published: dict[str, Any]
) -> Tensor:
    """Call a residual with the streams it reads; its decode state is kept under `slot`, as `call` does.

    Args:
        residual: what joins.
        x: the stream.
        branch: what is joined to it.
        streams: the streams of the caller.
        slot: the name of this call within the caller.
        published: what the caller has published so far; changed in place.
    """
    if not residual.reads:
        out = residual(x, branch)
    else:
        state = streams.get("state")
        out = residual(x, branch, streams if state is None else {**streams, "state": state.get(slot)})
    if not isinstance(out, tuple):
        return out
    published.setdefault("state", {})[slot] = out[1]["state"]
    return out[0]


def holds_state(module: Any) -> bool:
    """Whether a module, or anything below it, keeps decode state."""
    return any(isinstance(child, Part) and child.stateful for child in module.modules())


def positions_of(streams: Streams, length: int, device: Any) -> Tensor:
    """The positions of the current tokens: the `positions` stream, or 0..length-1 where it is None."""
    import torch

    positions = streams.get("positions")
    return torch.arange(length, device=device) if positions is None else positions
