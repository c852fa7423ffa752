from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import variform as vf
from variform.parts.embedding.summed import SummedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding

IDS = torch.tensor([[1, 2, 3], [4, 0, 2]])


def built(**options: Any) -> Any:
    further = [TokenEmbedding.spec(vocab_size=3), TokenEmbedding.spec(vocab_size=4)]
    spec = SummedEmbedding.spec(embedding="tokens", further=further, names=("kind", "speaker"), **options)
    return vf.build(spec, vocab_size=5, dim=8).double()


def further() -> dict[str, Tensor]:
    return {"kind": IDS % 3, "speaker": IDS % 4}


def test_the_sum_and_its_norm() -> None:
    part = built(norm="layer_norm")
    whole = part.embedding.weight[IDS] + part.further[0].weight[IDS % 3] + part.further[1].weight[IDS % 4]
    found = part(IDS, {"further_ids": further()})
    torch.testing.assert_close(found, F.layer_norm(whole, (8,), part.norm.weight, part.norm.bias))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needed in every call: kind, speaker"),
        ({"kind": IDS % 3}, "needed in every call: speaker"),
        ({"kynd": IDS, "speaker": IDS}, "did you mean 'kind'"),
        ({"kind": IDS[:, :2], "speaker": IDS}, "have shape"),
    ],
)
def test_what_does_not_fit(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(vf.ShapeError, match=message):
        built()(IDS, {"further_ids": given})


@pytest.mark.parametrize("names", [("kind",), ("kind", "kind")])
def test_every_table_has_a_name(names: tuple[str, ...]) -> None:
    spec = SummedEmbedding.spec(embedding="tokens", further=["tokens", "tokens"], names=names)
    with pytest.raises(vf.ConfigError, match="one name of its own"):
        vf.build(spec, vocab_size=5, dim=8)


def test_added_features_and_unit_vectors() -> None:
    part = vf.build(TokenEmbedding.spec(unit=True, init_std=1e-5), vocab_size=5, dim=8).double()
    torch.testing.assert_close(part(IDS, {}).norm(dim=-1), torch.ones(2, 3, dtype=torch.float64))
    more = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(part(IDS, {"added": more}), part(IDS, {}) + more)
    with pytest.raises(vf.ShapeError, match="what is added has shape"):
        part(IDS, {"added": more[:, :2]})


def test_a_model_decodes_with_further_ids() -> None:
    stack = {"part": "stack", "layers": [{"part": "sublayer", "body": "multi_head"}]}
    model = {"part": "transformer", "embedding": built().spec, "stacks": [stack], "head": "lm", "causal": True}
    whole = vf.build({**model, "dim": 8, "heads": 2, "vocab_size": 5}).double().eval()
    with torch.no_grad():
        expected = whole(IDS, further_ids=further())
        state = whole.init_state(2, 3)
        outs = []
        for step in range(3):
            cut = {name: ids[:, step : step + 1] for name, ids in further().items()}
            out, state = whole(IDS[:, step : step + 1], further_ids=cut, state=state)
            outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), expected)
