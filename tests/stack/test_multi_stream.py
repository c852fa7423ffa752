import pytest
import torch

import variform as vf
from variform.errors import ConfigError
from variform.parts.feedforward.mlp import MLP
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.stream_ops.history import BeginHistory, JoinSkip, KeepSkip
from variform.parts.stream_ops.padding import ZeroPadding
from variform.stack.model import Transformer
from variform.stack.multi_stream import MultiStreamStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

HYPER = "hyper_connection"


def stack_of(*layers: vf.Spec, executor: str = "plain") -> vf.Spec:
    return MultiStreamStack.spec(stack=LayerStack.spec(layers=layers, executor=executor), residual_streams=3)


def test_streams_are_spread_and_summed() -> None:
    torch.manual_seed(0)
    step = Sublayer.spec(body=MLP.spec(hidden=8), residual=HYPER)
    whole = vf.build(stack_of(step).replace(norm="layer_norm"), dim=8).double()
    whole.embedding.data.normal_()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    several = torch.stack([x + whole.embedding[s] for s in range(3)], 2)
    expected = whole.norm(whole.stack(several, {}).sum(2))
    torch.testing.assert_close(whole(x, {}), expected)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Sublayer.spec(body=MLP.spec()), "a plain sum joins one stream"),
        (TransformerLayer.spec(sublayers=[Sublayer.spec(body=MLP.spec(), residual="gru")]), "'gru' joins one stream"),
        (ZeroPadding.spec(body=MLP.spec()), "'zero_padding' takes one residual stream"),
    ],
)
def test_layers_of_one_stream_are_refused(layer: vf.Spec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vf.build(stack_of(layer), dim=8)


def test_a_residual_of_several_streams_needs_the_stack() -> None:
    with pytest.raises(ConfigError, match="residual_streams"):
        vf.build(LayerStack.spec(layers=[Sublayer.spec(body=MLP.spec(), residual=HYPER)]), dim=8)


def test_within_a_branch_there_is_one_stream() -> None:
    inner = Sublayer.spec(body=MLP.spec(), residual=HYPER)
    with pytest.raises(ConfigError, match="residual_streams"):
        vf.build(stack_of(Sublayer.spec(body=inner, residual=HYPER)), dim=8)


def test_reversible_layers_are_refused_with_a_reason() -> None:
    step = Sublayer.spec(body=MLP.spec(), residual=HYPER)
    with pytest.raises(ConfigError, match="'hyper_connection' changes the stream itself"):
        vf.build(stack_of(step, executor="reversible"), dim=8)


def test_checkpointed_layers_have_the_same_gradients() -> None:
    steps = [Sublayer.spec(body=body, residual=HYPER) for body in (MultiHead.spec(), MLP.spec())]
    found = {}
    for executor in ("plain", "checkpoint"):
        torch.manual_seed(0)
        whole = vf.build(stack_of(*steps, executor=executor), dim=8, heads=2).double().train()
        x = torch.randn(2, 5, 8, dtype=torch.float64)
        whole(x, {}).square().sum().backward()
        found[executor] = [parameter.grad for parameter in whole.parameters()]
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_skips_pass_all_streams() -> None:
    torch.manual_seed(0)
    step = Sublayer.spec(body=MLP.spec(hidden=8), residual=HYPER)
    spec = stack_of(BeginHistory.spec(stream="skips"), KeepSkip.spec(), step, JoinSkip.spec())
    whole = vf.build(spec, dim=8).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    _, _, inner, join = whole.stack.layers
    several = x.unsqueeze(2) + whole.embedding
    expected = join.combine(torch.cat((several, inner(several, {})), -1)).sum(2)
    torch.testing.assert_close(whole(x, {}), expected)


def test_decodes_in_chunks() -> None:
    torch.manual_seed(0)
    steps = [Sublayer.spec(body=body, residual=HYPER) for body in (MultiHead.spec(), MLP.spec())]
    spec = Transformer.spec(dim=8, heads=2, causal=True, embedding=None, stacks=[stack_of(*steps)], max_seq_len=16)
    model = vf.build(spec).double().eval()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        whole, state, parts = model(x), model.init_state(2, 7), []
        for chunk in x.split([3, 1, 3], 1):
            out, state = model(chunk, state=state)
            parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)
