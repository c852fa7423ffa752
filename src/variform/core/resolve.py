"""Resolution: one pass down a spec tree that fills in every field and finds every mistake, before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from variform.core.codec import as_spec
from variform.core.fields import MOST_PARTS, Field, check_value, field_map, fields_of
from variform.core.inherit import Inherit
from variform.core.part import Part
from variform.core.registry import parts
from variform.core.spec import BROKEN, MISSING, Shared, Spec, default_of, described, shared_specs
from variform.errors import ConfigError, Problem, did_you_mean, join_path

MODEL_STREAMS = frozenset(
    {
        "positions",
        "valid",
        "segments",
        "mask",
        "bias",
        "beside",
        "context",
        "context_mask",
        "context_positions",
        "condition",
        "injected",
        "token_gains",
        "two_way",
        "prefix",
        "prefix_valid",
        "numbers",
        "further_ids",
        "embedding_options",
        "added",
        "passes",
        "exit",
        "losses",
        "state",
        "cache",
    }
)
"""The streams that a model's caller may provide; all other names come from parts that publish them."""


def resolve(spec: Any, **facts: Any) -> Spec:
    """Fill in every field of a spec tree: defaults, inherited facts, slot defaults.

    Args:
        spec: the root: a spec, or what describes one.
        facts: what the surroundings provide, if the root is not a whole model (`dim=64, heads=4`).

    Raises:
        ConfigError: with all problems of the tree at once.
    """
    resolved, problems = examine(as_spec(spec), **facts)
    if problems:
        raise ConfigError(problems)
    assert resolved is not None
    return resolved


def examine(spec: Spec, *, sure: bool = True, **facts: Any) -> tuple[Spec | None, list[Problem]]:
    """Like `resolve`, but returns the problems instead of raising them.

    Args:
        spec: the root.
        sure: whether `facts` are all there are; otherwise a field that nothing provides is no problem.
        facts: what the surroundings provide.
    """
    walk = _Walk(shared=shared_specs(spec), problems=_unknown_facts(facts))
    resolved = walk.visit(spec, {"writes": count_writes(spec), **facts}, "", sure)
    problems = _unique(walk.problems)
    if resolved is not None and not problems:
        problems = stream_problems(resolved)
    return resolved, problems


def _unknown_facts(facts: Mapping[str, Any]) -> list[Problem]:
    """A fact that no part could inherit is a misspelt one."""
    if not facts:
        return []
    known = {f.name for part in parts().values() for f in fields_of(part) if f.inherits}
    return [
        Problem(name, "no part takes this fact from its surroundings", value, did_you_mean(name, known))
        for name, value in facts.items()
        if name not in known
    ]


def count_writes(spec: Spec) -> int:
    """How often the parts of a tree add to the residual stream: the `writes` fact of depth-scaled initialisation."""
    return max(1, _writes(spec, shared_specs(spec), frozenset()))


def _writes(spec: Spec, shared: Mapping[str, Spec], inside: frozenset[str]) -> int:
    """The same for one part; what is shared counts wherever it is named, described there or not."""
    count = spec.part.residual_writes
    for _, _, child in spec.children():
        name = child.name if isinstance(child, Shared) else ""
        body = shared.get(name) if name else child
        if isinstance(body, Spec) and name not in inside:  # none that holds itself, which is refused elsewhere
            count += _writes(body, shared, inside | {name} if name else inside)
    return count


