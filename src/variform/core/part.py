"""Part: the base class of everything that a model is made of, and its declared abilities."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, overload

from torch import nn

from variform.core.inherit import Inherit
from variform.errors import ConfigError, Problem

if TYPE_CHECKING:
    from variform.core.spec import Spec

Facts = Mapping[str, Any]
"""What is known at one place of a spec tree: field values by name."""


@dataclass(frozen=True)
class Can:
    """What a part can do. Asking for what it cannot do is an error when the spec is checked.

    Args:
        causal: output t depends on no input after t when `causal` is on.
        key_padding: keys marked invalid change nothing (`valid`, `context_mask`).
        attention_mask: honours a query x key mask (the `mask` stream).
        packed: several documents in one row, told apart by `segments`, do not see one another.
        cross: the keys may come from another sequence, of another length.
        lengths: any sequence length up to `max_seq_len` works, not only one fixed at construction.
        decode: has a state, so that cached decoding equals the uncached forward.
    """

    causal: bool = True
    key_padding: bool = True
    attention_mask: bool = True
    packed: bool = True
    cross: bool = True
    lengths: bool = True
    decode: bool = True

    def __and__(self, other: Can) -> Can:
        return Can(*(getattr(self, flag) and getattr(other, flag) for flag in _FLAGS))


_FLAGS = tuple(f.name for f in fields(Can))  # compiled code cannot ask for the fields of a dataclass


@dataclass(frozen=True)
class Cost:
    """What one call of a part costs, its children included; a multiply-add counts 2.

    Args:
        flops: operations of the forward pass.
        flops_dense: the same with every pair of positions visited.
        flops_backward: operations of the backward pass, without what is computed again.
        activation_bytes: what is kept for the backward pass; None measures it.
        output: empty tensors like the result, where `forward` cannot run without data (sizes that depend on it).
    """

    flops: int
    flops_dense: int
    flops_backward: int
    activation_bytes: int | None = None
    output: Any = None


@functools.cache
def _signature(part: type) -> inspect.Signature:
    signature = inspect.signature(part.__init__)  # type: ignore[misc]  # of this very class, not of an instance
    return signature.replace(parameters=list(signature.parameters.values())[1:])


class Follower(Protocol):
    """Follows the children of a list slot: tells each what the ones before it lead to, and finds what they break."""

    def before(self, index: int, child: Any) -> Facts | None:
        """Further facts for the child that comes next; None passes it over, for a problem known already.

        The fact `resolved` is the child itself, resolved: an equal one came to that in equal surroundings.
        """

    def after(self, index: int, child: Any) -> None:
        """Take note of the resolved child; None where it has a problem or was passed over."""

    def problems(self) -> list[Problem]:
        """What the children break together; paths are relative to the slot."""


class PartMeta(type(nn.Module)):  # type: ignore[misc]  # the metaclass of Module is `type`; this names it once
    """Refuses a direct construction that leaves a field to inheritance: there is nothing to inherit from."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = _signature(cls).bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(f"{cls.__name__}: {error}") from None
        bound.apply_defaults()
        open_fields = [name for name, value in bound.arguments.items() if isinstance(value, (Inherit, Default))]
        if open_fields:
            raise ConfigError(
                f"{cls.__name__}(...) called directly must be given: {', '.join(open_fields)}",
                hint=f"or build a spec, which fills them in: vf.build({cls.__name__}.spec(...))",
            )
        return super().__call__(*args, **kwargs)


@dataclass(frozen=True)
class Default:
    """The default of a slot: the name of a registered part of that slot's kind, with arguments."""

    name: str
    args: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"use({self.name!r}" + "".join(f", {key}={value!r}" for key, value in self.args) + ")"


def use(name: str, **args: Any) -> Any:
    """Declare the default part of a slot by its registered name: `norm: Norm = use("layer_norm")`."""
    return Default(name, tuple(sorted(args.items())))


class SpecAccess:
    """`Class.spec(**args)` describes a part; `part.spec` is the full, resolved description it was built from."""

    @overload
    def __get__(self, part: None, owner: type[Part]) -> Callable[..., Spec]: ...
    @overload
    def __get__(self, part: Part, owner: type[Part]) -> Spec: ...
    def __get__(self, part: Part | None, owner: type[Part]) -> Any:
        from variform.core.spec import Spec

        if part is None:
            return lambda **args: Spec(owner, args)
        spec = part.__dict__.get("_spec")
        if spec is None:
            raise ConfigError(
                f"this {owner.__name__} was constructed directly and carries no spec",
                hint="build it from a spec: vf.build(spec)",
            )
        return spec

    def __set__(self, part: Part, spec: Spec) -> None:
        part.__dict__["_spec"] = spec


