"""`ConfigaFormer`: a model from a list of blocks of module dicts, over named streams."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from variform.core.build import build
from variform.core.resolve import examine
from variform.core.spec import Spec
from variform.dialects.configaformers.budget import within
from variform.dialects.configaformers.errors import ConfigaformersError
from variform.dialects.configaformers.modules.lending import lend_sizes
from variform.dialects.configaformers.places import Places
from variform.dialects.configaformers.printing import as_declared
from variform.dialects.configaformers.reading import Reader
from variform.dialects.configaformers.scope import Scope, read_sizes
from variform.dialects.configaformers.shapes import names_of, read_shapes, with_batch
from variform.errors import Problem, did_you_mean
from variform.stack.lines import Block
from variform.stack.program import ProgramModel
from variform.stack.table import Table

Config = Mapping[str, Any]
Shapes = Mapping[str, Sequence[int | str]]


class ConfigaFormer(ProgramModel):
    """A model over named streams, built from blocks of module dicts; it prints the shape of every stream.

    Calling it with a dict of input streams returns a dict of output streams: `model(input_data)['x']`. Neither that
    dict nor the configs are changed. Streams that nothing reads any more are freed on the way; what is left unread
    at the end is returned.

        ConfigaFormer(model_config={'blocks': blocks}, input_streams=shapes)
        ConfigaFormer(blocks, input_shapes=shapes)

    Args:
        model_config: {'blocks': [{'config': [module dicts], 'repeat': N}, ...]}, and `sizes` if need be; or the blocks.
        input_streams: the shape of each input stream: numbers and names of sizes; the first is the batch.
        verbose: print the table of modules and shapes; "costs" for what every line costs instead.
        output_streams: the streams to return, in place of those left unread.
        blocks: the blocks, in place of `model_config`.
        input_shapes: the same as `input_streams`; with `blocks`, the table shows input streams as they are declared.
        sizes: numbers by name, for expressions such as '4*d' in the modules and shapes.
        attention: "fused": attention scores that only one weighted sum reads are never held as a whole; "literal":
            every module is computed as it stands.
        budget: the most that it may cost: `max_params`, `max_flops`, `max_memory`, and `at` with the sizes for these.
            Exceeding a limit is an error, before anything is allocated.

    Raises:
        ConfigaformersError: all problems of the config at once, before anything is allocated.
    """

    def __init__(
        self,
        model_config: Config | Sequence[Config] | None = None,
        input_streams: Shapes | None = None,
        verbose: bool | Literal["costs"] = True,
        output_streams: Sequence[str] | None = None,
        *,
        blocks: Sequence[Config] | None = None,
        input_shapes: Shapes | None = None,
        sizes: Mapping[str, Any] | None = None,
        attention: Literal["fused", "literal"] = "fused",
        budget: Mapping[str, Any] | None = None,
    ) -> None:
        spec = program_spec(
            model_config,
            input_streams,
            output_streams,
            blocks=blocks,
            input_shapes=input_shapes,
            sizes=sizes,
            attention=attention,
            budget=budget,
        )
        built = build(spec)
        super().__init__(list(built.lines.in_order()), **built.spec.leaves(), inputs=built.spec["inputs"])
        self.spec = built.spec
        later = blocks is not None or isinstance(model_config, (list, tuple))
        shapes = input_streams if input_shapes is None else input_shapes
        self._declared = {name: tuple(shape) for name, shape in (shapes or {}).items()} if later else {}
        if verbose == "costs":
            from variform.inspect import costs  # programs that are not measured do without the machinery

            print(costs(self))
        elif verbose:
            print(self.table)

    @property
    def table(self) -> Table:
        """The lines with the shapes of all that they read and write; `str` of it is readable."""
        rows = super().table.rows
        return Table(rows, as_declared(rows, self._declared))


def program_spec(
    model_config: Config | Sequence[Config] | None = None,
    input_streams: Shapes | None = None,
    output_streams: Sequence[str] | None = None,
    *,
    blocks: Sequence[Config] | None = None,
    input_shapes: Shapes | None = None,
    sizes: Mapping[str, Any] | None = None,
    attention: Literal["fused", "literal"] = "fused",
    budget: Mapping[str, Any] | None = None,
) -> Spec:
    """The program that a config describes, resolved: every size filled in, nothing allocated.

    Args:
        model_config: as for `ConfigaFormer`, as are all others.
        input_streams: the shapes of the inputs.
        output_streams: the streams to return.
        blocks: in place of `model_config`.
        input_shapes: in place of `input_streams`.
        sizes: numbers by name.
        attention: "fused" or "literal".
        budget: limits that the program must keep to; see `budget.within`.

    Raises:
        ConfigaformersError: all problems at once.
    """
    path = "input_streams" if input_shapes is None else "input_shapes"
    reader = Reader(places=Places(arguments={"outputs": "output_streams", "inputs": path}))
    content, sizes = _content(model_config, blocks, sizes, reader.problems)
    shapes = _shapes(input_streams, input_shapes, reader.problems)
    names, wrong = read_sizes(sizes)
    if wrong:  # whatever names one of them would only repeat it
        raise ConfigaformersError([*reader.problems, *wrong])
    scope = Scope(names, told=names_of(shapes))
    lines = [] if content is None else reader.blocks(content, scope)
    inputs: dict[str, tuple[int | str, ...]] = {}
    if shapes is not None:
        inputs, wrong = read_shapes(shapes, scope, path)
        reader.problems += wrong
    outputs = _outputs(output_streams, lines, reader.problems)
    inputs = with_batch(inputs)
    unasked = outputs[:-1] if output_streams is None else ()
    lines, inputs = lend_sizes(lines, inputs)
    settings: dict[str, Any] = {"strict": False, "unasked": unasked, "attention": attention}
    spec = ProgramModel.spec(lines=lines, inputs=inputs, outputs=outputs, **settings)
    return within(resolved(spec, reader, bool(lines) and shapes is not None and not wrong), budget)


def resolved(spec: Spec, reader: Reader, whole: bool = True, **facts: Any) -> Spec:
    """A program with every size filled in.

    Args:
        spec: what the reader has read.
        reader: knows the places of its lines, and the problems so far.
        whole: whether there is something to resolve.
        facts: what surrounds the program.

    Raises:
        ConfigaformersError: all problems at once, those of the reader too.
    """
    found, done = list(reader.problems), None
    if whole:
        done, problems = examine(spec, **facts)
        found += [told for told in map(reader.places.translate, problems) if told is not None]
    elif not found:
        found.append(Problem("blocks", "there is no module in any block"))
    if found or done is None:
        raise ConfigaformersError(sorted(found, key=_place))
    return done


def _place(problem: Problem) -> tuple[float, ...]:
    """Where in the blocks a problem lies, to tell all in the order of their lines; others come after these."""
    head, *rest = problem.path.split(".")
    return tuple(float(step) for step in rest if step.isdecimal()) if head == "blocks" else (math.inf,)


def _content(model_config: Any, blocks: Any, sizes: Any, problems: list[Problem]) -> tuple[Any, Any]:
    """The blocks and the sizes, from whichever argument gives them."""
    if model_config is not None and blocks is not None:
        problems.append(Problem("blocks", "model_config and blocks are both given", hint="give one of them"))
        return None, sizes
    if model_config is None:
        if blocks is None:
            hint = "blocks=[{'config': [...], 'repeat': N}, ...] or model_config={'blocks': [...]}"
            problems.append(Problem("", "a model needs its blocks", hint=hint))
        return blocks, sizes
    if isinstance(model_config, (list, tuple)):
        return model_config, sizes
    if not isinstance(model_config, Mapping) or "blocks" not in model_config:
        keys = list(model_config) if isinstance(model_config, Mapping) else model_config
        problems.append(Problem("", "model_config is a dict with the key 'blocks', or the list of blocks", keys))
        return None, sizes
    known = ("blocks", "sizes")
    for key in model_config:
        if key not in known:
            hint = did_you_mean(str(key), known)
            problems.append(Problem(str(key), "model_config has only the keys 'blocks' and 'sizes'", hint=hint))
    if sizes is not None and "sizes" in model_config:
        problems.append(Problem("sizes", "given twice: beside model_config and in it", hint="give one of them"))
    return model_config["blocks"], model_config.get("sizes") if sizes is None else sizes


def _shapes(input_streams: Any, input_shapes: Any, problems: list[Problem]) -> Any:
    """The shapes of the inputs, from whichever argument gives them."""
    if input_streams is not None and input_shapes is not None:
        hint = "give one of them"
        problems.append(Problem("input_shapes", "input_streams and input_shapes are both given", hint=hint))
        return None
    if input_streams is None and input_shapes is None:
        hint = "input_shapes={'emb_ids': ['B', 'L_in']}, with a number or a name for each size"
        problems.append(Problem("input_streams", "a model needs the shapes of its inputs", hint=hint))
    return input_streams if input_shapes is None else input_shapes


def _outputs(output_streams: Any, lines: Sequence[Spec], problems: list[Problem]) -> tuple[str, ...]:
    if output_streams is None:
        return tuple(left_unread(lines))
    names = [output_streams] if isinstance(output_streams, str) else output_streams
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        problems.append(Problem("output_streams", "must be a list of names", output_streams))
        return ()
    if not names:
        problems.append(Problem("output_streams", "a model gives back at least one stream", names))
    return tuple(names)


def left_unread(blocks: Iterable[Spec]) -> list[str]:
    """The streams that are written and not read after, in order."""
    waiting: dict[str, None] = {}
    for step in (step for block in blocks for step in block["lines"] if step.part is not Block):
        for name in step["reads"]:
            waiting.pop(name, None)
        for name in step["into"]:
            waiting.pop(name, None)
            waiting[name] = None
    return list(waiting)
