"""What comparisons tell, each change against what was really changed, and the deltas against really counting."""

import copy
import json
from typing import Any

import pytest

import variform as vf
from tests.dialects.configaformers.programs import demo, feedforward
from tests.inspect.cases import TOKENS
from variform.core.spec import Spec
from variform.dialects.configaformers.model_builder import program_spec
from variform.inspect.align import aligned, runs
from variform.parts.op.tokenwise import LinearOp
from variform.stack.lines import Step

GPT = vf.models.gpt(**TOKENS, max_seq_len=64)


def program(depth: int = 2, **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(demo(dim=48, heads=4, depth=depth, vocab=65, rotate_dim=4))


def lines_of(config: dict[str, Any], block: int = 1) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = config["model_config"]["blocks"][block]["config"]
    return found


def told(before: Any, after: Any, **more: Any) -> list[tuple[str, tuple[str, ...], tuple[str, ...], list[str]]]:
    found = vf.compare(before, after, measure=False, **more)
    return [(c.kind, c.before, c.after, [str(f) for f in c.fields]) for c in found.changes]


DEMO = program_spec(**program())


def test_equal_programs_do_not_differ() -> None:
    found = vf.compare(DEMO, program_spec(**program()))
    assert not found
    assert str(found).startswith("no difference\n\nparameters     81,617\n")
    assert found.to_json()["equal"] is True


def test_an_added_line_is_one_added_line() -> None:
    config = program()
    lines_of(config).insert(13, {"type": "activation", "input_name": "x"})
    paths = ("lines.1.lines.13", "lines.2.lines.13")
    assert told(DEMO, program_spec(**config)) == [("added", (), paths, [])]
    assert told(program_spec(**config), DEMO) == [("removed", paths, (), [])]
    text = str(vf.compare(DEMO, program_spec(**config), measure=False))
    assert text == "+ Block #2, line 14 (activation), 2x: activation: x -> x"


def test_a_changed_line_tells_its_fields() -> None:
    config = program()
    lines_of(config)[1]["norm_type"] = "rms_norm"
    ((kind, before, after, fields),) = told(DEMO, program_spec(**config))
    assert kind == "changed"
    assert before == after == ("lines.1.lines.1", "lines.2.lines.1")
    assert fields[0].startswith("op: layer_norm -> ")


@pytest.mark.slow
def test_more_copies() -> None:
    (change,) = vf.compare(DEMO, program_spec(**program(depth=5))).changes
    assert (change.kind, change.before) == ("repeated", ())
    assert change.after == ("lines.3", "lines.4", "lines.5")
    one = sum(p.numel() for p in vf.build(DEMO).lines.in_order().__next__().parameters())
    deep, shallow = (sum(p.numel() for p in vf.build(s).parameters()) for s in (program_spec(**program(5)), DEMO))
    assert one > 0
    assert change.params == deep - shallow
    assert "~ Block #2: 2 -> 5 copies  [+84,816 parameters, +576*BSZ*L_in**2" in str(
        vf.compare(DEMO, program_spec(**program(depth=5)))
    )


def test_fewer_copies_that_changed_too() -> None:
    config = program(depth=1)
    lines_of(config)[1]["norm_type"] = "rms_norm"
    found = vf.compare(DEMO, program_spec(**config))
    repeated, changed = found.changes
    assert (repeated.kind, repeated.before, repeated.after) == ("repeated", ("lines.2",), ())
    assert (changed.before, changed.after) == (("lines.1.lines.1",), ("lines.1.lines.1",))
    assert repeated.params is not None
    assert changed.params == -48  # no bias
    before, after = (sum(p.numel() for p in vf.build(spec).parameters()) for spec in (DEMO, program_spec(**config)))
    assert repeated.params + changed.params == after - before


def test_renamed_streams_are_told_once() -> None:
    config = program()
    for block in config["model_config"]["blocks"]:
        for line in block["config"]:
            line.update({key: "skip" for key, value in line.items() if value == "residual"})
    found = vf.compare(DEMO, program_spec(**config), measure=False)
    assert dict(found.streams) == {"residual": "skip"}
    assert not found.changes
    assert bool(found)
    assert str(found) == "~ streams renamed: residual -> skip"


def test_a_stream_that_takes_over_another_name_is_a_change() -> None:
    config = program()
    lines_of(config)[12]["input_name"] = "residual"  # reads what was there before in place of x
    found = vf.compare(DEMO, program_spec(**config), measure=False)
    assert not found.streams
    assert [[str(f) for f in c.fields] for c in found.changes] == [["reads: [x] -> [residual]"]]


@pytest.mark.slow
def test_a_gated_feedforward_in_place_of_a_plain_one() -> None:
    config = program()
    lines = lines_of(config)
    up = next(i for i, line in enumerate(lines) if line.get("output_dim") == 192)
    lines[up : up + 2] = [
        {"type": "linear", "output_dim": 128, "output_name": "gate"},
        {"type": "linear", "output_dim": 128},
        {"type": "activation", "input_name": "gate", "output_name": "gate"},
        {"type": "merge_streams", "input_name_1": "gate", "input_name_2": "x", "merge_type": "mult"},
    ]
    after = program_spec(**config)
    found = vf.compare(DEMO, after, {"B": 2, "L": 9})
    assert sorted(change.kind for change in found.changes) == ["added", "added", "changed", "changed", "changed"]
    params = [change.params for change in found.changes]
    assert sum(p for p in params if p) == vf.describe(after, 1, 9).params - vf.describe(DEMO, 1, 9).params
    flops = sum(c.flops.number for c in found.changes if c.flops is not None and c.flops.number is not None)
    assert flops == vf.describe(after, 2, 9).flops - vf.describe(DEMO, 2, 9).flops


def test_blocks_are_aligned_by_what_they_do() -> None:
    config = program()
    config["model_config"]["blocks"].insert(1, {"config": feedforward(48), "repeat": 3})
    found = told(DEMO, program_spec(**config))
    # Headings count from the first block, so that the later blocks have other ones; their lines are the same.
    assert [entry for entry in found if entry[0] == "added"] == [("added", (), ("lines.1", "lines.2", "lines.3"), [])]
    assert all(
        fields == ["label: Block #2 -> Block #3"] or fields == ["label: Block #3 -> Block #4"]
        for kind, _, _, fields in found
        if kind == "changed"
    )


def test_specs_by_path() -> None:
    changes = ["stacks.0.layers.*.sublayers.1.body.mult=3.0", "stacks.0.layers.1.sublayers.0.norm=rms_norm"]
    found = told(GPT, vf.override(GPT, changes))
    assert ("changed", ("stacks.0.layers.1.sublayers.0.norm",), ("stacks.0.layers.1.sublayers.0.norm",)) in [
        entry[:3] for entry in found
    ]
    (bodies,) = [before for _, before, _, fields in found if fields == ["mult: 4.0 -> 3.0"]]
    assert bodies == tuple(f"stacks.0.layers.{i}.sublayers.1.body" for i in range(3))
    assert len(found) == 2


def test_what_follows_from_a_change_is_not_told_again() -> None:
    wide = vf.models.gpt(**{**TOKENS, "dim": 64}, max_seq_len=64)
    assert told(GPT, wide) == [("changed", ("",), ("",), ["dim: 48 -> 64"])]
    (first, *_) = told(vf.resolve(GPT), vf.resolve(wide))
    assert first == ("changed", ("",), ("",), ["dim: 48 -> 64"])


def test_presets() -> None:
    llama = vf.models.llama(**TOKENS)
    found = vf.compare(GPT, llama)
    text = str(found)
    assert "- embedding.position: learned  [-3,072 parameters]" in text
    assert "stacks.0.layers.0..2.sublayers.0.body.rotation x3: rotary" in text
    assert "mlp -> glu" in text
    assert f"{vf.describe(GPT, 1, 9).params:,} -> {vf.describe(llama, 1, 9).params:,}" in text
    assert max(map(len, text.splitlines())) <= 160


def test_parts_shared_or_not() -> None:
    def spec(*ops: Any) -> Spec:
        from variform.stack.program import ProgramModel

        return ProgramModel.spec(lines=[Step.spec(op=op) for op in ops], inputs={"x": ("B", "L", 8)})

    shared = vf.Shared("w", LinearOp.spec())
    found = vf.compare(spec(LinearOp.spec(), LinearOp.spec()), spec(shared, shared))
    assert [str(f) for c in found.changes for f in c.fields] == ["op shared as: none -> w"]
    assert "144 -> 72 (-72)" in str(found)


def test_json() -> None:
    data = json.loads(json.dumps(vf.compare(DEMO, program_spec(**program(depth=3)), {"B": 1, "L": 5}).to_json()))
    (change,) = data["changes"]
    assert change["kind"] == "repeated"
    assert change["fields"] == [{"field": "copies", "before": "2", "after": "3"}]
    assert change["flops"]["value"] == data["after"]["flops"]["value"] - data["before"]["flops"]["value"]


def test_alignment() -> None:
    a, b, c = (LinearOp.spec(out=n) for n in (3, 4, 5))
    items = [Step.spec(op=op, label=label) for op, label in ((a, "one"), (b, "two"), (c, "three"))]
    one, two, three = items
    assert [(r.start, r.count) for r in runs([one, one, two, one])] == [(0, 2), (2, 1), (3, 1)]
    pairs = [
        (None if x is None else x.spec["label"], None if y is None else y.spec["label"])
        for x, y in aligned(runs([one, two, three]), runs([two, three]))
    ]
    assert pairs == [("one", None), ("two", "two"), ("three", "three")]


@pytest.mark.parametrize("wrong", [5, {"part": "transfomer"}])
def test_wrong_sources(wrong: Any) -> None:
    with pytest.raises(vf.ConfigError):
        vf.compare(GPT, wrong)


def test_weights_that_are_shared_count_where_they_stand_first() -> None:
    sizes: dict[str, Any] = {"vocab_size": 31, "dim": 24, "depth": 2, "heads": 3, "max_seq_len": 32}
    found = vf.compare(vf.models.gpt(**sizes), vf.models.gpt(tie=True, **sizes))
    params = {change.after: change.params for change in found.changes}
    assert params[("head",)] == -31 * 24
    assert params[("head.embedding",)] == 0
