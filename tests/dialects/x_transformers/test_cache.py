"""Calls that go on from a cache: what is said with each call, with the first alone, and what contradicts it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from variform.dialects.x_transformers import Decoder, PrefixDecoder, TransformerWrapper

ROWS, READ, LENGTH, DIM = 2, 5, 9, 16
DRAWN = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 20, (ROWS, LENGTH), generator=DRAWN)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAWN, dtype=torch.float64)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, DIM)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        out: Tensor = self.table(x) * scale
        return out


def made(layers: Any = Decoder, around: dict[str, Any] | None = None, **keywords: Any) -> Any:
    torch.manual_seed(0)
    stack = layers(dim=DIM, depth=2, heads=2, attn_dim_head=8, **keywords)
    model = TransformerWrapper(num_tokens=20, max_seq_len=24, attn_layers=stack, **(around or {})).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


CONTEXT = drawn(ROWS, 4, DIM)
PAIRS = [(drawn(ROWS, 2, 3, 8), drawn(ROWS, 2, 3, 8)) for _ in range(2)]
CASES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    # what is built, the argument, and another value of it
    "condition": ({"dim_condition": 4, "use_adaptive_layernorm": True}, drawn(ROWS, LENGTH, 4), None),
    "in_attn_cond": ({}, drawn(ROWS, LENGTH, DIM), None),
    "sum_embeds": ({}, drawn(ROWS, LENGTH, DIM), None),
    "embed_ids": ({"around": {"embed_num_tokens": {"kind": 5}}}, {"kind": IDS % 5}, None),
    "mask": ({}, torch.arange(LENGTH) >= torch.tensor([[0], [3]]), torch.arange(LENGTH) >= torch.tensor([[0], [2]])),
    "pos": (
        {"rotary_pos_emb": True},
        torch.tensor([0, 2, 3, 4, 7, 8, 9, 11, 12]),
        torch.tensor([0, 1, 3, 4, 7, 8, 9, 11, 12]),
    ),
    "seq_start_pos": ({}, torch.tensor([0, 3]), torch.tensor([0, 2])),
    "self_attn_kv_residuals": ({}, drawn(2, ROWS, LENGTH, DIM), None),
    "self_attn_additional_kv": ({}, PAIRS, PAIRS[:1]),
    "token_emb_kwargs": ({"around": {"token_emb": Scaled()}}, {"scale": 2.0}, {"scale": 3.0}),
    "prefix_attn_len": ({"layers": PrefixDecoder}, 3, 4),
    "recycle_steps": ({"around": {"recycling": True}}, 2, 3),
    "looped_steps": ({"around": {"looped": True}, "pre_and_post_norm": True}, 2, 3),
    "prepend_embeds": ({}, drawn(ROWS, 2, DIM), drawn(ROWS, 2, DIM)),
    "context": ({"cross_attend": True}, CONTEXT, drawn(ROWS, 4, DIM)),
    "context_mask": ({"cross_attend": True}, torch.ones(ROWS, 4).tril(2).bool(), torch.ones(ROWS, 4).bool()),
    "layers_execute_order": ({}, (0, 1, 0, 1, 2, 3), (2, 3, 0, 1)),
}
ONCE = ("prefix_attn_len", "recycle_steps", "looped_steps", "prepend_embeds", "context", "context_mask")
FREE = ("in_attn_cond", "mask")  # tokens may go on without


def part_of(name: str, value: Any, tokens: slice) -> Any:
    """What is said of some of the tokens."""
    if isinstance(value, dict):
        return {key: part_of(name, one, tokens) for key, one in value.items()}
    if not isinstance(value, Tensor) or LENGTH not in value.shape:
        return value
    return value.narrow(value.shape.index(LENGTH), tokens.start or 0, len(range(LENGTH)[tokens]))


def given(name: str, value: Any) -> dict[str, Any]:
    around = {"context": CONTEXT} if name == "context_mask" else {}
    return around if value is None else {**around, name: value}


def read(model: Any, name: str, value: Any) -> Any:
    return model(IDS[:, :READ], return_intermediates=True, **given(name, part_of(name, value, slice(READ))))[1]


def go_on(model: Any, cache: Any, name: str, value: Any, alone: bool = False) -> Any:
    value = part_of(name, value, slice(READ, None)) if alone else value
    ids = IDS[:, READ:] if alone else IDS
    asked = {"input_not_include_cache": alone, "return_intermediates": True}
    out, after = model(ids, cache=cache, **asked, **given(name, value))
    return out[:, READ - LENGTH :], after


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_given_with_each_call(name: str, alone: bool) -> None:
    keywords, value, _ = CASES[name]
    model = made(**keywords)
    whole = model(IDS, **given(name, value))[:, READ - LENGTH :]
    cache = read(model, name, value)
    for _ in range(2):  # the second time what was read is read again
        torch.testing.assert_close(go_on(model, cache, name, value, alone)[0], whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ONCE)
def test_what_is_given_once_stays(name: str) -> None:
    keywords, value, _ = CASES[name]
    model = made(**keywords)
    whole = model(IDS, **given(name, value))[:, READ - LENGTH :]
    cache = model(IDS[:, :READ], return_intermediates=True, **given(name, value))[1]
    later = {} if name == "context" else given(name, None)
    out = model(IDS, cache=cache, input_not_include_cache=False, **later)
    torch.testing.assert_close(out[:, READ - LENGTH :], whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name, (_, _, other) in CASES.items() if other is not None])
def test_another_value_is_refused(name: str) -> None:
    keywords, value, other = CASES[name]
    model = made(**keywords)
    with pytest.raises(ValueError, match=r"cache|read"):
        go_on(model, read(model, name, value), name, other)


@pytest.mark.parametrize("name", [name for name in CASES if name not in (*ONCE, *FREE)])
def test_what_stops_is_refused(name: str) -> None:
    keywords, value, _ = CASES[name]
    model = made(**keywords)
    with pytest.raises(ValueError, match=r"each call|all tokens|every call|pass condition"):
        go_on(model, read(model, name, value), name, None)


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in ("in_attn_cond", "condition", "context", "embed_ids")]
)
def test_what_begins_is_refused(name: str) -> None:
    keywords, value, _ = CASES[name]
    model = made(**keywords)
    cache = read(model, name, None)
    with pytest.raises(ValueError, match=r"cache|read|all tokens"):
        go_on(model, cache, name, value)


def test_other_tokens_are_refused() -> None:
    model = made()
    cache = read(model, "mask", None)
    with pytest.raises(ValueError, match="first tokens are not those that the cache has read"):
        model(IDS.flip(1), cache=cache, input_not_include_cache=False)


@pytest.mark.parametrize("name", ["attn_mask", "attn_bias"])
def test_pairs_of_the_first_call_are_read_again_as_they_were(name: str) -> None:
    model = made()
    pairs = drawn(LENGTH, LENGTH)
    pairs[READ:], pairs[:, READ:] = 0.0, 0.0  # tokens after them see all
    value = pairs > -0.5 if name == "attn_mask" else pairs
    whole = model(IDS, **{name: value})[:, READ:]
    cache = model(IDS[:, :READ], return_intermediates=True, **{name: value[:READ, :READ]})[1]
    for _ in range(2):
        out, after = go_on(model, cache, name, None)
        torch.testing.assert_close(out, whole, rtol=0, atol=1e-10)
    last = IDS[:, :1]
    once, twice = (model(last, cache=after, input_not_include_cache=True) for _ in range(2))
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-10)


def test_keys_hidden_by_a_call_are_not_kept() -> None:
    model = made()
    hidden = torch.arange(READ).expand(ROWS, -1) != 2
    cache = model(IDS[:, :READ], return_intermediates=True, self_attn_kv_mask=hidden)[1]
    with pytest.raises(ValueError, match="self_attn_kv_mask hides"):
        go_on(model, cache, "mask", None)


def test_packed_documents_are_whole() -> None:
    model = made()
    packed = {"cu_seqlens_q": torch.tensor([0, 2, READ])}
    cache = model(IDS[:1, :READ], return_intermediates=True, flash_pack_seq_kwargs=packed)[1]
    with pytest.raises(ValueError, match="flash_pack_seq_kwargs are for whole sequences"):
        model(IDS[:1], cache=cache)


def test_additions_to_keys_of_a_context_are_for_whole_sequences() -> None:
    model = made(cross_attend=True)
    more = {"context": CONTEXT, "cross_attn_kv_residuals": drawn(2, ROWS, 4, DIM)}
    cache = model(IDS[:, :READ], return_intermediates=True, **more)[1]
    with pytest.raises(ValueError, match="cross_attn_kv_residuals are for whole sequences"):
        model(IDS, cache=cache, context=CONTEXT)
