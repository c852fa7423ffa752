"""Orthoformer attention: its formula, and how landmarks are chosen."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform import testing
from variform.ops.landmarks import kmeans, orthogonal, spread
from variform.parts.attention.orthoformer import OrthoformerAttention
from variform.parts.kinds import Sides

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-10}
SELECTIONS = ("orthogonal", "kmeans", "kmeans_spherical", "random")


def qkv(queries: int = 17, keys: int = 17, kv_heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    sizes = ((4, queries, 4), (kv_heads, keys, 4), (kv_heads, keys, 3))
    q, k, v = (torch.randn(2, *size, dtype=torch.float64) for size in sizes)
    return q, k, v


def part(**fields: Any) -> OrthoformerAttention:
    return vf.build(OrthoformerAttention.spec(**fields)).double().eval()


def weights(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(-1, -2) / 2).softmax(-1)


def greedy(x: Tensor, count: int) -> list[int]:
    unit = x / x.norm(dim=-1, keepdim=True)
    chosen = [0]
    while len(chosen) < count:
        rest = [i for i in range(len(x)) if i not in chosen]
        chosen.append(min(rest, key=lambda i: max(abs(float(unit[i] @ unit[j])) for j in chosen)))
    return chosen


def test_orthogonal_landmarks_are_chosen_greedily() -> None:
    q, k, v = qkv()
    real = torch.ones(2, 17, dtype=torch.bool)
    for row in range(2):
        for head in range(4):
            assert orthogonal(q, 6, real)[row, head].tolist() == greedy(q[row, head], 6)
    landmarks = torch.stack([torch.stack([q[b, h, greedy(q[b, h], 6)] for h in range(4)]) for b in range(2)])
    wanted = weights(q, landmarks) @ (weights(landmarks, k) @ v)
    torch.testing.assert_close(part(landmarks=6)(q, k, v, Sides()), wanted, **EXACT)


@pytest.mark.parametrize("spherical", [False, True])
def test_cluster_means_are_those_of_lloyds_method(spherical: bool) -> None:
    x = torch.randn(1, 1, 30, 3, dtype=torch.float64)
    start = torch.tensor([[3, 8, 20, 21]])
    got = kmeans(x, start, torch.ones(1, 30, dtype=torch.bool), 5, spherical)[0, 0]
    points = x[0, 0] / x[0, 0].norm(dim=-1, keepdim=True) if spherical else x[0, 0]
    means = points[start[0]]
    for _ in range(5):
        nearest = torch.cdist(points, means).argmin(1)
        means = torch.stack([points[nearest == c].mean(0) if (nearest == c).any() else means[c] for c in range(4)])
        means = means / means.norm(dim=-1, keepdim=True) if spherical else means
    torch.testing.assert_close(got, means, **EXACT)


def test_random_landmarks_are_half_queries_half_keys() -> None:
    q, k, v = qkv()
    attention = part(landmarks=4, selection="random")
    landmarks = torch.cat((q[:, :, [0, 8]], k[:, :, [0, 8]]), 2)
    wanted = weights(q, landmarks) @ (weights(landmarks, k) @ v)
    torch.testing.assert_close(attention(q, k, v, Sides()), wanted, **EXACT)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_draws_are_new_in_training_and_the_same_in_eval(selection: str) -> None:
    q, k, v = qkv()
    attention = part(landmarks=4, selection=selection, subsample=0.5)
    assert torch.equal(attention(q, k, v, Sides()), attention(q, k, v, Sides()))
    attention.train()
    torch.manual_seed(3)
    first, second = attention(q, k, v, Sides()), attention(q, k, v, Sides())
    torch.manual_seed(3)
    assert torch.equal(attention(q, k, v, Sides()), first)
    assert not torch.equal(first, second)


def test_a_share_of_the_queries_is_looked_at() -> None:
    q, k, v = qkv()
    part_of = part(landmarks=4, subsample=0.3)(q, k, v, Sides())
    chosen = [0, 3, 6, 10, 13]  # 0.3 * 17 = 5 of them, evenly spread
    landmarks = torch.stack(
        [torch.stack([q[b, h, chosen][greedy(q[b, h, chosen], 4)] for h in range(4)]) for b in range(2)]
    )
    torch.testing.assert_close(part_of, weights(q, landmarks) @ (weights(landmarks, k) @ v), **EXACT)
    ranks = spread(torch.tensor([9]), torch.tensor([3]), 4, 12, random=True)
    assert set(ranks[0, :3].tolist()) < set(range(9))
    assert len(set(ranks[0].tolist())) == 4


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("subsample", [1.0, 0.6])
@pytest.mark.parametrize("check", ["padding", "cross", "shapes", "state_dict", "stateless", "copies"])
def test_every_selection_keeps_the_promises(selection: str, subsample: float, check: str) -> None:
    spec = OrthoformerAttention.spec(landmarks=3, selection=selection, subsample=subsample)
    result = testing.run_check(check, spec)
    assert result.status == "passed", str(result)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_few_keys_are_softmax_attention(selection: str) -> None:
    q, k, v = qkv(5, 6, kv_heads=2)
    wide_k, wide_v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    out = part(landmarks=6, selection=selection)(q, k, v, Sides())
    torch.testing.assert_close(out, weights(q, wide_k) @ wide_v, **EXACT)


def test_landmarks_have_gradients_and_dropout_zeroes_the_result() -> None:
    q, k, v = (t.requires_grad_() for t in qkv())
    attention = part(landmarks=3, dropout=0.5)
    torch.autograd.gradcheck(lambda *given: attention(*given, Sides()), (q[:, :1], k[:, :1], v[:, :1]))
    out, kept = attention.train()(q, k, v, Sides()), attention.eval()(q, k, v, Sides())
    assert 0.3 < float((out == 0).double().mean()) < 0.7
    torch.testing.assert_close(out[out != 0], 2 * kept[out != 0], **EXACT)


def test_rows_do_not_influence_one_another() -> None:
    q, k, v = qkv()
    for selection in SELECTIONS:
        attention = part(landmarks=4, selection=selection, subsample=0.5)
        alone = attention(q[1:], k[1:], v[1:], Sides())
        torch.testing.assert_close(attention(q, k, v, Sides())[1:], alone, **EXACT)


def test_choices_are_checked() -> None:
    for fields in ({"selection": "orthogonol"}, {"subsample": 0.0}, {"subsample": 1.5}, {"landmarks": 0}):
        with pytest.raises(vf.ConfigError, match=next(iter(fields))):
            part(**fields)
