"""Score features of softmax attention: against plain formulas, decoded, packed, masked, without a leak."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from variform.errors import ConfigError
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.kinds import Sides
from variform.parts.scoring.bounds import SoftCapScores, TalkingHeadScores
from variform.parts.scoring.contextual import ContextualPositions
from variform.parts.scoring.distance import ProjectedDistance
from variform.parts.scoring.gates import ForgetGates, ForgetRowGates
from variform.parts.scoring.selective import SelectiveScores
from variform.parts.weighting.around import HeadScaledWeighting, SignedWeighting, SinkWeighting, TalkingHeadWeighting
from variform.parts.weighting.row import GumbelWeighting, HardWeighting, SigmoidWeighting, TopKWeighting

HEADS, SIZE, DIM = 4, 4, 16


def heads(queries: int = 9, keys: int = 9, key_heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(
        torch.randn(2, h, n, SIZE, dtype=torch.float64)
        for h, n in ((HEADS, queries), (key_heads, keys), (key_heads, keys))
    )  # type: ignore[return-value]


def moved(part: nn.Module) -> Any:
    torch.manual_seed(1)
    for param in part.double().parameters():
        param.data += 0.5 * torch.randn_like(param)
    return part


def run(q: Tensor, k: Tensor, v: Tensor, sides: Sides | None = None, **slots: Any) -> Tensor:
    out = SoftmaxAttention(**{"causal": True, **slots}).double().eval()(q, k, v, sides or Sides())
    assert isinstance(out, Tensor)
    return out


def products(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) * SIZE**-0.5


def hidden(scores: Tensor) -> Tensor:
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_talking_heads_mix_before_and_after() -> None:
    q, k, v = heads()
    before, after = moved(TalkingHeadScores(HEADS)), moved(TalkingHeadWeighting(HEADS))
    scores = products(q, k)
    scores = scores + torch.einsum("hg,bgij->bhij", before.weight, scores)
    weights = torch.einsum("hg,bgij->bhij", after.weight, hidden(scores).softmax(-1))
    same(run(q, k, v, scores=[before], weights=after), weights @ v)


def test_weights_are_scaled_by_mixed_products() -> None:
    q, k, v = heads()
    scaled = moved(HeadScaledWeighting(HEADS))
    raw = products(q, k)
    factor = torch.einsum("hg,bgij->bhij", scaled.weight, raw)
    same(run(q, k, v, scores=[SoftCapScores(1.0)], weights=scaled), (hidden(raw.tanh()).softmax(-1) * factor) @ v)


def test_a_sink_takes_weight_and_gives_nothing() -> None:
    q, k, v = heads()
    sink = moved(SinkWeighting(HEADS))
    column = sink.sink.view(1, -1, 1, 1).expand(2, -1, 9, 1)
    weights = torch.cat((column, hidden(products(q, k))), -1).softmax(-1)[..., 1:]
    same(run(q, k, v, weights=sink), weights @ v)


@pytest.mark.parametrize("count", [3, 40])
def test_the_largest_scores_alone(count: int) -> None:
    q, k, v = heads()
    scores = hidden(products(q, k))
    expected = torch.zeros_like(v)
    for i in range(9):
        best = scores[..., i, : i + 1].topk(min(count, i + 1), -1)
        chosen = v.gather(2, best.indices.unsqueeze(-1).expand(-1, -1, -1, SIZE))
        expected[:, :, i] = (best.values.softmax(-1).unsqueeze(-1) * chosen).sum(2)
    same(run(q, k, v, weights=TopKWeighting(count)), expected)


def test_straight_through_has_the_gradient_of_softmax() -> None:
    q, k, v = heads()
    grads = []
    for weights in (HardWeighting(), TopKWeighting(1, straight_through=True), None):
        at = q.clone().requires_grad_()
        run(at, k, v, weights=weights).sum().backward()
        grads.append(at.grad)
    assert grads[0] is not None
    assert grads[1] is not None
    assert grads[2] is not None
    same(grads[0], grads[2])
    same(grads[1], grads[2])
    best = hidden(products(q, k)).argmax(-1)
    same(run(q, k, v, weights=HardWeighting()), v.gather(2, best.unsqueeze(-1).expand(-1, -1, -1, SIZE)))


def test_signs_come_back() -> None:
    q, k, v = heads()
    scores = products(q, k)
    same(run(q, k, v, weights=SignedWeighting()), (hidden(scores.abs()).softmax(-1) * scores.sign()) @ v)


def test_contextual_positions_count_seen_keys_alone() -> None:
    q, k, v = heads()
    part = moved(ContextualPositions(4, HEADS, SIZE))
    scores, out = products(q, k), torch.zeros_like(v)
    for i in range(9):
        row = scores[:, :, i, : i + 1]
        place = row.sigmoid().flip(-1).cumsum(-1).flip(-1).clamp(max=3)
        curve = q[:, :, i] @ part.embedding.T
        low, high = curve.gather(-1, place.floor().long()), curve.gather(-1, place.ceil().long())
        share = place - place.floor()
        weights = (row + low * (1 - share) + high * share).softmax(-1)
        out[:, :, i] = (weights.unsqueeze(-2) @ v[:, :, : i + 1]).squeeze(-2)
    same(run(q, k, v, scores=[part]), out)


def test_gates_let_keys_fade() -> None:
    q, k, v = heads()
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    part = moved(ForgetGates(DIM, HEADS, causal=True))
    gates = (x @ part.weight.T + part.bias).sigmoid().log().transpose(1, 2)
    bias = torch.zeros(2, HEADS, 9, 9, dtype=torch.float64)
    for i in range(9):
        for j in range(i):
            bias[:, :, i, j] = gates[:, :, j + 1 : i + 1].sum(-1)
    same(run(q, k, v, Sides(x=x), scores=[part]), hidden(products(q, k) + bias).softmax(-1) @ v)


def test_each_query_has_gates_of_its_own() -> None:
    q, k, v = heads()
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    part = moved(ForgetRowGates(DIM, HEADS, 3, post=0.5))
    g, h = ((x @ w.T).view(2, 9, HEADS, 3).transpose(1, 2) for w in (part.queries, part.keys))
    gates = (g @ h.transpose(-1, -2) / 3**0.5).sigmoid().log() * 0.5
    bias = torch.zeros_like(gates)
    for i in range(9):
        for j in range(i):
            bias[:, :, i, j] = gates[:, :, i, j:i].sum(-1)
    same(run(q, k, v, Sides(x=x), scores=[part]), hidden(products(q, k) + bias).softmax(-1) @ v)


def test_curves_over_distance() -> None:
    q, k, v = heads()
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    part = moved(ProjectedDistance(DIM, HEADS, curves=3, reach=4))
    mixed = (x @ part.weight.T + part.bias).view(2, 9, HEADS, 3)
    bias = torch.zeros(2, HEADS, 9, 9, dtype=torch.float64)
    for i in range(9):
        for j in range(max(0, i - 3), i + 1):
            bias[:, :, i, j] = mixed[:, i] @ part.bank[:, i - j]
    same(run(q, k, v, Sides(x=x), scores=[part]), hidden(products(q, k) + bias).softmax(-1) @ v)


def test_tokens_hide_others_from_later_ones() -> None:
    q, k, v = heads()
    scores = products(q, k)
    gates = scores[:, 0].relu().tril(-1)
    gates[..., 0] = 0
    total = gates.cumsum(-2) - gates
    same(run(q, k, v, scores=[SelectiveScores()]), hidden(scores - total.unsqueeze(1)).softmax(-1) @ v)


FEATURES: dict[str, dict[str, Any]] = {
    "soft_cap": {"scores": ["soft_cap"]},
    "talking": {"scores": ["talking_heads"], "weights": "talking_heads"},
    "scaled": {"weights": "scaled_by_heads"},
    "cope": {"scores": [{"part": "cope", "positions": 4, "mixing": True}]},
    "forget": {"scores": ["forget"]},
    "forget_rows": {"scores": ["forget_rows"]},
    "distance": {"scores": [{"part": "projected_distance", "reach": 5}]},
    "selective": {"scores": ["selective"]},
    "top_k": {"weights": {"part": "top_k", "count": 3}},
    "sink": {"weights": {"part": "sink", "weights": {"part": "top_k", "count": 3}}},
    "signed": {"weights": {"part": "signed", "weights": "sink"}},
    "sigmoid": {"weights": "sigmoid"},
    "everything": {
        "scores": ["talking_heads", "forget", "projected_distance", "soft_cap", "cope", "selective"],
        "weights": {"part": "scaled_by_heads", "weights": {"part": "talking_heads", "weights": "sink"}},
        "memory": {"part": "joined", "memories": ["zero", {"part": "learned", "count": 2}]},
    },
}


def model(attention: dict[str, Any], **options: Any) -> Any:
    body = {"part": "multi_head", "attention": attention, **options}
    layer = {"part": "sublayer", "body": body}
    spec = {
        "part": "transformer",
        "dim": DIM,
        "heads": HEADS,
        "causal": True,
        "vocab_size": 11,
        "embedding": {"part": "tokens"},
        "stacks": [{"part": "stack", "layers": [layer, layer]}],
        "head": {"part": "lm"},
    }
    return moved(vf.build(spec)).eval()


@pytest.mark.parametrize("window", [None, 4], ids=["all", "window"])
@pytest.mark.parametrize("name", FEATURES)
@torch.no_grad()
def test_ragged_chunks_decode_what_the_whole_gives(name: str, window: int | None) -> None:
    if window and ("selective" in name or name == "everything"):
        pytest.skip("refused: see test_what_does_not_fit")
    kind = {"part": "softmax"} if window is None else {"part": "local", "window": window}
    whole = model({**kind, **FEATURES[name]}, kv_heads=2)
    ids = torch.randint(0, 11, (2, 9))
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, :4] = False
    state, outs = whole.init_state(2, 9), []
    for place in ((0, 3), (3, 4), (4, 8), (8, 9)):
        part = slice(*place)
        out, state = whole(ids[:, part], valid=valid[:, part], state=state)
        outs.append(out)
    out = torch.cat(outs, 1)
    torch.testing.assert_close(out[0], whole(ids[:1])[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(out[1, 4:], whole(ids[1:, 4:])[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(whole(ids, valid=valid)[1, 4:], out[1, 4:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FEATURES)
@torch.no_grad()
def test_the_past_is_bit_for_bit_the_same_whatever_follows(name: str) -> None:
    whole = model({"part": "softmax", **FEATURES[name]})
    ids = torch.randint(0, 11, (2, 9))
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 3) % 11
    assert torch.equal(whole(ids)[:, :5], whole(other)[:, :5])
    assert not torch.equal(whole(ids)[:, 5:], whole(other)[:, 5:])


@torch.no_grad()
def test_gumbel_draws_keys_by_their_weights() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, SIZE).double(), torch.randn(1, 1, 3, SIZE).double()
    v = torch.eye(3, SIZE).double()[None, None]
    many = q.expand(20000, -1, -1, -1), k.expand(20000, -1, -1, -1), v.expand(20000, -1, -1, -1)
    drawn = run(*many, weights=GumbelWeighting(), causal=False)
    assert bool(((drawn == 0) | (drawn == 1)).all())
    share = products(q, k).softmax(-1)[0, 0, 0]
    torch.testing.assert_close(drawn.mean((0, 1, 2))[:3], share, rtol=0, atol=0.015)


def test_a_custom_function_has_a_name_in_files() -> None:
    from variform.parts.weighting.row import register_attention_function

    function = torch.sigmoid
    register_attention_function("a_sigmoid", function)
    register_attention_function("a_sigmoid", function)
    with pytest.raises(ConfigError, match="already registered"):
        register_attention_function("a_sigmoid", torch.relu)
    q, k, v = heads()
    from variform.parts.weighting.row import CustomWeighting

    same(run(q, k, v, weights=CustomWeighting("a_sigmoid")), run(q, k, v, weights=SigmoidWeighting()))
    same(run(q, k, v, weights=CustomWeighting(function)), run(q, k, v, weights=SigmoidWeighting()))
    with pytest.raises(ConfigError, match="a_sigmoid"):
        model({"part": "softmax", "weights": {"part": "custom", "function": "a_sigmoyd"}})


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ({"part": "local", "window": 4, "scores": ["selective"]}, "a window drops old ones"),
        ({"part": "softmax", "causal": False, "scores": ["selective"]}, "causal"),
        ({"part": "softmax", "scores": ["selective", "selective"]}, "one sum"),
        ({"part": "softmax", "weights": "inverted"}, "causal"),
        (
            {"part": "softmax", "weights": {"part": "signed", "weights": {"part": "sink", "weights": "talking_heads"}}},
            "signs come before heads are mixed",
        ),
    ],
)
def test_what_does_not_fit(attention: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(attention)
