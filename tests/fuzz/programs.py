"""Right programs of modules, and wrong ones made from them: `mutant(seed)` changes a line of a program, or several."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.dialects.configaformers.programs import attention, demo, feedforward
from variform.dialects.configaformers.prebuilt_blocks import copygate_block, normformer_block, transformer_block

Module = dict[str, Any]
Program = dict[str, Any]

DIM, HEADS, VOCAB = 12, 2, 7
OFFSET = ["B", HEADS, "L_in", "L_in"]
EMBED: Module = {"type": "embedding", "num_classes": VOCAB, "output_dim": DIM}
LOGITS: Module = {"type": "linear", "output_dim": VOCAB}


@dataclass(frozen=True)
class Mutant:
    """A changed program.

    Args:
        label: which one, what was done, and where.
        program: the arguments of `ConfigaFormer`.
    """

    label: str
    program: Program


def _later(*blocks: list[Module], repeat: int = 2, **shapes: list[Any]) -> Program:
    """A program of the later generation: the middle blocks are repeated."""
    middle = [{"config": block, "repeat": repeat} for block in blocks]
    ends = [{"config": [dict(EMBED)], "repeat": 1}, {"config": [{"type": "norm"}, dict(LOGITS)], "repeat": 1}]
    return {"blocks": [ends[0], *middle, ends[1]], "input_shapes": {"emb_ids": ["B", "L_in"], **shapes}}


def _seed(*configs: list[Module], repeat: int = 1, **shapes: list[Any]) -> Program:
    blocks = [{"config": config, "repeat": repeat} for config in configs]
    return {"model_config": {"blocks": blocks}, "input_streams": shapes}


def _sampled() -> Program:
    """Token shift, a shorter sequence in the middle, and the way back to the full length."""
    shift = [{"features": (0, 6), "relative_pos": -1}, {"features": (6, 12), "relative_pos": 0}]
    down = [
        {"type": "shift", "instructions": shift},
        {"type": "make_stream", "output_name": "long"},
        {"type": "down_sample", "stride": 2},
        *feedforward(DIM),
        {"type": "linear", "output_dim": 2 * DIM},
        {"type": "up_sample", "num_chunks": 2},
        {"type": "cut_stream", "start": 0, "end": "L_in", "cut_dim": 1},
        {"type": "merge_streams", "input_name_1": "long"},
    ]
    join = [
        {"type": "cut_stream", "start": 0, "end": "L_in//2", "cut_dim": 1, "output_name": "head"},
        {"type": "cut_stream", "start": "L_in//2", "end": "L_in", "cut_dim": 1, "output_name": "tail"},
        {"type": "cat_streams", "input_list": ["tail", "head"], "cat_dim": 1, "output_name": "turned"},
        {"type": "cat_streams", "input_list": ["x", "turned"], "cat_dim": 2},
        {"type": "activation", "activation_function": ["gelu", "none"]},
        {"type": "dropout", "prob": 0.1},
    ]
    return _later(down, join, repeat=2)


def _crossed() -> Program:
    """Attention to a context of another length, whose weights are used a second time."""
    sides = {"q": "x", "k": "context", "v": "context"}
    config: list[Module] = [{"type": "linear", "input_name": of, "output_name": into} for into, of in sides.items()]
    config += [{"type": "make_heads", "input_name": into, "output_name": into, "num_heads": HEADS} for into in sides]
    config += [
        {"type": "rope", "input_name": "q", "output_name": "q", "rotate_dim": 2},
        {"type": "mha_dots", "input_name_queries": "q", "input_name_keys": "k"},
        {"type": "mha_sum", "input_name_values": "v", "output_name": "y", "output_name_attn_scores": "weights"},
        {"type": "scale_dim", "input_name": "y", "output_name": "y", "dim_to_scale": 1},
        {"type": "mha_sum", "input_name_values": "v", "input_name_attn_scores": "weights", "output_name": "z"},
        {"type": "merge_streams", "input_name_1": "y", "input_name_2": "z", "output_name": "y"},
        {"type": "merge_heads", "input_name": "y", "output_name": "y"},
        {"type": "merge_streams", "input_name_2": "y"},
    ]
    return _seed(config, repeat=2, x=["B", "L_in", DIM], context=["B", "L_ctx", DIM])


def _grouped() -> Program:
    """Groups of tokens as rows, and back."""
    config: list[Module] = [
        {"type": "pack_batch", "group_size": 3},
        *feedforward(DIM),
        {"type": "unpack_batch", "num_groups": 5},
        {"type": "norm", "norm_type": "rms_norm"},
    ]
    return _seed(config, repeat=2, x=["B", 15, DIM])


BASES: dict[str, Callable[[], Program]] = {
    "demo": lambda: demo(dim=DIM, heads=HEADS, depth=2, vocab=VOCAB, rotate_dim=2),
    "attention": lambda: _seed(
        attention(HEADS, 2) + feedforward(DIM), repeat=2, x=["B", "L_in", DIM], attn_offset=OFFSET
    ),
    "transformer": lambda: _later(transformer_block(HEADS, DIM), attn_offset=OFFSET),
    "normformer": lambda: _later(normformer_block(HEADS, DIM), attn_offset=OFFSET),
    "copygate": lambda: _later(copygate_block(HEADS, DIM), attn_offset=OFFSET, one=[1]),
    "sampled": _sampled,
    "crossed": _crossed,
    "grouped": _grouped,
}
"""Programs of both generations, each line of which is right."""


def base(name: str) -> Program:
    """A program that may be changed."""
    return copy.deepcopy(BASES[name]())


def blocks_of(program: Program) -> list[dict[str, Any]]:
    """Its blocks, whatever its generation."""
    return program.get("model_config", program)["blocks"]  # type: ignore[no-any-return]


def shapes_of(program: Program) -> dict[str, Any]:
    """The shapes of its inputs."""
    return program["input_streams" if "input_streams" in program else "input_shapes"]  # type: ignore[no-any-return]


def mutant(seed: int) -> Mutant:
    """One program changed at one to three places."""
    chance = random.Random(seed)
    name = sorted(BASES)[seed % len(BASES)]
    program = base(name)
    done: list[str] = []
    wanted = chance.choice([1, 1, 1, 2, 3])
    for _ in range(20):
        action = chance.choice(_ACTIONS)
        label = action(program, chance)
        if label:
            done.append(label)
        if len(done) == wanted:
            break
    return Mutant(f"[{seed}] {name}: " + "; ".join(done), program)


def _line(program: Program, chance: random.Random) -> tuple[str, list[Module], int]:
    index, block = chance.choice([(i, b) for i, b in enumerate(blocks_of(program)) if b.get("config")])
    line = chance.randrange(len(block["config"]))
    return f"blocks.{index}.config.{line}", block["config"], line


def _module(program: Program, chance: random.Random) -> tuple[str, Module]:
    place, config, line = _line(program, chance)
    if not isinstance(config[line], dict):
        config[line] = {"type": "norm"}
    return place, config[line]


def _streams(program: Program) -> list[str]:
    names = {
        value
        for block in blocks_of(program)
        for m in block["config"]
        if isinstance(m, dict)
        for value in _names(m).values()
    }
    return sorted({*names, *map(str, shapes_of(program)), "x", "nowhere"})


def _names(module: Module) -> Module:
    return {key: value for key, value in module.items() if "name" in str(key) and isinstance(value, str)}


def _drop(program: Program, chance: random.Random) -> str:
    place, config, line = _line(program, chance)
    if len(config) == 1:
        return ""
    del config[line]
    return f"{place} is dropped"


def _duplicate(program: Program, chance: random.Random) -> str:
    place, config, line = _line(program, chance)
    config.insert(line, copy.deepcopy(config[line]))
    return f"{place} is doubled"


def _swap(program: Program, chance: random.Random) -> str:
    place, config, line = _line(program, chance)
    other = chance.randrange(len(config))
    config[line], config[other] = config[other], config[line]
    return f"{place} changes places with line {other}" if line != other else ""


def _insert(program: Program, chance: random.Random) -> str:
    place, config, line = _line(program, chance)
    donor = base(chance.choice(sorted(BASES)))
    _, taken, at = _line(donor, chance)
    config.insert(line, taken[at])
    return f"{taken[at].get('type')} is put before {place}"


def _rename(program: Program, chance: random.Random) -> str:
    place, module = _module(program, chance)
    keys = sorted(_names(module)) or ["input_name", "output_name"]
    key = chance.choice(keys)
    module[key] = chance.choice([*_streams(program), str(module.get(key, "x")) + "s"])
    return f"{place}.{key} = {module[key]!r}"


def _size(program: Program, chance: random.Random) -> str:
    place, module = _module(program, chance)
    keys = [key for key, value in module.items() if type(value) in (int, float)]
    if not keys:
        return ""
    key = chance.choice(sorted(keys))
    value = module[key]
    module[key] = chance.choice([value + 1, value * 2, value - 1, 1, 2, 3, 0, -value, 4, 5])
    return f"{place}.{key} = {module[key]!r}"


def _type(program: Program, chance: random.Random) -> str:
    from variform.dialects.configaformers.modules import TYPES

    place, module = _module(program, chance)
    wrong = ["lineer", "Linear", "NORM", "", None, 3, "mha dots", ["linear"]]
    module["type"] = chance.choice([*sorted(TYPES), *sorted(TYPES), *wrong])
    return f"{place}.type = {module['type']!r}"


def _leave_out(program: Program, chance: random.Random) -> str:
    place, module = _module(program, chance)
    key = chance.choice(sorted(module, key=str) or ["type"])
    module.pop(key, None)
    return f"{place}.{key} is left out"


def _misspell(program: Program, chance: random.Random) -> str:
    place, module = _module(program, chance)
    if not module:
        return ""
    key = chance.choice(sorted(module, key=str))
    text = str(key)
    spelt = chance.choice([text + "s", text[:-1], text.upper(), text.replace("_", "-") + "x", text.replace("_", ""), 7])
    module[spelt] = module.pop(key)
    return f"{place}.{key} is spelt {spelt!r}"


def _misspell_value(program: Program, chance: random.Random) -> str:
    place, module = _module(program, chance)
    keys = [key for key, value in module.items() if isinstance(value, str) and value]
    if not keys:
        return ""
    key = chance.choice(sorted(keys, key=str))
    text = module[key]
    module[key] = chance.choice([text[:-1], text + text[-1], text.upper(), text[::-1], f" {text}"])
    return f"{place}.{key} = {module[key]!r}"


def _wrong_value(program: Program, chance: random.Random) -> str:
    place, module = _module(program, chance)
    key = chance.choice(sorted(module, key=str) or ["type"])
    wrong: list[Any] = [
        None,
        -1,
        0,
        3.0,
        0.5,
        float("nan"),
        "8",
        "",
        "d",
        "2*3",
        True,
        [],
        {},
        ["x"],
        [1, 2],
        {"a": 1},
        b"x",
    ]
    module[key] = chance.choice(wrong)
    return f"{place}.{key} = {module[key]!r}"


def _add(program: Program, chance: random.Random) -> str:
    place, module = _module(program, chance)
    added: list[tuple[str, Any]] = [("input_norm", "rms_norm"), ("output_norm", "scale_norm"), ("init_bias", -1)]
    added += [
        ("norm_value_heads", "layer_norm"),
        ("scaled", True),
        ("max_length", 4),
        ("max_length", 64),
        ("start_idx", 1),
    ]
    added += [("output_name_attn_scores", "w"), ("attn_function", "tanh"), ("when", False), ("when", "i == 0")]
    added += [("share", "s"), ("label", "named"), ("activation_function", ["gelu", "none"]), ("merge_type", "cat")]
    key, value = chance.choice(added)
    module[key] = value
    return f"{place}.{key} = {value!r}"


def _repeat(program: Program, chance: random.Random) -> str:
    index, block = chance.choice(list(enumerate(blocks_of(program))))
    key = chance.choice(["repeat", "repeat", "repeat", "config", "repeats", "when"])
    values: dict[str, list[Any]] = {
        "repeat": [0, 1, 3, -1, 2.0, True, "2", None, []],
        "config": [[], None, {}, [[]], [3], "linear", [{}]],
        "repeats": [2],
        "when": [False, True, "i == 0", "i % 2 == 1", "L_in > 3", 3],
    }
    block[key] = chance.choice(values[key])
    if not isinstance(block.get("config"), list) or block["config"] == []:
        label = f"blocks.{index}.{key} = {block[key]!r}"
        block["config"] = block["config"] if key == "config" and block["config"] == [] else [{"type": "linear"}]
        return label
    return f"blocks.{index}.{key} = {block[key]!r}"


def _input(program: Program, chance: random.Random) -> str:
    shapes = shapes_of(program)
    name = chance.choice(sorted(map(str, shapes)) or ["x"])
    if name not in shapes:
        return ""
    sizes = list(shapes[name]) if isinstance(shapes[name], list) else ["B"]
    action = chance.choice(["size", "size", "size", "rank", "name", "drop", "extra", "wrong"])
    if action == "size" and sizes:
        sizes[chance.randrange(len(sizes))] = chance.choice(
            [1, 3, 6, 12, 13, "L_in", "L_ctx", "B", "2*L_in", "L_in + 1", "L_in//2", 0]
        )
        shapes[name] = sizes
    elif action == "rank":
        shapes[name] = chance.choice([sizes[:-1], [*sizes, 4], [*sizes[:1], 2, *sizes[1:]]])
    elif action == "name":
        shapes[chance.choice([*_streams(program), name + "s"])] = shapes.pop(name)
    elif action == "drop":
        del shapes[name]
    elif action == "extra":
        shapes["more"] = chance.choice([["B", "L_in", DIM], [3], ["L_in"]])
    else:
        shapes[name] = chance.choice([None, 3, [], ["L in"], ["B", None], ["B", 2.0], ["B", "L_in - L_in", 3], "x"])
    return f"inputs: {action} of {name!r}: {shapes}"


_ACTIONS = (
    *(_drop, _duplicate, _swap, _insert, _rename, _rename, _size, _size, _type, _leave_out),
    *(_misspell, _misspell_value, _wrong_value, _add, _repeat, _input, _input),
)
