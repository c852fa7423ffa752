"""Wrong configs made from right ones: `mutants(data, seed)` changes one place or several and says where."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Plain = dict[str, Any]
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Mutant:
    """A changed config.

    Args:
        label: what was done, and where.
        data: the config.
        places: the containers that were changed, as steps from the root.
    """

    label: str
    data: Any
    places: tuple[Place, ...]


def containers(data: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """All mappings and lists of a config with their places."""
    if isinstance(data, (dict, list)):
        yield place, data
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from containers(value, (*place, key))


def mutant(data: Plain, seed: int) -> Mutant:
    """One config changed at one to three places."""
    chance = random.Random(seed)
    changed = copy.deepcopy(data)
    done: list[str] = []
    places: list[Place] = []
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        spots = [(place, node) for place, node in containers(changed) if isinstance(node, dict) and node]
        place, node = chance.choice(spots)
        action = chance.choice(_ACTIONS)
        label = action(node, chance)
        if label:
            done.append(f"{'.'.join(map(str, place)) or 'root'}: {label}")
            places.append(place)
    return Mutant(f"[{seed}] " + "; ".join(done), changed, tuple(places))


def _key(node: Plain, chance: random.Random) -> str:
    return chance.choice(sorted(node, key=str))


def _misspell(node: Plain, chance: random.Random) -> str:
    key = _key(node, chance)
    text = str(key)
    spelt = chance.choice([text + "s", text[:-1], text.upper(), text.replace("_", "-") + "x", "", 7])
    node[spelt] = node.pop(key)
    return f"{key} is spelt {spelt!r}"


def _wrong_value(node: Plain, chance: random.Random) -> str:
    key = _key(node, chance)
    wrong: list[Any] = [
        None,
        -1,
        0,
        10**9,
        2**70,
        -3.5,
        0.5,
        3.0,
        float("nan"),
        float("inf"),
        "8",
        "",
        "INHERIT",
        True,
        [],
        {},
    ]
    wrong += [[1, 2], ["a"], {"a": 1}, {"part": "x"}, {"part": None}, {"part": 3}, {"inherit": 3}, {"inherit": None}]
    wrong += [
        {"repeat": 2, "of": "mlp"},
        {"shared": "tokens"},
        {"shared": 3},
        {"preset": "gpt"},
        {"preset": 3},
        b"x",
        {1, 2},
        1j,
    ]
    wrong += [
        {"tensor": [1.0], "dtype": "float32"},
        {"tensor": "x", "dtype": "float32"},
        {"tensor": [1], "dtype": "x"},
        object,
    ]
    node[key] = chance.choice(wrong)
    return f"{key} = {node[key]!r}"


def _other_part(node: Plain, chance: random.Random) -> str:
    key = _key(node, chance)
    names = [
        "softmax",
        "layer_norm",
        "lm",
        "transformer",
        "encoder_decoder",
        "mlp",
        "rotary",
        "alibi",
        "stack",
        "deepnorm",
    ]
    names += [
        "program",
        "step",
        "patches",
        "norm/layer_norm",
        "norm/softmax",
        "rotary/",
        "/mlp",
        "sftmax",
        "cross_attention",
    ]
    name = chance.choice(names)
    node[key] = chance.choice([name, {"part": name}])
    return f"{key} = {node[key]!r}"


def _drop(node: Plain, chance: random.Random) -> str:
    key = _key(node, chance)
    del node[key]
    return f"{key} is left out"


def _add(node: Plain, chance: random.Random) -> str:
    key = chance.choice(
        ["heads", "dim", "dim_head", "kv_heads", "window", "causal", "max_seq_len", "norm", "rotation", "depth"]
    )
    if key in node:
        return ""
    node[key] = chance.choice([0, -1, 3, 5, 7, None, True, "x", 10**6, 2.0, "layer_norm", "rotary", [], {}])
    return f"{key} = {node[key]!r} is added"


def _sizes(node: Plain, chance: random.Random) -> str:
    numbers = [key for key, value in node.items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if not numbers:
        return ""
    key = chance.choice(sorted(numbers, key=str))
    node[key] = chance.choice(
        [node[key] + 1, node[key] * 3 + 1, 1, -node[key], float(node[key]), str(node[key]), 10**7]
    )
    return f"{key} = {node[key]!r}"


def _list(node: Plain, chance: random.Random) -> str:
    lists = [key for key, value in node.items() if isinstance(value, list)]
    if not lists:
        return ""
    key = chance.choice(lists)
    items = node[key]
    options: list[Any] = [
        [],
        items * 2,
        [*items, None],
        [*items, 3],
        [*items, []],
        [items],
        {"repeat": 2, "of": items},
        tuple(items),
    ]
    options += (
        [items[0] if items else None, [{"repeat": 0, "of": items[0]}], [{"repeat": -1, "of": items[0]}]]
        if items
        else []
    )
    options += (
        [[{"repeat": "2", "of": items[0]}], [{"repeat": 2}], [*items, items[0], {"part": "publish", "stream": "x"}]]
        if items
        else []
    )
    options += (
        [
            [{"part": "add_stream", "stream": "none"}, *items],
            [{"shared": "s", "of": items[0]}, {"shared": "s", "of": "program"}],
        ]
        if items
        else []
    )
    node[key] = chance.choice(options)
    return f"{key} is another list"


def _shared(node: Plain, chance: random.Random) -> str:
    parts = [key for key, value in node.items() if isinstance(value, dict)]
    if not parts:
        return ""
    key = chance.choice(sorted(parts, key=str))
    name = chance.choice(["tokens", "layer1", "bias1", "lonely", "", None])
    node[key] = chance.choice(
        [
            {"shared": name},
            {"shared": name, "of": node[key]},
            {"shared": name, "of": {"shared": "b"}},
            {"shared": name, "of": node[key], "x": 1},
        ]
    )
    return f"{key} is shared as {name!r}"


_ACTIONS = (
    _misspell,
    _wrong_value,
    _wrong_value,
    _wrong_value,
    _other_part,
    _drop,
    _add,
    _sizes,
    _sizes,
    _list,
    _shared,
)
