import pytest

import variform as vf
from variform.parts.attention.softmax import SoftmaxAttention
from variform.parts.feedforward.mlp import MLP
from variform.parts.head.heads import LMHead
from variform.parts.kinds import FeedForward, Streams
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.norm.norms import LayerNorm
from variform.stack.decodable import undecodable
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer, TransformerLayer

SIZES = {"vocab_size": 65, "dim": 16, "depth": 2, "heads": 2}
GPT = vf.models.gpt(**SIZES, max_seq_len=32)


def test_causal_models_decode() -> None:
    assert undecodable(vf.resolve(GPT)) == []
    assert undecodable(vf.resolve(vf.models.seq2seq(**SIZES, max_seq_len=32))) == []


def test_what_looks_ahead_is_named() -> None:
    spec = vf.resolve(vf.override(GPT, ["stacks.0.layers.1.sublayers.0.body.attention.causal=false"]))
    (problem,) = undecodable(spec)
    assert problem.path == "stacks.0.layers.1.sublayers.0.body.attention"
    with pytest.raises(vf.ConfigError, match=r"layers\.1\.sublayers\.0\.body\.attention.*not causal"):
        vf.build(spec).init_state(1)


def test_what_has_no_state_is_named_once() -> None:
    class Crossing(FeedForward):
        """Looks at other tokens."""

        can = vf.Can(decode=False)

        def forward(self, x: object, streams: Streams) -> object:
            return x

    spec = vf.resolve(vf.override(GPT, {"stacks.0.layers.0.sublayers.1.body": Crossing.spec()}))
    (problem,) = undecodable(spec)
    assert problem.path == "stacks.0.layers.0.sublayers.1.body"
    assert "has no decode state" in problem.message


def test_models_constructed_directly_are_checked_too() -> None:
    def model(causal: bool) -> Transformer:
        attention = SoftmaxAttention(causal=causal)
        mixer = MultiHead(dim=8, heads=2, attention=attention, init_std=None, writes=None)
        step = Sublayer(body=mixer, norm=LayerNorm(dim=8))
        up = Sublayer(body=MLP(dim=8, init_std=None, writes=None), norm=LayerNorm(dim=8))
        layer = TransformerLayer([step, up], dim=8, heads=2)
        stack = LayerStack([layer], dim=8, heads=2, causal=causal)
        head = LMHead(vocab_size=5, dim=8, init_std=None)
        return Transformer(None, [stack], head, 8, 2, causal, 16, 5, None, None, None)

    assert model(causal=True).init_state(1)["parts"]
    with pytest.raises(vf.ConfigError, match=r"stacks\.0\.layers\.0\.sublayers\.0\.body\.attention.*not causal"):
        model(causal=False).init_state(1)
