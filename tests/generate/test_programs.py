"""Generating with programs: with a cache as without, and what must be named."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.dialects.configaformers import ConfigaFormer, get_alibi
from variform.parts.op.heads import MergeHeads, Scores, SplitHeads, WeightedSum
from variform.parts.op.tokenwise import EmbeddingOp, LinearOp, MergeOp
from variform.stack.lines import Step
from variform.stack.program import ProgramModel

VOCAB, DIM, HEADS = 17, 16, 4
OFFSET = get_alibi(HEADS, 40).double()


def step(op: Any, reads: str = "x", into: str = "x") -> vf.Spec:
    return Step.spec(op=op, reads=reads.split(), into=into.split())


def demo(merge: bool = False) -> ConfigaFormer:
    """Token shift, rotary and ALiBi; the offset is added by its own module, or by a merge."""
    add = {"type": "merge_streams", "input_name_1": "attn_dots", "input_name_2": "attn_offset"}
    layer: list[dict[str, Any]] = [
        {"type": "make_stream", "output_name": "r"},
        {"type": "norm"},
        {
            "type": "shift",
            "instructions": [{"features": (0, 8), "relative_pos": -1}, {"features": (8, 16), "relative_pos": 0}],
        },
        *({"type": "linear", "output_name": name} for name in "qkv"),
        *({"type": "make_heads", "input_name": n, "output_name": n, "num_heads": HEADS} for n in "qkv"),
        *({"type": "rope", "input_name": name, "output_name": name, "rotate_dim": 2} for name in "qk"),
        {"type": "mha_dots", "input_name_queries": "q", "input_name_keys": "k"},
        {**add, "output_name": "attn_dots"} if merge else {"type": "attention_offset"},
        {"type": "mha_sum", "input_name_values": "v"},
        {"type": "merge_heads"},
        {"type": "merge_streams", "input_name_1": "r"},
    ]
    blocks = [
        {"config": [{"type": "embedding", "num_classes": VOCAB, "output_dim": DIM}], "repeat": 1},
        {"config": layer, "repeat": 2},
        {"config": [{"type": "linear", "output_dim": VOCAB}], "repeat": 1},
    ]
    torch.manual_seed(2)
    shapes = {"emb_ids": ["B", "L_in"], "attn_offset": ["B", HEADS, "L_in", "L_in"]}
    return ConfigaFormer({"blocks": blocks}, shapes, verbose=False).double()


def causal_program(*more: vf.Spec, outputs: tuple[str, ...] = ("x",), **inputs: list[str]) -> Any:
    lines = [
        step(EmbeddingOp.spec(classes=VOCAB, out=DIM), "ids"),
        *more,
        *(step(SplitHeads.spec(heads=HEADS), "x", name) for name in "qv"),
        step(Scores.spec(), "q q", "s"),
        step(WeightedSum.spec(causal=True), "v s", "x"),
        step(MergeHeads.spec()),
        step(LinearOp.spec(out=VOCAB)),
    ]
    spec = ProgramModel.spec(lines=lines, inputs={"ids": ["B", "L"], **inputs}, outputs=outputs, strict=False)
    return vf.build(spec).double()


def uncached(model: Any, prompt: Tensor, count: int) -> Tensor:
    ids = prompt
    for _ in range(count):
        size = ids.shape[1]
        offset = OFFSET[:, :, :size, :size].expand(len(ids), -1, -1, -1)
        ids = torch.cat((ids, model({"emb_ids": ids, "attn_offset": offset})["x"][:, -1:].argmax(-1)), 1)
    return ids[:, prompt.shape[1] :]


@pytest.mark.parametrize("merge", [False, True])
def test_with_a_cache_as_without(merge: bool) -> None:
    model, prompt = demo(merge), torch.randint(VOCAB, (3, 5))
    with torch.no_grad():
        wanted = uncached(model.eval(), prompt, 12)
    for more in ({}, {"bucket": 8}, {"use_cache": False}):
        found = vf.generate(model.train(), prompt, 12, greedy=True, streams={"attn_offset": OFFSET}, **more)
        assert torch.equal(found, wanted), more
    assert model.training


def test_prompts_of_unequal_length_give_what_each_gives_alone() -> None:
    model, prompts = demo(), [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
    options: Any = {"greedy": True, "streams": {"attn_offset": OFFSET}}
    together = vf.generate(model, prompts, 9, **options)
    for prompt, row in zip(prompts, together, strict=True):
        assert torch.equal(vf.generate(model, prompt, 9, **options), row)
    with pytest.raises(vf.ShapeError, match="valid given, and the step"):
        vf.generate(model, prompts, 9, use_cache=False, **options)


def test_logits_with_a_cache_as_without() -> None:
    """What the samplers see, not the token alone."""
    model, prompt = demo(), torch.randint(VOCAB, (2, 4))
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    for cached, found in seen.items():

        def watch(logits: Tensor, found: list[Tensor] = found) -> Tensor:
            found.append(logits)
            return logits

        vf.generate(model, prompt, 7, seed=3, filters=[watch], use_cache=cached, streams={"attn_offset": OFFSET})
    torch.testing.assert_close(torch.stack(seen[True]), torch.stack(seen[False]), atol=1e-10, rtol=0)


def test_a_returned_state_goes_on_without_the_streams() -> None:
    model, prompt = demo(), torch.randint(VOCAB, (2, 4))
    options: Any = {"greedy": True, "streams": {"attn_offset": OFFSET}}
    whole = vf.generate(model, prompt, 9, **options)
    first, state = vf.generate(model, prompt, 5, return_state=True, max_len=20, **options)
    out, _ = model.eval()({"emb_ids": whole[:, 5:6]}, state=state)
    assert torch.equal(out["x"][:, -1].argmax(-1), whole[:, 6])
    _, state = vf.generate(model, prompt, 4, return_state=True, max_len=20, **options)
    rest = vf.generate(model, whole[:, 4:5], 4, greedy=True, state=state)
    assert torch.equal(torch.cat((first, rest), 1), torch.cat((whole[:, :5], whole[:, 5:]), 1))
    with pytest.raises(vf.ConfigError, match="the state holds them already"):
        vf.generate(model, whole[:, 4:5], 4, state=state, **options)


def test_a_program_without_other_inputs_needs_no_names() -> None:
    model, prompt = causal_program(), torch.randint(VOCAB, (2, 4))
    found = [vf.generate(model, prompt, 6, greedy=True, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*found)
    assert len(list(vf.stream(model, prompt, 6))) == 6
    with pytest.raises(vf.ShapeError, match=r"17"):
        vf.generate(model, [VOCAB], 1)


def test_what_is_not_clear_must_be_named() -> None:
    prompt = torch.randint(VOCAB, (2, 4))
    with pytest.raises(vf.ConfigError, match="the program gives s, x: name the logits"):
        vf.generate(causal_program(outputs=("s", "x")), prompt, 2)
    model = causal_program(outputs=("s", "x"))
    assert vf.generate(model, prompt, 2, output="x").shape == (2, 2)
    with pytest.raises(vf.ConfigError, match="output: is no output of this program"):
        vf.generate(model, prompt, 2, output="y")
    with pytest.raises(vf.ConfigError, match=r"\[2, 4, 4, 4\]; logits"):
        vf.generate(model, prompt, 2, output="s")
    kinds = [step(EmbeddingOp.spec(classes=3, out=DIM), "kind", "y"), step(MergeOp.spec(), "x y")]
    two = causal_program(*kinds, kind=["B", "L"])
    with pytest.raises(vf.ConfigError, match="reads ids from ids, kind: name the tokens'"):
        vf.generate(two, prompt, 2)
    with pytest.raises(vf.ConfigError, match=r"the program reads kind too: streams={'kind': \.\.\.}"):
        vf.generate(two, prompt, 2, input="ids")
    with pytest.raises(vf.ConfigError, match="comes with each call"):
        vf.generate(two, prompt, 2, input="ids", streams={"kind": torch.zeros(2, 4, dtype=torch.long)})
    held = causal_program(*kinds, kind=["B", 1])
    assert vf.generate(held, prompt, 2, streams={"kind": torch.zeros(2, 1, dtype=torch.long)}).shape == (2, 2)


def test_options_of_other_models_are_refused() -> None:
    prompt, model = torch.randint(VOCAB, (2, 4)), demo()
    with pytest.raises(vf.ConfigError, match="streams: the program reads attn_offset too"):
        vf.generate(model, prompt, 2)
    with pytest.raises(vf.ConfigError, match=r"streams.offset: is no input of this program"):
        vf.generate(model, prompt, 2, streams={"attn_offset": OFFSET, "offset": OFFSET})
    with pytest.raises(vf.ConfigError, match=r"by name: streams={'context': \.\.\.}"):
        vf.generate(model, prompt, 2, context=torch.zeros(2, 3, 4))
    with pytest.raises(vf.ShapeError, match=r"covers \[40, 40\] positions, and the state is to hold 43 tokens"):
        vf.generate(model, prompt, 40, streams={"attn_offset": OFFSET})
    native = vf.build(vf.models.gpt(vocab_size=VOCAB, dim=8, depth=1, heads=2, max_seq_len=9))
    for name, value in {"streams": {"x": prompt}, "input": "x", "output": "x"}.items():
        with pytest.raises(vf.ConfigError, match=f"{name}: is for programs"):
            vf.generate(native, prompt, 2, **{name: value})
