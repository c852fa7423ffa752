"""Programs with a mistake, and what the error must say: `(id, modules, input shapes, words)`."""

from typing import Any

Module = dict[str, Any]
Bad = tuple[str, list[Module], dict[str, list[Any]], list[str]]

X = {"x": ["B", "L_in", 32]}
IDS = {"emb_ids": ["B", "L_in"]}
TWO = {"x": ["B", "L_in", 32], "y": ["B", "L_ctx", 32]}
KEEP = {"type": "make_stream", "output_name": "residual"}
ADD = {"type": "merge_streams", "input_name_1": "residual"}
HALF = {"type": "linear", "output_dim": 16}
EMBED = {"type": "embedding", "num_classes": 11, "output_dim": 32}


def linear(into: str, source: str = "x", **more: Any) -> Module:
    return {"type": "linear", "input_name": source, "output_name": into, **more}


def heads(name: str, count: int = 4) -> Module:
    return {"type": "make_heads", "input_name": name, "output_name": name, "num_heads": count}


def dots(queries: str = "q", keys: str = "k") -> Module:
    return {"type": "mha_dots", "input_name_queries": queries, "input_name_keys": keys}


def cut(start: Any, end: Any, dim: int = 1, source: str = "x") -> Module:
    return {"type": "cut_stream", "input_name": source, "start": start, "end": end, "cut_dim": dim}


def shift(start: int, end: int) -> Module:
    return {"type": "shift", "instructions": [{"features": (start, end), "relative_pos": -1}]}


WRONG_KEYS: list[Bad] = [
    ("unknown type", [{"type": "lineer"}], X, ["Block #1, line 1", "'lineer'", "did you mean 'linear'"]),
    ("missing type", [linear("y"), {"output_dim": 3}], X, ["Block #1, line 2", "needs a type", "known: embedding"]),
    ("type that is no text", [{"type": 3}], X, ["Block #1, line 1", "needs a type, and has 3"]),
    ("misspelt key", [{"type": "linear", "out_dim": 3}], X, ["line 1: linear", "no such key", "'output_dim'"]),
    ("misspelt type and key", [{"type": "norn", "norm_typ": 1}], X, ["line 1", "did you mean 'norm'"]),
    ("missing keys", [{"type": "embedding"}], IDS, ["num_classes: ", "output_dim: ", "embedding needs this key"]),
    ("unknown norm", [{"type": "norm", "norm_type": "rmsnorm"}], X, ["line 1: norm", "did you mean 'rms_norm'"]),
    ("unknown inner norm", [{"type": "linear", "input_norm": "bn"}], X, ["input_norm", "layer_norm, rms_norm"]),
    (
        "unknown activation",
        [{"type": "activation", "activation_function": "gello"}],
        X,
        ["line 1: activation", "did you mean 'gelu'"],
    ),
    (
        "unknown activation in a list",
        [{"type": "activation", "activation_function": ["gelu", "swish"]}],
        X,
        ["line 1: activation", "must be one of none, gelu, relu, sigmoid, tanh"],
    ),
    ("no activation", [{"type": "activation", "activation_function": []}], X, ["needs at least one item"]),
    (
        "unknown function of scores",
        [{"type": "mha_sum", "attn_function": "softmx"}],
        X,
        ["line 1: mha_sum", "did you mean 'softmax'"],
    ),
    (
        "unknown merge",
        [{"type": "merge_streams", "merge_type": "divide"}],
        X,
        ["merge_streams", "add, mult, multiply, subtract"],
    ),
    ("text for a size", [{"type": "linear", "output_dim": "wide"}], X, ["output_dim", "'wide'"]),
    ("fraction for a size", [{"type": "linear", "output_dim": 3.5}], X, ["linear: must be int", "(got 3.5)"]),
    ("size of 0", [{"type": "linear", "output_dim": 0}], X, ["linear: must be at least 1", "(got 0)"]),
    ("stride of 0", [{"type": "down_sample", "stride": 0}], X, ["down_sample: must be at least 1"]),
    ("probability of 1", [{"type": "dropout", "prob": 1.0}], X, ["dropout: must be less than 1"]),
    ("negative probability", [{"type": "dropout", "prob": -0.1}], X, ["dropout: must be at least 0"]),
    ("no probability", [{"type": "dropout"}], X, ["prob: ", "dropout needs this key"]),
    ("name that is no text", [{"type": "linear", "input_name": 2}], X, ["input_name", "linear: must be str"]),
    ("shift without instructions", [{"type": "shift"}], X, ["instructions: ", "shift needs this key"]),
    (
        "shift with a misspelt instruction",
        [{"type": "shift", "instructions": [{"feature": (0, 4), "relative_pos": -1}]}],
        X,
        ["item 0 has the unknown key 'feature'", "did you mean 'features'"],
    ),
    (
        "join of one stream",
        [{"type": "cat_streams", "input_list": ["x"], "cat_dim": 1}],
        X,
        ["cat_streams: must be the names of two streams or more"],
    ),
    ("odd rotation", [heads("x"), {"type": "rope", "rotate_dim": 3}], X, ["line 2 (rope)", "even", "nearest: 2 or 4"]),
]
"""Mistakes within one module's dict."""

