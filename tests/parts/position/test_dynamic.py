import torch
from torch import Tensor

from variform.ops.attention.call import Call
from variform.ops.attention.reference import reference
from variform.ops.attention.select import attention
from variform.parts.position.dynamic import DynamicBias

HEADS = 3


def part(**settings: object) -> DynamicBias:
    torch.manual_seed(0)
    return DynamicBias(heads=HEADS, hidden=5, **settings).double()  # type: ignore[arg-type]


def pair_by_pair(bias: DynamicBias, q_at: Tensor, k_at: Tensor) -> Tensor:
    rows = [[bias.of_distances((i - j)[None])[0] for j in k_at] for i in q_at]
    return torch.stack([torch.stack(row) for row in rows]).permute(2, 0, 1)


def test_every_way_gives_the_bias_of_each_pair() -> None:
    bias = part(log=True, norm=True, layers=3)
    gaps, far = torch.tensor([0, 1, 2, 3, 7, 8]), torch.tensor([0, 2000])
    for q_at, k_at in ((torch.arange(6), torch.arange(6)), (gaps, gaps), (gaps[-1:], gaps), (far, gaps), (far, far)):
        wanted = pair_by_pair(bias, q_at, k_at)
        torch.testing.assert_close(bias().additive(q_at, k_at, torch.float64)[0], wanted)
    wanted = pair_by_pair(bias, torch.arange(4), torch.arange(6))
    torch.testing.assert_close(bias().aligned(4, 6, torch.float64, torch.device("cpu"))[0], wanted)
    rows = torch.stack((gaps, gaps.flip(0)))
    torch.testing.assert_close(bias().additive(rows, gaps, torch.float64)[1], pair_by_pair(bias, rows[1], gaps))


def test_the_network_is_called_once_a_distance() -> None:
    bias, seen = part(), []
    asked = bias.of_distances
    bias.of_distances = lambda distances: seen.append(len(distances)) or asked(distances)  # type: ignore[method-assign]
    q = torch.randn(2, HEADS, 40, 4, dtype=torch.float64)
    attention(Call(q, q, q, scores=(bias(),)))
    positions = torch.arange(40) + 7
    attention(Call(q, q, q, q_positions=positions, k_positions=positions, scores=(bias(),)))
    assert seen == [79, 79]


def test_values_and_gradients_are_those_of_scores_written_out() -> None:
    bias = part(norm=True)
    q, k, v = (torch.randn(2, HEADS, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    direction = torch.randn(2, HEADS, 7, 4, dtype=torch.float64)
    table = pair_by_pair(bias, torch.arange(7), torch.arange(7))
    wanted = torch.softmax(q @ k.mT / 2 + table, -1) @ v
    inputs = [q, k, v, *bias.parameters()]
    gradients = torch.autograd.grad((wanted * direction).sum(), inputs)
    for run in (attention, reference):
        out = run(Call(q, k, v, scores=(bias(),)))
        torch.testing.assert_close(out, wanted)
        for found, expected in zip(torch.autograd.grad((out * direction).sum(), inputs), gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def test_compiled_it_is_the_same() -> None:
    bias = part()
    q = torch.randn(2, HEADS, 5, 4, dtype=torch.float64)
    at = torch.tensor([0, 1, 4, 5, 6])

    def run(q: Tensor, at: Tensor | None) -> Tensor:
        return attention(Call(q, q, q, q_positions=at, k_positions=at, scores=(bias(),)))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for given in (None, at):
        torch.testing.assert_close(compiled(q, given), run(q, given))
