import torch
from torch import distributed

from variform.dialects.xformers.helpers.test_utils import init_torch_distributed_local


def test_a_process_group_of_one() -> None:
    assert not distributed.is_initialized()
    init_torch_distributed_local()
    init_torch_distributed_local()
    try:
        total = torch.ones(3)
        distributed.all_reduce(total)
        assert distributed.get_world_size() == 1
        assert total.tolist() == [1, 1, 1]
    finally:
        distributed.destroy_process_group()