@dataclass
class _Walk:
    shared: Mapping[str, Spec]
    problems: list[Problem] = field(default_factory=list)
    first_use: dict[str, tuple[str, Spec]] = field(default_factory=dict)

    def visit(self, spec: Spec, around: Mapping[str, Any], path: str, sure: bool = True) -> Spec | None:
        """Resolve one part and what is below it.

        Args:
            spec: the part.
            around: the facts of its surroundings.
            path: its place.
            sure: whether `around` is complete; when a mistake further up left facts open, what is missing here is
                no mistake of its own.
        """
        known = field_map(spec.part)
        before = len(self.problems)
        for name in spec.args:
            if name not in known:
                self._report(path, name, f"{_label(spec)} has no field {name!r}", hint=did_you_mean(name, known))
        values = self._leaves(spec, around, path, sure)
        complete = all(f.is_slot or f.name in values for f in known.values())
        facts = {**around, **{k: v for k, v in values.items() if v is not None}}
        if complete:
            facts.update({k: v for k, v in spec.part.derive({**facts, **values}).items() if v is not None})
            self._refuse_impossible(spec, facts, values, path)
        values.update(self._slots(spec, facts, values if complete else None, path, sure))
        if len(self.problems) > before or any(name not in values for name in known):
            return None
        problems = list(spec.part.check({**facts, **{name: described(value) for name, value in values.items()}}))
        self.problems.extend(problem.below(path) for problem in problems)
        return None if problems else Spec(spec.part, values)

    def _leaves(self, spec: Spec, around: Mapping[str, Any], path: str, sure: bool) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for f in fields_of(spec.part):
            if f.is_slot:
                continue
            value = spec.args.get(f.name, default_of(f))
            if value is BROKEN:
                continue
            if isinstance(value, Inherit):
                value = self._inherited(spec, f, value, around, path if sure else None)
                if value is MISSING:
                    continue
            if value is MISSING:
                self._report(path, f.name, f"{_label(spec)} needs this field ({f.type_text()})")
                continue
            value, message = check_value(f, value)
            if message:
                self._report(path, f.name, message, value=value, hint=_choice_hint(f, value))
            else:
                values[f.name] = value
        return values

    def _inherited(self, spec: Spec, f: Field, marker: Inherit, around: Mapping[str, Any], path: str | None) -> Any:
        if around.get(f.name) is not None:
            return around[f.name]
        if marker.has_fallback:
            return marker.fallback
        if f.optional:
            return None
        if path is not None:
            message = f"{_label(spec)} takes this field from its surroundings, and they do not provide it"
            self._report(path, f.name, message, hint=f"set it here or on an enclosing part ({f.type_text()})")
        return MISSING

    def _slots(
        self, spec: Spec, facts: Mapping[str, Any], own: Mapping[str, Any] | None, path: str, sure: bool
    ) -> dict[str, Any]:
        """The resolved children by field; a field with a mistake is left out.

        `own` is None when the part's own values are not all known.
        """
        values: dict[str, Any] = {}
        given: dict[str, Any] = {}
        sure = sure and own is not None
        slots = [f.name for f in fields_of(spec.part) if f.is_slot]
        beside = {name: self._meant(spec.args[name]) for name in slots if name in spec.args}
        for f in fields_of(spec.part):
            if not f.is_slot:
                continue
            value = spec.args.get(f.name, default_of(f))
            if value is BROKEN:
                sure = False
            elif value is MISSING:
                self._report(path, f.name, f"{_label(spec)} needs this part ({f.type_text()})")
            elif value is None and f.optional:
                values[f.name] = None
            elif f.many and not isinstance(value, tuple):
                self._report(path, f.name, "expected a list of parts", value=value)
            elif f.many and len(value) > MOST_PARTS:
                self._report(path, f.name, f"a list holds at most {MOST_PARTS} parts, and this has {len(value)}")
            else:
                items = value if f.many else (value,)
                children: list[Any] = []
                follower = None if own is None or not f.many else spec.part.follow(f.name, {**facts, **own})
                for index, item in enumerate(items):
                    here = join_path(path, f"{f.name}.{index}" if f.many else f.name)
                    seen = {**facts, **beside, **(own or {})}
                    provided = {} if own is None else spec.part.provides(f.name, index, len(items), seen)
                    known = {} if follower is None else follower.before(index, item)
                    child: Spec | Shared | None = None
                    if known is not None and "resolved" in known:
                        child = known["resolved"]
                    elif known is not None:
                        child = self._child(f, item, {**facts, **given, **provided, **known}, given, here, sure)
                    if follower is not None:
                        follower.after(index, child)
                    sure = sure and child is not None  # what a broken child gives to its siblings is not known
                    children.append(child)
                if follower is not None:
                    self.problems.extend(p.below(join_path(path, f.name)) for p in follower.problems())
                if all(child is not None for child in children):
                    values[f.name] = tuple(children) if f.many else children[0]
        return values

    def _child(
        self, f: Field, value: Any, around: Mapping[str, Any], given: dict[str, Any], here: str, sure: bool
    ) -> Spec | Shared | None:
        child = self._described(f, value, here)
        resolved = None if child is None else self.visit(child, around, here, sure)
        if resolved is None or not self._follows(resolved, around, here):
            return None
        given.update(resolved.part.gives({**around, **dict(resolved.args)}))
        return self._share(value.name, resolved, here) if isinstance(value, Shared) else resolved

    def _follows(self, spec: Spec, around: Mapping[str, Any], here: str) -> bool:
        """Report sizes of a part that are not those of what reaches it."""
        before = len(self.problems)
        for name in sorted(spec.part.follows):
            own, reaching = spec.get(name), around.get(name)
            if own is not None and reaching is not None and own != reaching:
                message = f"{_label(spec)} has {name} = {own}, and what reaches it has {reaching}"
                self._report(here, name, message, hint="leave it out, so that it is inherited")
        return len(self.problems) == before

    def _meant(self, value: Any) -> Any:
        """What stands in a slot, described but not resolved."""
        return self.shared.get(value.name) if isinstance(value, Shared) else value

    def _described(self, f: Field, value: Any, here: str) -> Spec | None:
        """The description of a child that fits the slot, or None after reporting why there is none."""
        problem = None
        child = self.shared.get(value.name) if isinstance(value, Shared) else value
        if child is BROKEN:
            return None
        if isinstance(value, Shared) and child is None:
            hint = did_you_mean(value.name, self.shared)
            problem = Problem(here, f"nothing defines the shared part {value.name!r}", hint=hint)
        elif isinstance(value, Shared) and value.spec is not None and value.spec != child:
            message = f"the shared part {value.name!r} is described differently at another place"
            problem = Problem(here, message, hint="describe it once, or use two names")
        elif not isinstance(child, Spec):
            hint = "describe it: Part.spec(...), or {'part': name, ...} in a file"
            problem = Problem(here, "expected a part", value, hint)
        elif not issubclass(child.part, f.kinds):
            fits = sorted(name for kind in f.kinds if kind.kind for _, name in parts(kind.kind))
            message = f"a {child.kind} ({child.name}) does not fit; the slot takes {' or '.join(f.kind_names())}"
            problem = Problem(here, message, hint=f"known: {', '.join(fits[:12])}")
        else:
            return child
        self.problems.append(problem)
        return None

    def _share(self, name: str, resolved: Spec, path: str) -> Shared:
        first_path, first = self.first_use.setdefault(name, (path, resolved))
        if first != resolved:
            differing = [k for k in resolved.args if _differs(first.args.get(k), resolved.args[k])]
            message = f"the shared part {name!r} resolves to other {', '.join(differing)} here than at {first_path}"
            plain = [k for k in differing if all(isinstance(s.args.get(k), (int, float)) for s in (first, resolved))]
            if plain:
                message += ": " + ", ".join(f"{k} = {first.args[k]} there, {resolved.args[k]} here" for k in plain)
            self.problems.append(Problem(path, message, hint="give these fields explicitly in the shared spec"))
        return Shared(name, resolved)

    def _refuse_impossible(self, spec: Spec, facts: Mapping[str, Any], values: Mapping[str, Any], path: str) -> None:
        """Asking a part for what it cannot do is an error here, not a silent default later."""
        kinds = ("attention", "mixer", "feedforward", "layer", "scoring", "weighting")
        asked = facts.get("causal") is True and spec.kind in kinds
        # What is in the slots of a mixer is asked for itself, unless nothing is asked of it (cross attention).
        whole = spec.kind == "feedforward" or spec.part.answers_for_slots
        can = spec.part.abilities(values) if whole else spec.part.can
        if asked and not can.causal:
            able = ", ".join(name for (_, name), p in parts(spec.kind).items() if p.can.causal)
            how = "with these settings" if spec.part.can.causal else ""
            message = " ".join(filter(None, (_label(spec), "has no causal form", how)))
            message += ", and causal=True is asked for"
            self.problems.append(Problem(path, message, hint=f"causal: {able}"))

    def _report(self, path: str, name: str, message: str, **more: Any) -> None:
        self.problems.append(Problem(join_path(path, name), message, **more))


