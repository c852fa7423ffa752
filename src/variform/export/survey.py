"""What is known of a model before its code is written: its parts, the side inputs that they read, what they share."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from torch import nn

from variform.core.spec import Spec, described
from variform.export.classes import Facts, facts_of
from variform.export.known import Known
from variform.export.shake import ATTENTION, EXPERTS, LAYERS, PATTERNS, SCORES, Place, at, definition
from variform.parts.attention.softmax import LocalAttention
from variform.parts.kinds import Attention, Bias, Entry, MultiResidual, Op
from variform.parts.mixer.compositional import Compositional, CrossCompositional
from variform.parts.op.heads import Scores, WeightedSum
from variform.parts.position.dynamic import DynamicBias
from variform.parts.stream_ops.key_condition import KeyCondition
from variform.stack.encoder_decoder import EncoderDecoder
from variform.stack.execute import ModuleList
from variform.stack.lines import Block, Step
from variform.stack.model import Transformer
from variform.stack.program import Program, ProgramModel, _layer_values, _model_values
from variform.stack.rows import Row
from variform.stack.trace import trace_lines
from variform.stack.values import Value
from variform.weights.io import shared_names

_PATTERNS = ("GlobalAttention", "LongformerAttention", "BigBirdAttention", "RandomAttention")
STANDINS: dict[Place, Place] = {
    (module, name): (standin, name)
    for module, standin, names in (
        ("variform.parts.linear", LAYERS, ("Linear",)),
        ("variform.ops.products", LAYERS, ("linear",)),
        ("variform.parts.kinds.calls", LAYERS, ("call",)),
        ("variform.parts.kinds.attention", ATTENTION, ("Sides",)),
        ("variform.parts.attention.softmax", ATTENTION, ("SoftmaxAttention", "LocalAttention")),
        ("variform.parts.attention.patterned", PATTERNS, _PATTERNS),
        ("variform.parts.attention.block_sparse", PATTERNS, ("BlockSparseAttention",)),
        ("variform.parts.attention.shifted_windows", PATTERNS, ("ShiftedWindowAttention",)),
        ("variform.ops.scores.relative", ATTENTION, ("Alibi", "BucketBias")),
        ("variform.ops.scores.relative", PATTERNS, ("GridBias",)),
        ("variform.ops.distances", ATTENTION, ("DistanceBias",)),
        ("variform.ops.experts", EXPERTS, ("visit", "run_sorted")),
        ("variform.parts.op.heads", SCORES, ("Scores",)),
        ("variform.parts.mixer.multi_head", SCORES, ("split_heads", "join_heads")),
        ("variform.stack.execute", LAYERS, ("run_in_order",)),
        ("variform.stack.sublayer", LAYERS, ("TransformerLayer",)),
        ("variform.stack.stack", LAYERS, ("LayerStack",)),
        ("variform.stack.model", LAYERS, ("Transformer",)),
        ("variform.stack.encoder_decoder", LAYERS, ("EncoderDecoder",)),
    )
    for name in names
}
STANDINS["variform.parts.op.common", "split"] = (SCORES, "split_heads")
"""The machinery, and what is written in its place."""

SIDE_INPUTS = ("valid", "context", "context_mask", "condition", "prefix", "prefix_valid", "numbers")
"""What a standalone model takes beside its main input, where a part reads it."""

_NEVER = frozenset(
    {
        "bias",
        "beside",
        "deltas",
        "published",
        "state",
        "cache",
        "twin",
        "watch",
        "losses",
        "memories",
        "added",
        "further_ids",
        "embedding_options",
        "passes",
        "exit",
        "segments",
        "mask",
        "q_segments",
        "k_segments",
        "hidden",
    }
)


def modules_by_class(model: nn.Module) -> dict[Place, Facts]:
    """What the modules of each class have in common; under the name of what stands for the class, too."""
    found: dict[Place, list[nn.Module]] = {}
    for module in model.modules():
        found.setdefault((type(module).__module__, type(module).__qualname__), []).append(module)
    facts = {place: facts_of(modules) for place, modules in found.items()}
    return {**facts, **{STANDINS[place]: known for place, known in facts.items() if place in STANDINS}}


def survey(model: nn.Module, spec: Spec) -> Known:
    """What holds for a whole model."""
    specs = [found for _, found in spec.walk()]
    reads = {name for found in specs for name in found.part.reads_streams(found.args)}
    absent = {name for name in SIDE_INPUTS if name not in reads}
    if not all(found.part.abilities(found.args).key_padding for found in specs):
        absent |= {"valid", "context_mask"}
    if "valid" in absent and "prefix_valid" in absent:
        absent |= {"positions", "q_positions", "k_positions", "q_valid"}
    if "valid" in absent and "context_mask" in absent:
        absent.add("k_valid")
    if not any(issubclass(found.part, Bias) for found in specs):
        absent |= {"scores", "reach"}
    absent |= {"injected", "token_gains"} - {name for found in specs for name in found.part.publishes(found.args)}
    apart = any(found.part.views(found.args) > 1 for found in specs if issubclass(found.part, (Entry, MultiResidual)))
    if not apart and not any(found.part is KeyCondition for found in specs):
        absent |= {"key_input", "value_input"}
    absent |= {name for name, has in _asked(model, specs).items() if not has}
    pairs = [found for found in specs if found.part is EncoderDecoder]
    hidden = any(described(found["encoder"]).get("head") is not None for found in pairs)
    return Known(
        names={
            "PUBLISHES": False,
            "HIDDEN": hidden,
            "GROUPED": _grouped(model),
            "UNEQUAL": _unequal(specs),
            "WIDE_VALUES": any(found.part in (Compositional, CrossCompositional) for found in specs),
            "COMPUTED": any(found.part is DynamicBias for found in specs),
            "NARROW_VALUES": any(getattr(found.part, "widening", 1) > 1 for found in specs),
            "STRIDED": _has_programs(specs),
            "RENAMED": bool(shared_names(model)) or _has_programs(specs),
        },
        absent=frozenset(absent) | (_NEVER - {"hidden"} if hidden else _NEVER),
        repeats=any(len(m.order) > len(m) for m in model.modules() if isinstance(m, ModuleList)),
        images=_images(model),
        tables={"ACTIVATIONS": _activations()},
    )


def _has_programs(specs: list[Spec]) -> bool:
    return any(found.part is Step for found in specs)


def _asked(model: nn.Module, specs: list[Spec]) -> dict[str, bool]:
    """Which options of attention any part of the model uses."""
    attentions = [found for found in specs if issubclass(found.part, Attention)]
    return {
        "dropout": any(found.get("dropout") for found in attentions),
        "scale": any(found.get("scale") is not None for found in attentions),
        "back": any(found.part is LocalAttention for found in attentions),
    }


def _grouped(model: nn.Module) -> bool:
    return any(vars(m)["kv_heads"] != vars(m).get("heads") for m in model.modules() if "kv_heads" in vars(m))


def _unequal(specs: list[Spec]) -> bool:
    """Whether programs have heads of different sizes, as far as their lines tell."""
    sizes: set[Any] = set()
    for found in specs:
        if found.part in (Program, ProgramModel):
            for row in program_rows(found):
                shapes = [shape for _, shape in row.reads]
                if row.op.part is Scores:
                    sizes.add(shapes[0][-1])
                elif row.op.part is WeightedSum:
                    v, heads = shapes[0], shapes[1][1]
                    sizes.add(v[-1] // heads if len(v) == 3 and isinstance(heads, int) else v[-1])
    return len(sizes) > 1


def program_rows(program: Spec) -> list[Row]:
    """The steps of a program with the shapes of what they read and write."""
    return trace_lines(program["lines"], program_values(program)).rows


def step_places(spec: Spec) -> dict[str, str]:
    """The steps of all programs of a model by path, in words: block, repeat and line."""
    found: dict[str, str] = {}
    for path, part in parts_of(spec).items():
        if part.part in (Program, ProgramModel):
            found |= {f"{path}.{row.path}" if path else row.path: row.where for row in program_rows(part)}
    return found


def program_values(program: Spec) -> dict[str, Value]:
    """What a program starts from."""
    if program.part is ProgramModel:
        return _model_values(program.args)
    return _layer_values(program.args)


def _images(model: nn.Module) -> bool | None:
    kinds = set()
    for module in model.modules():
        if isinstance(module, Transformer):
            embedding = module.embedding
            kinds.add(embedding is not None and embedding.example_inputs(1, 1).dim() == 4)
    return kinds.pop() if len(kinds) == 1 else None


def _activations() -> ast.Dict:
    module = "variform.parts.activation"
    node = definition((module, "ACTIVATIONS"))
    assert isinstance(node, ast.AnnAssign)
    assert isinstance(node.value, ast.Dict)
    values: list[ast.expr] = []
    for value in node.value.values:
        match value:
            case ast.Attribute(value=ast.Name(id=name), attr=attr):
                values.append(ast.Attribute(at(module, name), attr, ast.Load()))
            case ast.Name(id=name):
                values.append(at(module, name))
    return ast.Dict(node.value.keys, values)


def parts_of(spec: Spec) -> Mapping[str, Spec]:
    """The parts of a model by path, children before what holds them; of a program's lines, only parts of parts."""
    found: list[tuple[str, Spec]] = []

    def visit(here: Spec, path: str) -> None:
        for name, index, child in here.children():
            inner = described(child)
            if isinstance(inner, Spec):
                step = name if index is None else f"{name}.{index}"
                visit(inner, f"{path}.{step}" if path else step)
        if here.part not in (Step, Block) and not issubclass(here.part, Op):
            found.append((path, here))

    visit(spec, "")
    return dict(found)
