"""Modules beside attention: torch's recurrences, modules of the user's, mixers of this library."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from variform.dialects.x_transformers import Decoder, Encoder, TransformerWrapper
from variform.dialects.x_transformers.attention.torch_recurrence import TorchRecurrence
from variform.dialects.x_transformers.errors import KeywordError
from variform.parts.attention.hybrid import HybridAttention

SMALL: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 4, "attn_dim_head": 4}


class Smooth(nn.Module):
    """The mean of each token and the next, with a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 16)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.map(x)
        x = x if keep is None else x * keep.unsqueeze(-1)
        return 0.5 * (x + x.roll(-1, 1))


def gru(**options: Any) -> nn.GRU:
    return nn.GRU(16, 16, batch_first=True, **options)


@pytest.mark.parametrize("module", [gru(), "mamba", {"part": "multi_head", "heads": 2}], ids=["gru", "mamba", "heads"])
@pytest.mark.parametrize("mixed", [False, True])
def test_modules_beside_attention(module: Any, mixed: bool) -> None:
    x = torch.randn(2, 7, 16)
    layers = Decoder(**SMALL, attn_hybrid_module=module, attn_hybrid_learned_mix=mixed)
    part = next(m for m in layers.native.modules() if isinstance(m, HybridAttention))
    assert (part.mix is not None) == mixed
    out = layers(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None for p in part.mixer.parameters())


def test_a_module_begins_with_its_weights_and_each_layer_has_its_own() -> None:
    module = gru()
    layers = Decoder(**{**SMALL, "depth": 2}, attn_hybrid_module=module, attn_hybrid_fold_axial_dim=1)
    first, second = (m.mixer for m in layers.native.modules() if isinstance(m, HybridAttention))
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(first(x, {}), module(x)[0])
    with torch.no_grad():
        first.weight_ih.zero_()
    torch.testing.assert_close(second(x, {}), module(x)[0])


RECURRENCES = [
    gru(),
    gru(num_layers=2, bias=False),
    nn.LSTM(16, 16, 2, batch_first=True),
    nn.LSTM(16, 20, proj_size=16, batch_first=True),
    nn.RNN(16, 16, batch_first=True),
    nn.RNN(16, 16, 2, nonlinearity="relu", batch_first=True),
]


@torch.no_grad()
@pytest.mark.parametrize("fold", [None, 1, 3])
@pytest.mark.parametrize("module", RECURRENCES, ids=str)
def test_padding_and_decoding_of_folds(module: nn.Module, fold: int | None) -> None:
    torch.manual_seed(0)
    layers = Decoder(**SMALL, attn_hybrid_module=module, attn_hybrid_fold_axial_dim=fold, rotary_pos_emb=True)
    model = TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=layers).double().eval().native
    ids = torch.randint(0, 20, (2, 11))
    whole, state, found = model(ids), model.init_state(2, 11), []
    for chunk in ids.split([2, 1, 1, 4, 3], 1):
        out, state = model(chunk, state=state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=1e-10)
    valid = torch.arange(11).expand(2, 11) >= torch.tensor([[0], [4]])
    moved = ids.clone()
    moved[1, 4:] = ids[1, :7]
    torch.testing.assert_close(model(moved, valid=valid)[1, 4:], whole[1, :7], rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("module", [gru(), "mamba", {"part": "multi_head", "heads": 2}], ids=["gru", "mamba", "heads"])
def test_beside_cross_attention_the_own_sequence_is_read_in_order(module: Any) -> None:
    torch.manual_seed(0)
    layers = Decoder(**SMALL, cross_attend=True, cross_attn_hybrid_module=module)
    model = TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=layers).double().eval().native
    ids, context = torch.randint(0, 20, (2, 9)), torch.randn(2, 5, 16, dtype=torch.float64)
    seen = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    given = {"context": context, "context_mask": seen}
    whole, state, found = model(ids, **given), model.init_state(2, 9, **given), []
    for chunk in ids.split([2, 1, 1, 4, 1], 1):
        out, state = model(chunk, state=state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=1e-10)
    later = torch.cat((ids[:, :4], (ids[:, 4:] + 1) % 20), 1)
    torch.testing.assert_close(model(later, **given)[:, :4], whole[:, :4], rtol=0, atol=1e-12)
    valid = torch.arange(9).expand(2, 9) >= torch.tensor([[0], [3]])
    moved = ids.clone()
    moved[1, 3:] = ids[1, :6]
    torch.testing.assert_close(model(moved, valid=valid, **given)[1, 3:], whole[1, :6], rtol=0, atol=1e-10)


