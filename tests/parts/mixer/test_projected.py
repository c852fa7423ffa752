"""Attention with any maps into and out of the heads, against formulas and against multi-head attention, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import variform as vf
from variform.errors import ConfigError, ShapeError
from variform.parts.attention.prefix import PrefixAttention
from variform.parts.attention.softmax import LocalAttention
from variform.parts.attention.values import OrthogonalValues
from variform.parts.beside import Beside
from variform.parts.key_values.latent import LatentKeyValues
from variform.parts.key_values.linear import LinearKeyValues
from variform.parts.kinds import Sides
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.latents import attend_absorbed, attend_latents
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.projected import ProjectedAttention
from variform.parts.mixer.projected_cross import ProjectedCrossAttention
from variform.parts.position.rotary import RotaryRotation
from variform.parts.projection.maps import GatedProjection, IdentityProjection, LinearProjection
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer

SIZES: dict[str, Any] = {"dim": 12, "heads": 4, "dim_head": 6, "causal": True}
EXACT = {"rtol": 0.0, "atol": 1e-12}


def made(spec: vf.Spec, **sizes: Any) -> Any:
    torch.manual_seed(0)
    part: nn.Module = vf.build(spec, **{**{k: SIZES[k] for k in ("dim", "heads", "causal")}, **sizes}).double()
    for param in part.parameters():
        param.data += 0.3 * torch.randn_like(param)
    return part


def features(length: int = 7, dim: int = 12) -> Tensor:
    return torch.randn(2, length, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def causal(scores: Tensor) -> Tensor:
    future = torch.ones(scores.shape[-2:]).triu(1).bool()
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.view(2, x.shape[1], heads, -1).transpose(1, 2)


def turned(x: Tensor, count: int) -> Tensor:
    """The first `count` features rotated, pair by pair."""
    steps = torch.arange(x.shape[2], dtype=torch.float64)
    out = x.clone()
    for i in range(count // 2):
        angle = steps * 10000.0 ** (-2 * i / count)
        a, b = x[..., 2 * i], x[..., 2 * i + 1]
        out[..., 2 * i], out[..., 2 * i + 1] = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
    return out


def test_plain_maps_are_multi_head_attention() -> None:
    rotation = RotaryRotation.spec()
    ours = made(ProjectedAttention.spec(kv_heads=2, rotation=rotation, dim_head=6))
    plain = made(MultiHead.spec(kv_heads=2, rotation=rotation, dim_head=6))
    pairs = ((plain.q, ours.query.out), (plain.k, ours.keys.k), (plain.v, ours.keys.v), (plain.out, ours.output.out))
    for theirs, mine in pairs:
        mine.weight.data.copy_(theirs.weight)
    x = features()
    torch.testing.assert_close(ours(x, {}), plain(x, {}), **EXACT)


def test_plain_maps_are_cross_attention() -> None:
    sizes = {"kv_heads": 2, "dim_head": 6, "dim_context": 5}
    ours, plain = made(ProjectedCrossAttention.spec(**sizes)), made(CrossMultiHead.spec(**sizes))
    pairs = ((plain.q, ours.query.out), (plain.k, ours.keys.k), (plain.v, ours.keys.v), (plain.out, ours.output.out))
    for theirs, mine in pairs:
        mine.weight.data.copy_(theirs.weight)
    streams = {"context": features(9, 5), "context_mask": torch.arange(9).expand(2, 9) < 6}
    torch.testing.assert_close(ours(features(), streams), plain(features(), streams), **EXACT)


def test_values_of_another_size_and_a_gated_way_out() -> None:
    values = LinearKeyValues.spec(dim_value=5)
    part = made(ProjectedAttention.spec(dim_head=6, keys=values, output=GatedProjection.spec()))
    x = features()
    q, k = (heads_of(x @ w.T, 4) for w in (part.query.out.weight, part.keys.k.weight))
    attended = causal(q @ k.mT / 6**0.5) @ heads_of(x @ part.keys.v.weight.T, 4)
    value, gate = (attended.transpose(1, 2).flatten(2) @ part.output.out.weight.T).chunk(2, -1)
    torch.testing.assert_close(part(x, {}), value * gate.sigmoid(), **EXACT)


def test_latents_with_own_features_of_all_heads() -> None:
    """DeepSeek's layout: [own, rotated; from the latent] a key, the own part shared by all heads."""
    keys = LatentKeyValues.spec(dim_latent=5, own_features=2, norm="rms_norm")
    part = made(ProjectedAttention.spec(dim_head=6, keys=keys.replace(dim_value=3), rotation=RotaryRotation.spec()))
    x = features()
    c = part.keys.norm(x @ part.keys.latent.weight.T)
    own = turned((x @ part.keys.own.weight.T).unsqueeze(1), 2)
    k = torch.cat((own.expand(-1, 4, -1, -1), heads_of(c @ part.keys.k.weight.T, 4)), -1)
    q = turned(heads_of(x @ part.query.out.weight.T, 4)[..., :2], 2)
    q = torch.cat((q, heads_of(x @ part.query.out.weight.T, 4)[..., 2:]), -1)
    attended = causal(q @ k.mT / 6**0.5) @ heads_of(c @ part.keys.v.weight.T, 4)
    expected = attended.transpose(1, 2).flatten(2) @ part.output.out.weight.T
    torch.testing.assert_close(part(x, {}), expected, **EXACT)