WRONG_NAMES: list[Bad] = [
    (
        "misspelt stream",
        [linear("queries"), heads("querys")],
        X,
        ["line 2 (make_heads): reads 'querys', which nothing before it writes", "did you mean 'queries'?"],
    ),
    (
        "stream of another name altogether",
        [{"type": "norm", "input_name": "data"}],
        X,
        ["line 1 (norm): reads 'data'", "live here: x (BSZ, L_in, 32)"],
    ),
    (
        "default name that is not there",
        [EMBED],
        {"ids": ["B", "L_in"]},
        ["line 1 (embedding): reads 'emb_ids'", "'ids'"],
    ),
    (
        "stream that is written later",
        [{"type": "norm", "input_name": "h"}, linear("h")],
        X,
        [
            "line 1 (norm): reads 'h', which nothing before it writes",
            "Block #1, line 2 (linear) writes it, after this",
        ],
    ),
    (
        "second of two names",
        [{"type": "merge_streams", "input_name_2": "z"}],
        X,
        ["line 1 (merge_streams): reads 'z', which nothing before it writes"],
    ),
    (
        "one of many names",
        [{"type": "cat_streams", "input_list": ["x", "w"], "cat_dim": 1}],
        X,
        ["line 1 (cat_streams): reads 'w', which nothing before it writes"],
    ),
]
"""Streams that nothing wrote."""

