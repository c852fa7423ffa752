"""Models of every family, and what really running them keeps and computes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import variform as vf
from tests.dialects.configaformers.programs import demo
from variform.core.spec import Spec
from variform.dialects.configaformers.model_builder import program_spec

TOKENS = {"vocab_size": 65, "dim": 48, "depth": 3, "heads": 4}

MODELS: dict[str, Callable[[], Spec]] = {
    "gpt": lambda: vf.models.gpt(**TOKENS, max_seq_len=64, bias=True),
    "gpt_tied": lambda: vf.models.gpt(**TOKENS, max_seq_len=64, tie=True),
    "gpt_dropout": lambda: vf.models.gpt(**TOKENS, max_seq_len=64, dropout=0.1),
    "bert": lambda: vf.models.bert(**TOKENS, max_seq_len=64),
    "vit": lambda: vf.models.vit(image_size=24, patch_size=8, dim=48, depth=3, heads=4, classes=10, drop_path=0.1),
    "llama": lambda: vf.models.llama(**TOKENS, kv_heads=2),
    "llama_limited": lambda: vf.models.llama(**TOKENS, max_seq_len=64),
    "seq2seq": lambda: vf.models.seq2seq(**TOKENS, max_seq_len=64, tie=True),
    "local": lambda: with_attention({"part": "local", "window": 9}),
    "linear": lambda: with_attention("linear"),
    "alibi": lambda: vf.override(vf.models.gpt(**TOKENS, max_seq_len=64), [f"{BODY}.position_bias=alibi"]),
    "dynamic_behind_memories": lambda: vf.override(
        with_attention({"part": "softmax", "memory": {"part": "learned", "count": 2}}),
        {f"{BODY}.position_bias": "dynamic"},
    ),
    "checkpoint": lambda: vf.override(vf.models.gpt(**TOKENS, max_seq_len=64), ["stacks.0.executor=checkpoint"]),
    "shared": lambda: shared_layers(),
    "program": lambda: program_spec(**demo(dim=48, heads=4, depth=3, vocab=65, rotate_dim=4)),
    "shared_checkpoint": lambda: shared_between_executors(),
}

BODY = "stacks.0.layers.*.sublayers.0.body"
SIZES = [(2, 33), (3, 17)]


def with_attention(attention: Any) -> Spec:
    return vf.override(vf.models.gpt(**TOKENS, max_seq_len=64), {f"{BODY}.attention": attention})


def shared_layers() -> Spec:
    spec = vf.models.gpt(**TOKENS, max_seq_len=64)
    layer = vf.Shared("layer", spec["stacks"][0]["layers"][0])
    return spec.replace(stacks=(spec["stacks"][0].replace(layers=(layer, layer, layer)),))


def shared_between_executors() -> Spec:
    spec = shared_layers()
    stack = spec["stacks"][0]
    return spec.replace(stacks=(stack.replace(executor="checkpoint"), stack))


def saved_bytes(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Bytes of the distinct memory that a real forward pass keeps, parameters and buffers apart."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(*args, **kwargs)
    del out
    return sum(storage.nbytes() for storage in kept.values())


def counted_flops(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """What torch's counter sees of a real forward pass; it has no formula for fused attention on CPU of its own."""

    def attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        heads = (k[0], q[1], *k[2:])
        return int(sdpa_flop_count(q, heads, (*heads[:3], v[3])))

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: attention}) as counter:
        model(*args, **kwargs)
    return counter.get_total_flops()


def state_bytes(state: Any) -> int:
    """Bytes of the distinct memory of a decode state."""
    storages: dict[int, int] = {}

    def scan(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                scan(item)
        elif isinstance(value, Tensor):
            storages[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()

    scan(state)
    return sum(storages.values())