REPUBLISHED = frozenset({"positions", "valid", "segments", "injected", "token_gains"})
"""Streams of the model that a part which changes the length publishes anew, or begins."""


def stream_problems(spec: Spec) -> list[Problem]:
    """Check published streams: each read has a writer before it, each write a reader, no two writers of one name.

    A part that reads a stream and publishes it anew carries it on (a history), and is no second writer. Parts run in
    field and list order; names end with the enclosing stack.
    """
    problems: list[Problem] = []
    _scan(spec, "", {}, set(), problems)
    return problems


def _scan(spec: Spec, path: str, written: dict[str, str], used: set[str], problems: list[Problem]) -> None:
    """Visit one part: its reads against `written`, then its children, then what it publishes."""
    outer = set(written)
    named = spec.part.names_streams(spec.args)
    if named is not None:  # what its children publish has names of its own there, and goes no further
        written = {**dict.fromkeys(named - MODEL_STREAMS, path), **written}
        all_used, used = used, set(used)
    reads = spec.part.reads_streams(spec.args)
    for name in sorted(reads - MODEL_STREAMS):
        if name in written:
            used.add(name)
        else:
            hint = did_you_mean(name, written) if written else "no part before it publishes anything"
            problems.append(Problem(path, f"reads the stream {name!r}, which no part before it publishes", hint=hint))
    for slot, index, child in spec.children():
        inner = child.spec if isinstance(child, Shared) else child
        if inner is not None:
            _scan(inner, join_path(path, slot if index is None else f"{slot}.{index}"), written, used, problems)
    if named is not None:
        all_used.update(used & outer)
        return
    for name in set(spec.part.publishes(spec.args)) - REPUBLISHED:
        if name in written and name in reads:
            continue
        if name in written:
            problems.append(Problem(path, f"publishes {name!r}, which {written[name]} publishes already"))
        elif name in MODEL_STREAMS:
            problems.append(Problem(path, f"publishes {name!r}, a name reserved for the model's own streams"))
            continue
        written[name] = path
    if spec.kind == "stack" or not path:
        for name in sorted(set(written) - outer):
            where = written.pop(name)
            if name not in used:
                problems.append(Problem(where, f"publishes the stream {name!r}, which nothing reads"))
            used.discard(name)


def _differs(a: Any, b: Any) -> bool:
    try:
        return bool(a != b)
    except RuntimeError:
        return True


def _label(spec: Spec) -> str:
    return f"{spec.kind} {spec.name!r}"


def _choice_hint(f: Field, value: Any) -> str:
    import typing

    for candidate in (f.annotation, *typing.get_args(f.annotation)):
        if typing.get_origin(candidate) is typing.Literal and isinstance(value, str):
            return did_you_mean(value, [str(a) for a in typing.get_args(candidate)])
    return ""


def _unique(problems: Iterable[Problem]) -> list[Problem]:
    seen: dict[str, Problem] = {}
    for problem in problems:
        seen.setdefault(str(problem), problem)
    return list(seen.values())


__all__ = ["MODEL_STREAMS", "Part", "count_writes", "examine", "resolve", "stream_problems"]
