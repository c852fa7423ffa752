"""`DPO`: a reference that stays, parameters that are honest, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from variform.dialects.x_transformers import DPO, Decoder, Encoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


def net(stack: type = Decoder, **keywords: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = stack(dim=16, depth=1, heads=2, attn_dim_head=8)
    return TransformerWrapper(num_tokens=11, max_seq_len=9, attn_layers=layers, **keywords)


def ids(seed: int, length: int = 7) -> Tensor:
    return torch.randint(1, 11, (2, length), generator=torch.Generator().manual_seed(seed))


PROMPT = torch.arange(7) < torch.tensor([[2], [3]])


def loss(model: DPO) -> Tensor:
    found: Tensor = model(ids(1), ids(2), prompt_mask=PROMPT)
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_training_moves_the_policy_alone(tied: bool) -> None:
    model = DPO(net(tie_embedding=tied, emb_dropout=0.2), beta=1.0).train()
    assert not model.ref_model.training
    before = model.ref_model(ids(1))
    torch.testing.assert_close(model.eval()(ids(1), ids(2), prompt_mask=PROMPT), torch.tensor(2.0).log())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10):
        optimiser.zero_grad()
        loss(model).backward()
        optimiser.step()
    assert loss(model) < 0.5
    assert torch.equal(model.ref_model(ids(1)), before)
    names = [name for name, param in model.named_parameters() if param.requires_grad]
    assert len(names) == len(list(model.policy_model.parameters()))
    assert len(list(model.parameters())) == 2 * len(names)


def test_the_prompt_and_padding_do_not_count() -> None:
    model = DPO(net(), pad_id=0)
    with torch.no_grad():
        for param in model.policy_model.parameters():
            param += 0.1 * torch.randn_like(param)
    better, worse = ids(1), ids(2)
    better[:, 5:] = 0
    short = model(better[:, :5], worse[:, :5], prompt_mask=PROMPT[:, :5])
    long = model(better, torch.cat((worse[:, :5], torch.zeros(2, 2).long()), 1), prompt_mask=PROMPT)
    torch.testing.assert_close(long, short)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(KeywordError, match="Decoder"):
        DPO(net(Encoder))
    with pytest.raises(KeywordError, match="TransformerWrapper"):
        DPO(Decoder(dim=8, depth=1))
    with pytest.raises(KeywordError, match="beta"):
        DPO(net(), btea=0.2)
    with pytest.raises(KeywordError, match="positive"):
        DPO(net(), beta=-0.1)
    model = DPO(net())
    with pytest.raises(InputError, match="one shape"):
        model(ids(1), ids(2, 6), prompt_mask=PROMPT)
    with pytest.raises(InputError, match="prompt_mask is bool"):
        model(ids(1), ids(2), prompt_mask=PROMPT[:, :6])
    with pytest.raises(InputError, match="at least two"):
        model(ids(1, 1), ids(2, 1), prompt_mask=PROMPT[:, :1])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(again: Any) -> None:
    model = DPO(net(tie_embedding=True)).eval()
    twin = again(model)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    torch.testing.assert_close(loss(twin), torch.tensor(2.0).log())


def test_compiles_whole() -> None:
    model = DPO(net())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids(1), ids(2), prompt_mask=PROMPT), loss(model))


def test_weights_go_both_ways() -> None:
    one, other = DPO(net()), DPO(net())
    with torch.no_grad():
        for param in one.policy_model.parameters():
            param += 1.0
    load_x_transformers(other, to_x_transformers(one))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