WRONG_SIZES: list[Bad] = [
    (
        "sum of other features",
        [KEEP, HALF, ADD],
        X,
        [
            "Block #1, line 3 (merge_streams): to add two streams",
            "residual (BSZ, L_in, 32) from Block #1, line 1 (make_stream)",
            "x (BSZ, L_in, 16) from Block #1, line 2 (linear)",
            "put a linear to 32 features on 'x' first",
        ],
    ),
    (
        "sum with an input of another length",
        [{"type": "merge_streams", "input_name_1": "y"}],
        TWO,
        ["line 1 (merge_streams)", "y (BSZ, L_ctx, 32) from the inputs", "L_ctx is not L_in", "give them one name"],
    ),
    (
        "sum after down-sampling",
        [KEEP, {"type": "down_sample", "stride": 2}, ADD],
        X,
        [
            "line 3 (merge_streams)",
            "L_in is not (L_in + 1)//2",
            "x (BSZ, (L_in + 1)//2, 32) from Block #1, line 2 (down_sample)",
            "up_sample by 2",
        ],
    ),
    (
        "sum after two different samplings",
        [
            {"type": "down_sample", "stride": 2, "output_name": "a"},
            {"type": "down_sample", "stride": 3, "output_name": "b"},
            {"type": "merge_streams", "input_name_1": "a", "input_name_2": "b"},
        ],
        X,
        [
            "line 3 (merge_streams)",
            "(L_in + 1)//2 is not (L_in + 2)//3",
            "line 1 (down_sample)",
            "line 2 (down_sample)",
        ],
    ),
    (
        "sum after sampling once and twice",
        [
            {"type": "down_sample", "stride": 2, "output_name": "a"},
            {"type": "down_sample", "stride": 2, "input_name": "a", "output_name": "b"},
            {"type": "merge_streams", "input_name_1": "a", "input_name_2": "b"},
        ],
        X,
        ["line 3 (merge_streams)", "(L_in + 1)//2 is not (L_in + 3)//4", "up_sample by 2"],
    ),
    (
        "sum after up-sampling",
        [KEEP, {"type": "up_sample", "num_chunks": 2}, ADD],
        X,
        ["line 3 (merge_streams)", "L_in is not 2*L_in", "x (BSZ, 2*L_in, 16) from Block #1, line 2 (up_sample)"],
    ),
    (
        "sum with heads",
        [KEEP, heads("x"), ADD],
        X,
        [
            "line 3 (merge_streams)",
            "x (BSZ, 4, L_in, 8) from Block #1, line 2 (make_heads)",
            "merge_heads of 'x' first",
        ],
    ),
    ("heads that do not divide", [heads("x", 5)], X, ["line 1 (make_heads): 5 heads do not divide 32", "4 or 8"]),
    (
        "heads of heads",
        [heads("x"), heads("x")],
        X,
        ["line 2 (make_heads)", "'x'", "(BSZ, 4, L_in, 8)", "line 1 (make_heads)", "merge_heads of 'x' first"],
    ),
    (
        "merged twice",
        [heads("x"), {"type": "merge_heads"}, {"type": "merge_heads"}],
        X,
        ["line 3 (merge_heads)", "(BSZ, L_in, 32)", "line 2 (merge_heads)", "make_heads of 'x'"],
    ),
    (
        "scores of features",
        [linear("q"), linear("k"), dots()],
        X,
        ["line 3 (mha_dots)", "q (BSZ, L_in, 32)", "line 1 (linear)", "make_heads of 'q'"],
    ),
    (
        "scores of heads and features",
        [linear("q"), linear("k"), heads("q"), dots()],
        X,
        [
            "line 4 (mha_dots)",
            "k (BSZ, L_in, 32) from Block #1, line 2 (linear)",
            "make_heads of 'k' into 4 heads first",
        ],
    ),
    (
        "other numbers of heads",
        [linear("q"), linear("k"), heads("q"), heads("k", 8), dots()],
        X,
        [
            "line 5 (mha_dots)",
            "equal number of heads, and 4 is not 8",
            "q (BSZ, 4, L_in, 8) from Block #1, line 3 (make_heads)",
            "k (BSZ, 8, L_in, 4) from Block #1, line 4 (make_heads)",
            "make_heads of 'k' into 4 heads as well",
        ],
    ),
    (
        "other features of a head",
        [linear("q"), linear("k", output_dim=16), heads("q"), heads("k"), dots()],
        X,
        [
            "line 5 (mha_dots)",
            "equal features of a head, and 8 is not 4",
            "k (BSZ, 4, L_in, 4) from Block #1, line 4 (make_heads)",
            "put a linear to 8 features on 'k' first",
        ],
    ),
    (
        "values of another length than keys",
        [
            linear("q"),
            linear("k", "y"),
            heads("q"),
            heads("k"),
            dots(),
            {"type": "mha_sum", "input_name_values": "x"},
        ],
        TWO,
        [
            "line 6 (mha_sum)",
            "x (BSZ, L_in, 32) from the inputs",
            "attn_dots (BSZ, 4, L_in, L_ctx) from Block #1, line 5 (mha_dots)",
            "read 'y' (BSZ, L_ctx, 32) in place of 'x'",
        ],
    ),
    (
        "values of other heads",
        [
            linear("q"),
            heads("q"),
            linear("v"),
            heads("v", 8),
            dots("q", "q"),
            {"type": "mha_sum", "input_name_values": "v"},
        ],
        X,
        ["line 6 (mha_sum): the values have 8 heads, the scores 4", "v (BSZ, 8, L_in, 4) from Block #1, line 4"],
    ),
    (
        "offset for other heads",
        [linear("q"), heads("q"), dots("q", "q"), {"type": "attention_offset"}],
        {**X, "attn_offset": ["B", 8, "L_in", "L_in"]},
        [
            "line 4 (attention_offset): the offset is for 8 heads, the scores have 4",
            "attn_dots (BSZ, 4, L_in, L_in) from Block #1, line 3 (mha_dots)",
            "declare the input 'attn_offset' as (BSZ, 4, L_in, L_in)",
        ],
    ),
    (
        "offset that is too short",
        [linear("q"), heads("q"), dots("q", "q"), {"type": "attention_offset"}],
        {"x": ["B", 9, 32], "attn_offset": [1, 4, 8, 8]},
        ["line 4 (attention_offset): the offset covers 8 positions, and 9 are needed"],
    ),
    (
        "offset that is one too short, whatever the length",
        [linear("q"), heads("q"), dots("q", "q"), {"type": "attention_offset"}],
        {"x": ["B", "L_in + 1", 32], "attn_offset": [1, 4, "L_in", "L_in"]},
        [
            "line 4 (attention_offset): the offset covers L_in positions, and L_in + 1 are needed",
            "declare the input 'attn_offset' as (BSZ, 4, L_in + 1, L_in + 1)",
        ],
    ),
    ("shift beyond the features", [shift(16, 64)], X, ["line 1 (shift)", "features 16 to 64", "there are 32"]),
    ("shift of nothing", [shift(8, 8)], X, ["line 1 (shift)", "features 8 to 8"]),
    (
        "rotation wider than a head",
        [heads("x"), {"type": "rope", "rotate_dim": 16}],
        X,
        ["line 2 (rope): 16 features are to be rotated, and there are 8", "x (BSZ, 4, L_in, 8) from Block #1, line 1"],
    ),
    (
        "sequence longer than the table",
        [heads("x"), {"type": "rope", "rotate_dim": 4, "max_length": 8}],
        {"x": ["B", 9, 32]},
        ["line 2 (rope): the table has 8 rows, and the sequence 9"],
    ),
    ("dimension that is not there", [{"type": "scale_dim", "dim_to_scale": 3}], X, ["line 1 (scale_dim)", "-3 to 2"]),
    (
        "learned factors for a length",
        [{"type": "scale_dim", "dim_to_scale": 1}],
        X,
        ["line 1 (scale_dim)", "L_in", "scale the features"],
    ),
    (
        "gated pieces that do not come out even",
        [{"type": "activation", "activation_function": ["gelu", "none", "tanh"]}],
        X,
        ["line 1 (activation)", "3 functions", "x (BSZ, L_in, 32) from the inputs", "nearest: 30 or 33"],
    ),
    (
        "chunks that do not divide",
        [{"type": "up_sample", "num_chunks": 5}],
        X,
        ["line 1 (up_sample)", "5", "32", "4 or 8"],
    ),
    ("cut beyond the end", [cut(0, 40, 2)], X, ["line 1 (cut_stream): the dimension 2 has 32 indices", "cut at 40"]),
    ("cut of nothing", [cut(5, 5)], X, ["line 1 (cut_stream): nothing lies between 5 and 5"]),
    ("cut at an unknown size", [cut(0, "L_out")], X, ["line 1 (cut_stream)", "'L_out'"]),
    ("cut of a dimension that is not there", [cut(0, 1, 3)], X, ["line 1 (cut_stream)", "no dimension 3", "-3 to 2"]),
    (
        "join of other features",
        [{"type": "cat_streams", "input_list": ["x", "y"], "cat_dim": 1}],
        {"x": ["B", "L_in", 32], "y": ["B", "L_ctx", 16]},
        ["line 1 (cat_streams)", "16 is not 32", "y (BSZ, L_ctx, 16) from the inputs", "linear to 32 features on 'y'"],
    ),
    (
        "join of other lengths by features",
        [{"type": "cat_streams", "input_list": ["x", "y"], "cat_dim": 2}],
        TWO,
        ["line 1 (cat_streams)", "L_ctx is not L_in", "give them one name"],
    ),
    (
        "groups that do not fill the sequence",
        [{"type": "pack_batch", "group_size": 4}],
        {"x": ["B", 10, 32]},
        ["line 1 (pack_batch): groups of 4 tokens do not fill 10 tokens"],
    ),
    (
        "rows that are no multiple",
        [{"type": "unpack_batch", "num_groups": 3}],
        X,
        ["line 1 (unpack_batch)", "BSZ rows"],
    ),
    (
        "pieces that do not fill the features",
        [{"type": "unpack_features", "output_dim": 5}],
        X,
        ["line 1 (unpack_features): 32 features are not a multiple of 5"],
    ),
    (
        "linear on a length",
        [linear("x")],
        {"x": ["B", "L_in"]},
        ["line 1 (linear)", "x is (BSZ, L_in)", "embed it first"],
    ),
    (
        "mismatch in a later copy",
        [
            KEEP,
            {"type": "linear", "output_dim": 32},
            ADD,
            {"type": "activation", "activation_function": ["gelu", "none"]},
        ],
        X,
        ["Block #1, repeat 2, line 3 (merge_streams)", "residual (BSZ, L_in, 16) from Block #1, repeat 2, line 1"],
    ),
]
"""Sizes that do not fit."""