class Part(nn.Module, metaclass=PartMeta):
    """A piece of an architecture: typed keyword constructor in, `nn.Module` out.

    Subclass one of the *kinds* (`Mixer`, `Attention`, `Norm`, ...), register it under a name, and take **built
    children** in the constructor. Kinds are abstract, parts are final: variation is by slot, not by subclass.

    Class attributes:
        kind: the name of the kind, set by the abstract base.
        name: the registered name, set by `register`.
        can: what the part can do.
        reads: the streams its `forward` looks at.
        closes: streams that it gives its children itself, so that theirs are not its surroundings'.
        stateful: whether it keeps decode state (`init_state`).
        answers_for_slots: whether what its slots cannot do is asked of it, because they are not asked themselves.
        follows: fields that say what reaches the part, so that a value of its own must be that of the surroundings.
        residual_writes: how often it adds to the residual stream (for depth-scaled initialisation).
    """

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    can: ClassVar[Can] = Can()
    reads: ClassVar[frozenset[str]] = frozenset()
    closes: ClassVar[frozenset[str]] = frozenset()
    stateful: ClassVar[bool] = False
    answers_for_slots: ClassVar[bool] = False
    follows: ClassVar[frozenset[str]] = frozenset()
    residual_writes: ClassVar[int] = 0
    spec = SpecAccess()

    # ---- hooks of the resolution pass; all see plain values, never tensors ----

    @classmethod
    def derive(cls, facts: Facts) -> Facts:
        """Further facts that follow from the own fields (they join what children may inherit)."""
        return {}

    @classmethod
    def provides(cls, slot: str, index: int, count: int, facts: Facts) -> Facts:
        """Facts for the child at `slot[index]` alone, which shadow the surroundings'.

        Args:
            slot: the field the child sits in.
            index: its place when the slot is a list, else 0.
            count: how many children the slot has.
            facts: the part's own facts and its surroundings'; the parts given to its slots as they are described.
        """
        return {}

    @classmethod
    def follow(cls, slot: str, facts: Facts) -> Follower | None:
        """An object that follows the children of a list slot as they are resolved one after another, if need be."""
        return None

    @classmethod
    def gives(cls, facts: Facts) -> Facts:
        """Facts that hold for the siblings after this part (a new `dim` after down-sampling)."""
        return {}

    @classmethod
    def check(cls, facts: Facts) -> Iterable[Problem]:
        """The rules that go beyond one field's type. `facts` holds all own fields, children as resolved specs.

        Paths in the problems are relative: the name of the field.
        """
        return ()

    @classmethod
    def notes(cls, facts: Facts) -> Iterable[Problem]:
        """What is not wrong and still worth saying, given what `check` is given; paths are relative too."""
        return ()

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What the part can do with these arguments; by default the class's own `can`."""
        return cls.can

    @classmethod
    def near_length(cls, args: Facts, length: int) -> int:
        """A sequence length near `length` that the part takes; for parts that take some lengths only (squares, say).

        Checks of any registered part run at such lengths, and expect that others are refused.
        """
        return length

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """The stream names its forward returns beside `x`; they come from its fields."""
        return ()

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The streams its own forward reads with these arguments (without its children's)."""
        return cls.reads

    @classmethod
    def names_streams(cls, args: Facts) -> frozenset[str] | None:
        """For a part that names what its children read and publish: the streams that it gives them. None elsewhere."""
        return None

    @classmethod
    def steps(cls, slot: str) -> bool:
        """Whether the children in `slot` run step by step when decoding; those that read another side do not."""
        return "context" not in cls.reads

    # ---- cost ----

    def cost(self, *args: Any, **kwargs: Any) -> Cost | None:
        """What a call with these arguments costs, by formula; None lets its operations be counted.

        For what counting cannot see: scans, Fourier transforms, sizes that depend on the data.
        """
        return None

    # ---- parameters ----

    def reset_parameters(self) -> None:
        """Initialise the parameters that this part itself owns (not its children's)."""

    def extra_repr(self) -> str:
        """The scalar fields, so that a printed model can be read."""
        spec = self.__dict__.get("_spec")
        return "" if spec is None else ", ".join(f"{k}={v!r}" for k, v in spec.leaves().items())
