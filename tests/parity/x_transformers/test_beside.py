"""What calls give attentions beside their input, against the installed x-transformers'."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.x_transformers.harness import agree, pair
from variform.dialects.x_transformers import Decoder
from variform.dialects.x_transformers.errors import InputError
from variform.errors import ShapeError
from variform.parts.beside import Beside

B, L, LC, D = 2, 7, 5, 24
LAYERS: dict[str, Any] = {"dim": D, "depth": 2, "heads": 4, "attn_dim_head": 8}


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def further(heads: int, layers: int) -> list[tuple[Tensor, Tensor]]:
    return [(noise(B, heads, 3, 8, seed=n), noise(B, heads, 3, 8, seed=n + 9)) for n in range(layers)]


VALID = torch.tensor([[True, False, True], [False, True, True]])
CALLS: dict[str, dict[str, Any]] = {
    "each": {"self_attn_additional_kv": further(4, 2)},
    "masked": {"self_attn_additional_kv": further(4, 2), "additional_kv_mask": VALID},
    "top": {"self_attn_additional_kv": further(4, 1)},
    "bottom": {"self_attn_additional_kv": further(4, 1), "route_additional_kv_to_top": False},
    "more-than-layers": {"self_attn_additional_kv": further(4, 3)},
    "grouped": {"self_attn_additional_kv": further(2, 2), "detach_additional_kv": True},
    "residuals": {"self_attn_kv_residuals": noise(2, B, L, D)},
    "residual": {"self_attn_kv_residuals": noise(B, L, D)},
    "both": {"self_attn_kv_residuals": noise(2, B, L, D), "self_attn_additional_kv": further(2, 2)},
}


KEYWORDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"attn_kv_heads": 2, "rotary_pos_emb": True},
    "reversed": {"layers_execute_order": (2, 3, 0, 1)},
}


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
@pytest.mark.parametrize("call", CALLS)
def test_stacks(call: str, keywords: dict[str, Any]) -> None:
    theirs, mine = pair(lambda package: package.Decoder(**LAYERS, **keywords))
    agree(theirs, mine, lambda model: model(noise(B, L, D, seed=3), **CALLS[call]))


def language(package: Any, **keywords: Any) -> nn.Module:
    layers = package.Decoder(**LAYERS, **keywords)
    model: nn.Module = package.TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=layers)
    return model


@pytest.mark.parametrize("call", ["masked", "both"])
def test_models(call: str) -> None:
    theirs, mine = pair(language)
    ids = torch.randint(0, 20, (B, L), generator=torch.Generator().manual_seed(3))
    agree(theirs, mine, lambda model: model(ids, **CALLS[call]))


def test_contexts() -> None:
    theirs, mine = pair(lambda package: language(package, cross_attend=True))
    ids = torch.randint(0, 20, (B, L), generator=torch.Generator().manual_seed(3))
    call = {"context": noise(B, LC, D), "cross_attn_kv_residuals": noise(2, B, LC, D, seed=2)}
    agree(theirs, mine, lambda model: model(ids, **call))


@pytest.mark.parametrize("rows", [(), (B,)], ids=["all-rows", "each-row"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_masks_and_biases_of_grouped_heads(wrapped: bool, rows: tuple[int, ...]) -> None:
    mask = noise(*rows, 4, L, L, seed=4) > -0.5
    call = {"attn_mask": mask | torch.eye(L, dtype=torch.bool), "attn_bias": noise(*rows, 4, L, L, seed=5)}
    ids = torch.randint(0, 20, (B, L), generator=torch.Generator().manual_seed(3))
    if wrapped:
        theirs, mine = pair(lambda package: language(package, attn_kv_heads=2))
        agree(theirs, mine, lambda model: model(ids, **call))
    else:
        theirs, mine = pair(lambda package: package.Decoder(**LAYERS, attn_kv_heads=2))
        agree(theirs, mine, lambda model: model(noise(B, L, D, seed=3), **call))


@torch.no_grad()
def test_decoding_sees_further_keys_in_every_step() -> None:
    model = pair(language)[1].native
    mixers = [m for m in model.modules() if type(m).__name__ == "MultiHead"]
    given = {mixer: Beside(*kv, VALID) for mixer, kv in zip(mixers, further(4, 2), strict=True)}
    ids = torch.randint(0, 20, (B, L), generator=torch.Generator().manual_seed(3))
    whole, state, found = model(ids, beside=given), model.init_state(B, L), []
    for chunk in ids.split([3, 1, 1, 2], 1):
        out, state = model(chunk, state=state, beside=given)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("keywords", "call", "message"),
    [
        ({}, {"self_attn_kv_residuals": noise(3, B, L, D)}, "are 3, and there are 2"),
        ({}, {"self_attn_additional_kv": further(3, 2)}, "3 heads, which does not divide"),
        ({}, {"additional_kv_mask": VALID}, "was not passed"),
        ({"weight_tie_layers": True}, {"self_attn_additional_kv": further(4, 2)}, "runs several times"),
        ({}, {"self_attn_additional_kv": noise(1)}, "a list of keys and values"),
        ({"attn_kv_heads": (1, 2)}, {"attn_mask": noise(4, L, L) > 0}, "key heads differ"),
        ({}, {"cross_attn_kv_residuals": noise(B, L, D)}, "are 1, and there are 0"),
        ({}, {"self_attn_additional_kv": [(noise(B, 4, 3, 5), noise(B, 4, 3, 8))]}, "5 and 8 features a head, not 8"),
        ({}, {"self_attn_additional_kv": further(4, 2), "additional_kv_mask": VALID[:, :2]}, "2 further keys"),
        ({"layers_execute_order": (1, 3)}, {"mems": [noise(B, 2, D)]}, "no layer that runs attends"),
    ],
)
def test_what_does_not_fit_is_refused(keywords: dict[str, Any], call: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ShapeError), match=message):
        Decoder(**LAYERS, **keywords).double()(noise(B, L, D), **call)