WRONG_CONTENTS: list[Bad] = [
    (
        "ids as features",
        [EMBED, {"type": "norm", "input_name": "emb_ids"}],
        {"emb_ids": ["B", 8]},
        [
            "line 2 (norm): takes anything but ids, and reads 'emb_ids' (BSZ, 8)",
            "is the input 'emb_ids', and Block #1, line 1 (embedding) reads it as ids",
            "read 'x' (BSZ, 8, 32) in place of 'emb_ids'",
        ],
    ),
    (
        "features as ids",
        [linear("h"), {**EMBED, "input_name": "x"}],
        X,
        [
            "line 2 (embedding): takes ids, and reads 'x' (BSZ, L_in, 32)",
            "Block #1, line 1 (linear) reads it as",
            "declare an input of integer ids",
        ],
    ),
    (
        "ids under another name",
        [
            {"type": "make_stream", "input_name": "emb_ids", "output_name": "kept"},
            EMBED,
            {"type": "merge_streams", "input_name_1": "kept"},
        ],
        {"emb_ids": ["B", 32]},
        ["line 3 (merge_streams)", "'kept'", "line 2 (embedding) reads it as ids"],
    ),
    (
        "embedding of an embedding",
        [EMBED, {**EMBED, "input_name": "x"}],
        IDS,
        ["line 2 (embedding): takes ids, and reads 'x'", "holds features from Block #1, line 1", "read 'emb_ids'"],
    ),
    (
        "scores as values",
        [
            linear("q"),
            heads("q"),
            dots("q", "q"),
            {"type": "mha_sum", "input_name_values": "attn_dots"},
        ],
        X,
        ["line 4 (mha_sum): takes features or heads", "'attn_dots'", "holds scores from Block #1, line 3 (mha_dots)"],
    ),
    (
        "features as scores",
        [EMBED, {"type": "mha_sum", "input_name_dots": "x"}],
        IDS,
        ["line 2 (mha_sum): takes scores, and reads 'x'", "holds features from Block #1, line 1", "compute the scores"],
    ),
    (
        "mask as queries",
        [
            linear("q"),
            heads("q"),
            dots("q", "q"),
            {"type": "attention_offset"},
            dots("q", "attn_offset"),
        ],
        {**X, "attn_offset": ["B", 4, "L_in", 8]},
        ["line 5 (mha_dots): takes heads", "'attn_offset'", "Block #1, line 4 (attention_offset) reads it as"],
    ),
    (
        "heads where features belong",
        [heads("x"), {"type": "make_heads", "num_heads": 2}],
        X,
        [
            "line 2 (make_heads): takes features, and reads 'x' (BSZ, 4, L_in, 8)",
            "holds heads from Block #1, line 1 (make_heads)",
            "merge_heads of 'x'",
        ],
    ),
]
"""Streams that hold something else than what is read."""

BAD: list[Bad] = [*WRONG_KEYS, *WRONG_NAMES, *WRONG_SIZES, *WRONG_CONTENTS]
