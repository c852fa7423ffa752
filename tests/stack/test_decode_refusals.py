"""What would change with the length of the sequence, or show later tokens, does not decode."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.dialects.configaformers import ConfigaFormer

SIZE = 12
EMBED = {"type": "embedding", "num_classes": 13, "output_dim": 16}
HEADS: list[dict[str, Any]] = [
    step
    for name in ("q", "k")
    for step in (
        {"type": "linear", "output_name": name},
        {"type": "make_heads", "input_name": name, "output_name": name, "num_heads": 4},
    )
]
DOTS = {"type": "mha_dots", "input_name_queries": "q", "input_name_keys": "k"}
TIMES = {
    "type": "merge_streams",
    "input_name_1": "attn_dots",
    "input_name_2": "attn_offset",
    "merge_type": "multiply",
    "output_name": "attn_dots",
}


def build(*modules: Any, **options: Any) -> ConfigaFormer:
    shapes: dict[str, Any] = {"emb_ids": ["B", "L"]}
    if any("attn_offset" in (m["type"], *m.values()) or m["type"] == "attention_offset" for m in modules):
        shapes["attn_offset"] = ["B", 4, "L", "L"]
    blocks = [{"config": [EMBED, *modules], "repeat": 1}]
    model = ConfigaFormer(blocks, shapes, verbose=False, output_streams=["x"], **options)
    return model.double().eval()


def both(model: ConfigaFormer, offset: Tensor) -> tuple[Tensor, Tensor]:
    """The whole sequence at once, and in chunks."""
    ids = torch.randint(0, 13, (2, SIZE))
    state, found = model.init_state(batch=2, max_len=SIZE, attn_offset=offset), []
    for chunk in ids.split((3, 1, 1, 7), 1):
        out, state = model({"emb_ids": chunk}, state=state)
        found.append(out["x"])
    return model({"emb_ids": ids, "attn_offset": offset.expand(2, -1, -1, -1)})["x"], torch.cat(found, 1)


def test_rotated_features_are_no_output() -> None:
    with pytest.raises(vf.ConfigError, match="the output 'x' was rotated by positions counted from the end"):
        build({"type": "rope", "rotate_dim": 8}).init_state(batch=2, max_len=SIZE)
    nested = {"type": "program", "config": [{"type": "rope", "rotate_dim": 8}]}
    with pytest.raises(vf.ConfigError, match=r"line 2 \(program\): .*the output 'x' was rotated"):
        build(nested).init_state(batch=2, max_len=SIZE)


def test_zeros_hide_nothing_under_a_softmax() -> None:
    lower = torch.ones(1, 4, SIZE, SIZE).tril().double()
    with pytest.raises(vf.ConfigError, match="later tokens count here"):
        build(*HEADS, DOTS, TIMES, {"type": "mha_sum"}).init_state(batch=2, max_len=SIZE, attn_offset=lower)
    for function in ("relu", "tanh"):
        whole, chunks = both(build(*HEADS, DOTS, TIMES, {"type": "mha_sum", "attn_function": function}), lower)
        torch.testing.assert_close(chunks, whole, atol=1e-10, rtol=0)


def test_a_row_that_sees_nothing_is_zeros_in_steps_as_in_the_whole() -> None:
    before = torch.full((1, 4, SIZE, SIZE), -torch.inf).triu().double()
    whole, chunks = both(build(*HEADS, DOTS, {"type": "attention_offset"}, {"type": "mha_sum"}), before)
    assert not whole[:, 0].any()
    torch.testing.assert_close(chunks, whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ({"type": "shift", "instructions": [{"features": (0, 16), "relative_pos": 1}]}, "lets a token see later ones"),
        ({"type": "down_sample", "stride": 2}, "'down_sample' "),
        ({"type": "pack_batch", "group_size": 4}, "'pack_batch' "),
    ],
)
def test_steps_that_cannot_say_why(module: dict[str, Any], words: str) -> None:
    with pytest.raises(vf.ConfigError) as caught:
        build(module).init_state(batch=2, max_len=SIZE)
    assert words in str(caught.value)
    assert "run the whole sequence at once" in str(caught.value)
    assert "set causal=True" not in str(caught.value)