def test_latents_with_own_heads() -> None:
    """x-transformers' layout: the last key heads are made of the token, and they alone are rotated."""
    keys = LatentKeyValues.spec(dim_latent=5, own_heads=1)
    part = made(ProjectedAttention.spec(dim_head=6, keys=keys, rotation=RotaryRotation.spec()))
    x = features()
    c = x @ part.keys.latent.weight.T
    own = turned((x @ part.keys.own.weight.T).unsqueeze(1), 6)
    k = torch.cat((heads_of(c @ part.keys.k.weight.T, 3), own), 1)
    q = heads_of(x @ part.query.out.weight.T, 4)
    q = torch.cat((q[:, :3], turned(q[:, 3:], 6)), 1)
    attended = causal(q @ k.mT / 6**0.5) @ heads_of(c @ part.keys.v.weight.T, 4)
    expected = attended.transpose(1, 2).flatten(2) @ part.output.out.weight.T
    torch.testing.assert_close(part(x, {}), expected, **EXACT)


LAYOUTS: dict[str, dict[str, Any]] = {
    "latent": {"keys": LatentKeyValues.spec(dim_latent=5), "kv_heads": 2},
    "own-features": {"keys": LatentKeyValues.spec(dim_latent=5, own_features=2, norm="rms_norm")},
    "all-own-features": {"keys": LatentKeyValues.spec(dim_latent=5, own_features=6)},
    "own-heads": {"keys": LatentKeyValues.spec(dim_latent=5, own_heads=3, dim_value=4)},
    "own-heads-grouped": {"keys": LatentKeyValues.spec(dim_latent=5, own_heads=1), "kv_heads": 2},
    "all-own-heads": {"keys": LatentKeyValues.spec(dim_latent=5, own_heads=4)},
}


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_absorbed_products_are_those_of_expanded_keys(layout: str, scale: float | None) -> None:
    attention = {"part": "softmax", "scale": scale}
    part = made(ProjectedAttention.spec(dim_head=6, attention=attention, **LAYOUTS[layout]), causal=False)
    x = features()
    first, second = part.keys(x, x)
    q = heads_of(part.query(x), 4)
    expected = attend_latents(part.keys, part.attention, None, None, (q, first, second), Sides())
    found = attend_absorbed(part.keys, part.attention, (q, first, second), Sides())
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_decoding_equals_one_pass_with_a_smaller_state(layout: str, rotated: bool) -> None:
    rotation = RotaryRotation.spec() if rotated else None
    body = ProjectedAttention.spec(dim_head=6, rotation=rotation, **LAYOUTS[layout])
    stack = [LayerStack.spec(layers=[Sublayer.spec(body=body)])]
    model = made(Transformer.spec(embedding=None, stacks=stack, max_seq_len=16, causal=True))
    x = features(11)
    with torch.no_grad():
        whole, state = model(x), model.init_state(2, 11)
        kept = sum(t.shape[1] * t.shape[3] for t in tree_leaves(state["parts"]))
        found = []
        for chunk in x.split([1, 1, 4, 1, 3, 1], 1):
            out, state = model(chunk, state=state)
            found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=1e-10)
    keys: Any = LAYOUTS[layout]["keys"].args
    assert kept == 5 + keys.get("own_features", 0) + 6 * keys.get("own_heads", 0)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_beside_further_keys(layout: str) -> None:
    body = ProjectedAttention.spec(dim_head=6, **LAYOUTS[layout])
    stack = [LayerStack.spec(layers=[Sublayer.spec(body=body)])]
    model = made(Transformer.spec(embedding=None, stacks=stack, max_seq_len=16, causal=True))
    mixer = next(module for module in model.modules() if isinstance(module, ProjectedAttention))
    x, k, v = features(5), torch.randn(2, 4, 3, 6).double(), torch.randn(2, 4, 3, mixer.dim_value).double()
    beside = {mixer: Beside(k, v)}
    whole, state, found = model(x, beside=beside), model.init_state(2, 5), []
    for chunk in x.split([1, 1, 3], 1):
        out, state = model(chunk, beside=beside, state=state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=0, atol=1e-10)