@pytest.mark.parametrize("module", RECURRENCES[1:], ids=str)
def test_rows_that_take_no_token_stay_where_they_were(module: nn.RNNBase) -> None:
    """Values and gradients of ragged chunks are those of each row alone, by torch's own module."""
    part, alone = TorchRecurrence(module).double(), copy.deepcopy(module).double()
    x, state = torch.randn(3, 6, 16, dtype=torch.float64, requires_grad=True), part.init_state(3, 6, {})
    rows: list[list[Tensor]] = [[], [], []]
    for start, end, counts in ((0, 3, (3, 0, 2)), (3, 4, (1, 0, 1)), (4, 6, (0, 1, 2))):
        valid = torch.arange(end - start) < torch.tensor(counts).unsqueeze(1)
        out, new = part(x[:, start:end], {"valid": valid, "state": state})
        state = new["state"]
        for row, count in enumerate(counts):
            rows[row].append(out[row, :count])
    read = [[0, 1, 2, 3], [4], [0, 1, 3, 4, 5]]
    expected = [alone(x[row : row + 1, places])[0][0] for row, places in enumerate(read)]
    found = torch.cat([torch.cat(row) for row in rows])
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-12)
    direction = torch.randn_like(found)
    (theirs,) = torch.autograd.grad((torch.cat(expected) * direction).sum(), x)
    (mine,) = torch.autograd.grad((found * direction).sum(), x)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_both_directions_do_not_see_padding() -> None:
    module = nn.LSTM(16, 8, 2, bidirectional=True, batch_first=True)
    layers = Encoder(**SMALL, attn_hybrid_module=module).double()
    x, mask = torch.randn(1, 7, 16, dtype=torch.float64), torch.arange(7)[None] < 5
    torch.testing.assert_close(layers(x, mask=mask)[:, :5], layers(x[:, :5]), rtol=0, atol=1e-12)


def test_a_module_takes_the_mask_under_its_name() -> None:
    layers = Encoder(**SMALL, attn_hybrid_module=Smooth(), attn_hybrid_mask_kwarg="keep").double()
    x = torch.randn(1, 7, 16, dtype=torch.float64)
    mask = torch.arange(7)[None] < 5
    changed = x.clone()
    changed[:, 5:] += 1.0
    torch.testing.assert_close(layers(x, mask=mask)[:, :5], layers(changed, mask=mask)[:, :5])
    copied = copy.deepcopy(layers)
    torch.testing.assert_close(copied(x, mask=mask), layers(x, mask=mask))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"attn_hybrid_module": Smooth()}, "may depend on later ones"),
        ({"cross_attend": True, "cross_attn_hybrid_module": Smooth()}, "may depend on later ones"),
        ({"cross_attend": True, "cross_attn_hybrid_module": "fourier_mix"}, "causal"),
        ({"attn_hybrid_module": nn.GRU(16, 8, batch_first=True, bidirectional=True)}, "may depend on later ones"),
        ({"attn_hybrid_module": nn.GRU(16, 16)}, "batch_first=True"),
        ({"attn_hybrid_module": nn.LSTM(15, 16, batch_first=True)}, "reads 15 features, and these layers have 16"),
        ({"attn_hybrid_module": nn.LSTM(16, 16, proj_size=3, batch_first=True)}, "proj_size=16"),
        ({"attn_hybrid_module": nn.RNN(16, 16, batch_first=True), "attn_hybrid_mask_kwarg": "m"}, "by themselves"),
        ({"attn_hybrid_module": "softmax"}, "a mixer is needed"),
        ({"attn_hybrid_module": "no_such"}, "attn_hybrid_module"),
        ({"attn_hybrid_module": "fourier_mix"}, "causal"),
        ({"attn_hybrid_learned_mix": True}, "no effect without attn_hybrid_module"),
        ({"attn_hybrid_module": gru(), "attn_hybrid_fold_axial_dim": 0}, "at least 1"),
    ],
)
def test_bad_modules(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(KeywordError, match=message):
        Decoder(**SMALL, **keywords)
