import pytest
import torch

import variform as vf
from variform.core.spec import Spec


def gpt(**changes: int) -> Spec:
    sizes = {"vocab_size": 11, "dim": 16, "depth": 2, "heads": 4, "max_seq_len": 9}
    return vf.models.gpt(**{**sizes, **changes})


def test_a_ready_part_is_used_as_it_is() -> None:
    first = vf.build(gpt())
    second = vf.build(gpt(), ready={"stacks.0": first.stacks[0], "embedding": first.embedding})
    assert second.stacks[0] is first.stacks[0]
    assert second.embedding is first.embedding
    assert second.head is not first.head
    second.head.load_state_dict(first.head.state_dict())
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(first(ids), second(ids))


def test_a_ready_part_of_another_spec_is_refused() -> None:
    first = vf.build(gpt(depth=1))
    with pytest.raises(vf.ConfigError, match=r"stacks\.0: the ready part was built from another spec"):
        vf.build(gpt(), ready={"stacks.0": first.stacks[0]})