def test_latents_of_a_context_of_another_width() -> None:
    keys = LatentKeyValues.spec(dim_latent=5, own_heads=1)
    part = made(ProjectedCrossAttention.spec(dim_head=6, dim_context=9, keys=keys))
    x, context = features(), features(8, 9)
    state = part.init_state(2, 7, {"context": context})
    assert state["k"].shape == (2, 1, 8, 5)
    assert state["v"].shape == (2, 1, 8, 6)
    whole = part(x, {"context": context})
    one = part(x[:, 3:4], {"state": state})[0]
    torch.testing.assert_close(one, whole[:, 3:4], **EXACT)
    with pytest.raises(ShapeError, match="must have 9 features"):
        part(x, {"context": x})


@torch.no_grad()
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("attention", [LocalAttention.spec(window=3), OrthogonalValues.spec(), PrefixAttention.spec()])
def test_attentions_that_keep_keys_themselves_decode_behind_latents(
    attention: vf.Spec, layout: str, rotated: bool
) -> None:
    rotation = RotaryRotation.spec() if rotated else None
    body = ProjectedAttention.spec(dim_head=6, rotation=rotation, attention=attention, **LAYOUTS[layout])
    stack = [LayerStack.spec(layers=[Sublayer.spec(body=body)])]
    model = made(Transformer.spec(embedding=None, stacks=stack, max_seq_len=16, causal=True))
    x, state, found = features(11), model.init_state(2, 11), []
    for chunk in x.split([1, 1, 4, 1, 3, 1], 1):
        out, state = model(chunk, state=state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), model(x), rtol=0, atol=1e-10)


def test_features_out_of_another_number() -> None:
    part = made(ProjectedAttention.spec(dim_head=6, output=LinearProjection.spec(outputs=7)))
    assert part(features(), {}).shape == (2, 7, 7)


def test_a_branch_has_the_features_that_it_joins() -> None:
    body = ProjectedAttention.spec(output=LinearProjection.spec(outputs=7))
    with pytest.raises(ConfigError, match=r"body: the branch joins a stream of 12 features"):
        vf.resolve(Sublayer.spec(body=body), dim=12, heads=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": IdentityProjection.spec()}, "24 features that come in must go out"),
        ({"keys": LatentKeyValues.spec(dim_latent=5, own_heads=5)}, "4 key heads in all"),
        ({"keys": LatentKeyValues.spec(dim_latent=5, own_features=7)}, "6 features in all"),
        ({"keys": LatentKeyValues.spec(dim_latent=5, own_features=2, own_heads=1)}, "one of the two"),
        ({"kv_heads": 3}, "must divide heads"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(ProjectedAttention.spec(dim_head=6, **fields))
