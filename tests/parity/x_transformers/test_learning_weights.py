"""Checkpoints of wrappers whose modules learn while a text is read, against the installed x-transformers."""

from typing import Any

import torch
from torch import nn

import variform.dialects.x_transformers as ours
from tests.parity.x_transformers.harness import upstream
from tests.parity.x_transformers.test_layers import wrapped
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


def test_modules_that_learn_stand_in_wrappers_upstream() -> None:
    path = "attn_layers.layers.1.1"

    def built(package: Any) -> nn.Module:
        net = wrapped("Decoder", {}, max_mem_len=4)(package)
        made: nn.Module = package.XLAutoregressiveWrapper(net, ttt_module_paths=(path,), tbptt_steps=2)
        return made

    theirs, mine = built(upstream), built(ours)
    tensors = theirs.state_dict()
    assert any(".module." in key for key in tensors)
    load_x_transformers(mine, tensors)
    written = to_x_transformers(mine)
    for key, tensor in tensors.items():
        torch.testing.assert_close(written[key.replace(".module.", ".")], tensor, msg=key)
