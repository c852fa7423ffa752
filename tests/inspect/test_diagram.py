"""Pictures of models: what is drawn, that nothing lies on anything else, and that the text forms are sound."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import variform as vf
from tests.dialects.configaformers import programs
from variform.cli.main import main
from variform.core.spec import Spec
from variform.dialects.configaformers import program_spec
from variform.inspect.diagram import Diagram, diagram, wire
from variform.inspect.diagram.fold import fold
from variform.parts.feedforward.mlp import MLP
from variform.parts.norm.norms import LayerNorm
from variform.parts.op.tokenwise import LinearOp, MergeOp
from variform.stack.lines import Step
from variform.stack.program import Program, ProgramModel
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

SVG = "{http://www.w3.org/2000/svg}"
SMALL = {"vocab_size": 50, "dim": 32, "depth": 3, "heads": 4, "max_seq_len": 24}


def wide(count: int) -> Spec:
    """Many streams side by side, all alive to the end."""
    names = [f"stream_with_a_long_name_{i}" for i in range(count)]
    lines = [Step.spec(op=LinearOp.spec(), into=(name,)) for name in names]
    lines += [Step.spec(op=MergeOp.spec(), reads=("x", name)) for name in names]
    return ProgramModel.spec(lines=lines, inputs={"x": ("B", "L", 8)})


def stack_with_program() -> Spec:
    inner = Program.spec(
        lines=[Step.spec(op=LinearOp.spec(), into=("h",)), Step.spec(op=MergeOp.spec(), reads=("x", "h"))]
    )
    layers = [Sublayer.spec(body=MLP.spec()), inner]
    model: Spec = vf.models.gpt(**SMALL)
    return model.replace(stacks=[LayerStack.spec(layers=layers, norm=LayerNorm.spec())])


def demo(**sizes: Any) -> Spec:
    return program_spec(**programs.demo(**sizes))


def _model(*layers: Any) -> dict[str, Any]:
    stack = {"part": "stack", "layers": list(layers)}
    stacks = [{"part": "registers", "count": 2, "stack": stack}]
    return {"part": "transformer", "embedding": None, "stacks": stacks, "dim": 8, "max_seq_len": 9}


MLP_LAYER = {"part": "sublayer", "body": "mlp"}
SKIPS = _model({"part": "publish", "stream": "skip"}, MLP_LAYER, {"part": "add_stream", "stream": "skip"})

MODELS = {
    "demo": lambda: demo(),
    "gpt": lambda: vf.models.gpt(**SMALL),
    "llama": lambda: vf.models.llama(kv_heads=2, **SMALL),
    "bert": lambda: vf.models.bert(**SMALL),
    "vit": lambda: vf.models.vit(image_size=16, patch_size=4, dim=32, depth=3, heads=4, classes=10),
    "seq2seq": lambda: vf.models.seq2seq(**SMALL),
    "wide": lambda: wide(24),
    "program in a stack": stack_with_program,
    "no embedding, a skip inside of registers": lambda: SKIPS,
}


@pytest.fixture(scope="module", params=list(MODELS))
def drawn(request: pytest.FixtureRequest) -> Diagram:
    return diagram(MODELS[request.param]())


def _rectangles(picture: str) -> list[tuple[float, float, float, float]]:
    boxes = [r for r in ET.fromstring(picture).iter(f"{SVG}rect") if r.get("class") == "box"]
    sides = ("x", "y", "width", "height")
    return [tuple(float(r.get(side, "nan")) for side in sides) for r in boxes]  # type: ignore[misc]


def test_boxes_do_not_overlap_and_lie_inside(drawn: Diagram) -> None:
    picture = drawn.svg()
    root = ET.fromstring(picture)
    width, height = float(root.get("width", "nan")), float(root.get("height", "nan"))
    assert width <= 1600
    boxes = _rectangles(picture)
    assert len(boxes) >= 3
    for x, y, w, h in boxes:
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
    for (x0, y0, w0, h0), (x1, y1, w1, h1) in combinations(boxes, 2):
        assert x0 + w0 <= x1 or x1 + w1 <= x0 or y0 + h0 <= y1 or y1 + h1 <= y0


def test_lines_do_not_run_through_boxes(drawn: Diagram) -> None:
    """A line may touch the box it starts at and the one it ends at."""
    picture = drawn.svg()
    boxes = _rectangles(picture)
    for path in ET.fromstring(picture).iter(f"{SVG}path"):
        if path.get("stroke") is None:
            continue
        numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        for start in range(0, len(points) - 1, 3):
            for step in range(1, 20):
                x, y = _bezier(points[start : start + 4], step / 20)
                inside = [b for b in boxes if b[0] + 1 < x < b[0] + b[2] - 1 and b[1] + 1 < y < b[1] + b[3] - 1]
                assert not inside


def _bezier(points: list[tuple[float, float]], t: float) -> tuple[float, float]:
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    x, y = (sum(w * p[axis] for w, p in zip(weights, points, strict=True)) for axis in (0, 1))
    return x, y


def test_each_box_and_each_stream_is_in_the_mermaid_text(drawn: Diagram) -> None:
    text = drawn.mermaid()
    assert text.startswith("flowchart TD\n")
    defined = set(re.findall(r"^\s+(\w+)[\[(]", text, re.M))
    used = {node for pair in re.findall(r"^\s+(\w+) -- .* --> (\w+)$", text, re.M) for node in pair}
    assert used <= defined
    assert len(used) >= 3
    assert text.count("subgraph") == text.count("\n  end\n") == len(drawn.flow.panels)
    assert len(re.findall(r"^    p\d+n\d+\[", text, re.M)) == sum(len(panel.items) for panel in drawn.flow.panels)


def test_equal_copies_are_folded() -> None:
    panels = diagram(demo(depth=5, dim=24, heads=4, vocab=11, rotate_dim=2)).flow.panels
    assert [(panel.title, panel.repeat, len(panel.items)) for panel in panels] == [
        ("Block #1", 1, 1),
        ("Block #2", 5, 20),
        ("Block #3", 1, 7),
    ]


def test_the_streams_of_the_demo() -> None:
    block = wire(diagram(demo(dim=24, heads=4, vocab=11, rotate_dim=2)).flow)[1]
    assert [(e.name, e.origin) for e in block.entries] == [("x", "Block #1"), ("attn_offset", "input")]
    assert [name for name, _, _ in block.exits] == ["x"]
    titles = [item.title for item in block.panel.items]
    into_sum = {(titles[a.source], a.stream) for a in block.arrows if titles[a.target] == "mha_sum"}
    assert into_sum == {("linear", "values"), ("attention_offset", "attn_dots")}
    residuals = [(a.source, a.target) for a in block.arrows if a.stream == "residual"]
    assert residuals == [(0, 13), (14, 19)]


def test_layers_that_differ_are_panels_of_their_own() -> None:
    panels = diagram(vf.models.gpt(**SMALL)).flow.panels
    assert [(p.title, p.repeat) for p in panels] == [("embedding", 1), ("layers 1 to 3", 3), ("final norm and head", 1)]
    other = vf.override(vf.models.gpt(**SMALL), ["stacks.0.layers.1.heads=2"])
    assert [p.repeat for p in diagram(other).flow.panels] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("items", "runs"),
    [
        ("a", [(0, 1, 1)]),
        ("aaaa", [(0, 1, 4)]),
        ("abab", [(0, 2, 2)]),
        ("aabaab", [(0, 3, 2)]),
        ("abcabcabx", [(0, 3, 2), (6, 1, 1), (7, 1, 1), (8, 1, 1)]),
        ("abbbc", [(0, 1, 1), (1, 1, 3), (4, 1, 1)]),
    ],
)
def test_repetition_is_found(items: str, runs: list[tuple[int, int, int]]) -> None:
    assert [(run.start, run.count, run.times) for run in fold(items)] == runs


def test_layers_in_turns_are_folded() -> None:
    model = vf.models.gpt(**{**SMALL, "depth": 6})
    model = vf.override(model, [f"stacks.0.layers.{i}.heads=2" for i in (1, 3, 5)])
    panels = diagram(model).flow.panels
    assert [(p.title, p.repeat) for p in panels][1] == ("layers 1 to 6 in turns of 2", 3)


def test_a_decoder_reads_the_encoder() -> None:
    flow = diagram(vf.models.seq2seq(**SMALL)).flow
    reading = [item.title for panel in flow.panels for item in panel.items if "context" in item.reads]
    assert reading == ["cross_attention"]
    assert [name for name, _ in flow.inputs] == ["source", "target"]


def test_a_program_as_a_step_tells_how_many_steps_it_has() -> None:
    inner = [{"type": "linear"}, {"type": "norm"}, {"type": "merge_streams", "input_name_1": "one"}]
    step = {"type": "program", "input_names": ["x", "one"], "streams": {"one": ["B", "L", 8]}, "config": inner}
    shapes = {"x": ["B", "L", 8], "one": ["B", "L", 8]}
    (panel,) = diagram(program_spec([{"config": [step], "repeat": 1}], shapes)).flow.panels
    assert panel.items[0].detail == "3 steps, streams one"


def test_shapes_stand_in_the_boxes() -> None:
    text = diagram(vf.models.gpt(**SMALL)).svg()
    assert "output (B, L, 50)" in text
    assert "branch (B, L, 32)" in text


def test_saved_by_ending(tmp_path: Path) -> None:
    drawn = diagram(demo(dim=24, heads=4, vocab=11, rotate_dim=2))
    assert drawn.save(tmp_path / "a.svg").read_text() == drawn.svg() == drawn._repr_svg_()
    assert drawn.save(tmp_path / "a.mmd").read_text() == drawn.mermaid()
    with pytest.raises(vf.ConfigError, match=r"\.svg.*\.mmd"):
        drawn.save(tmp_path / "a.png")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpt.svg"
    config = tmp_path / "gpt.yaml"
    config.write_text("preset: gpt\nvocab_size: 50\ndim: 32\ndepth: 3\nheads: 4\nmax_seq_len: 24\n")
    assert main(["describe", str(config), "--diagram", str(out)]) == 0
    assert ET.fromstring(out.read_text()).tag == f"{SVG}svg"
    assert str(out) in capsys.readouterr().out
    assert main(["describe", str(config), "--diagram", str(tmp_path / "gpt.png")]) == 2
