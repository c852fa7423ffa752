"""Instances of the library's own parts that cannot be guessed, and further variants of the important ones."""

from __future__ import annotations

from typing import Any

from variform import models
from variform.core.spec import Shared, Spec
from variform.parts.attention.block_sparse import BlockSparseAttention
from variform.parts.attention.favor import FavorAttention
from variform.parts.attention.patterned import BigBirdAttention, GlobalAttention, LongformerAttention, RandomAttention
from variform.parts.attention.rotated import RotatedAttention
from variform.parts.attention.shifted_windows import ShiftedWindowAttention
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.embedding.grid import ConvPatches, PatchMerging, PoolPatches
from variform.parts.embedding.image import ImageEmbedding
from variform.parts.embedding.patches import PatchEmbedding
from variform.parts.embedding.placed import PlacedEmbedding
from variform.parts.embedding.prefixed import PrefixedEmbedding
from variform.parts.embedding.summed import SummedEmbedding
from variform.parts.embedding.tokens import TokenEmbedding
from variform.parts.feedforward.conv2d import Conv2D
from variform.parts.feedforward.expert_choice import ExpertChoice
from variform.parts.feedforward.mixture_of_experts import MixtureOfExperts
from variform.parts.feedforward.mlp import GLU, MLP
from variform.parts.gate.branches import Branches
from variform.parts.head.heads import ClassifierHead, LinearHead, LMHead, PoolHead, TiedLMHead
from variform.parts.head.joined import JoinedHead
from variform.parts.head.pooled import AttentionPoolHead, PooledHead
from variform.parts.head.readouts import Readouts
from variform.parts.mixer.compositional import Compositional
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.mixer.fourier import FourierMix
from variform.parts.mixer.hyena import Hyena
from variform.parts.mixer.multi_head import MultiHead
from variform.parts.mixer.pooling import Pooling
from variform.parts.mixer.visual import Visual
from variform.parts.nonlinearity.clamps import SoftClamp, SoftClamped
from variform.parts.nonlinearity.composed import Chain, UserModule
from variform.parts.nonlinearity.solu import SoLU
from variform.parts.norm.adaptive import AdaptiveNorm
from variform.parts.norm.norms import LayerNorm
from variform.parts.position.absolute import LearnedPosition, SinusoidalPosition
from variform.parts.position.dynamic import DynamicBias
from variform.parts.position.polar import PolarRotation
from variform.parts.position.rotary import RotaryRotation
from variform.parts.position.some_heads import SomeHeads
from variform.parts.stream_ops.carry import AddStream, Publish
from variform.stack.condition import ConditionedStack
from variform.stack.encoder_decoder import EncoderDecoder
from variform.stack.model import Transformer
from variform.stack.recurrent import LoopedStack, RecycledStack
from variform.stack.registers import RegisterStack
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.testing.filling import minimal
from variform.testing.hosts import COMPANION, FACTS, FEED, Setting, in_layers, model_around
from variform.testing.samples import Sample, samples_for

SIZES: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4}
TEXT: dict[str, Any] = {"vocab_size": 11, "max_seq_len": 160, **SIZES}


@samples_for(MultiHead)
def _multi_head() -> list[Sample]:
    return [
        Sample(MultiHead.spec()),
        Sample(MultiHead.spec(kv_heads=2, dim_head=6, bias=True, out_bias=True), "grouped"),
        Sample(MultiHead.spec(rotation="rotary", q_norm="rms_norm", k_norm="rms_norm"), "rotary and norms"),
        Sample(MultiHead.spec(attention={"part": "local", "window": 5}, position_bias="alibi"), "local with alibi"),
        Sample(MultiHead.spec(attention="linear", kv_heads=2), "linear"),
    ]


@samples_for(FourierMix)
def _fourier_mix() -> list[Sample]:
    return [Sample(FourierMix.spec()), Sample(FourierMix.spec(groups=4, project=True), "in groups, with a map")]


@samples_for(Compositional)
def _compositional() -> list[Sample]:
    other = {"rules": 3, "dim_attn": 8, "dim_value": 9, "dim_selection": 5}
    return [
        Sample(Compositional.spec()),
        Sample(Compositional.spec(**other, score="mlp", q_compose=True, bias=False), "mlp, other sizes"),
        Sample(Compositional.spec(score="linear", tied=True), "linear, one map"),
    ]


@samples_for(Hyena)
def _hyena() -> list[Sample]:
    return [Sample(Hyena.spec()), Sample(Hyena.spec(order=3, width=8, layers=1, bands=2), "two convolutions")]


@samples_for(Pooling)
def _pooling() -> list[Sample]:
    other = Pooling.spec(pool_size=4, stride=2, padding=1, grid=(4, 6))
    return [Sample(Pooling.spec()), Sample(other, "strided, on a grid")]


@samples_for(Visual)
def _visual() -> list[Sample]:
    return [Sample(Visual.spec()), Sample(Visual.spec(grid=(3, 5)), "on a grid")]


@samples_for(ShiftedWindowAttention)
def _shifted_windows() -> list[Sample]:
    return [
        Sample(ShiftedWindowAttention.spec(window=2)),
        Sample(ShiftedWindowAttention.spec(grid=(6, 3), window=3, shift=1), "moved, on a grid"),
    ]


@samples_for(Conv2D)
def _conv2d() -> list[Sample]:
    return [Sample(Conv2D.spec(hidden=12)), Sample(Conv2D.spec(hidden=12, grid=(3, 5)), "on a grid")]


@samples_for(LayerNorm)
def _layer_norm() -> list[Sample]:
    return [Sample(LayerNorm.spec()), Sample(LayerNorm.spec(gain=False), "no gain")]


@samples_for(AdaptiveNorm)
def _adaptive() -> list[Sample]:
    return [Sample(AdaptiveNorm.spec()), Sample(AdaptiveNorm.spec(norm="rms_norm"), "of RMSNorm")]


@samples_for(ConditionedStack)
def _conditioned() -> list[Sample]:
    layers = [Sublayer.spec(body="multi_head", norm="adaptive"), Sublayer.spec(body=FEED, norm="adaptive")]
    stack = LayerStack.spec(layers=layers, norm="adaptive")
    return [Sample(ConditionedStack.spec(stack=stack, expansion=2), host=_conditioned_model)]


def _conditioned_model(spec: Spec, setting: Setting) -> Spec:
    inner = spec["stack"].replace(executor=setting.executor)
    return model_around(setting, [spec.replace(stack=inner)])


@samples_for(MLP)
def _mlp() -> list[Sample]:
    chain = Chain.spec(functions=[SoftClamp.spec(value=2.0), SoLU.spec()])
    return [
        Sample(MLP.spec()),
        Sample(MLP.spec(hidden=12, pre_act=chain, activation="none", norm="layer_norm"), "bounded SoLU"),
    ]


@samples_for(GLU)
def _glu() -> list[Sample]:
    before = Branches.spec(gate=SoftClamped.spec(value=2.0), up=SoftClamp.spec(value=2.0), gain=True)
    return [Sample(GLU.spec()), Sample(GLU.spec(hidden=12, before=before, activation="none"), "bounded")]


@samples_for(Branches)
def _branches() -> list[Sample]:
    return [Sample(Branches.spec(gate=SoLU.spec(), up=SoftClamp.spec(value=2.0), gain=True))]


@samples_for(Chain)
def _chain() -> list[Sample]:
    return [Sample(Chain.spec(functions=[SoftClamp.spec(value=2.0), SoLU.spec(norm=None)]))]


@samples_for(UserModule)
def _user_module() -> list[Sample]:
    return []  # no file can hold one


@samples_for(MixtureOfExperts)
def _mixture_of_experts() -> list[Sample]:
    return [
        Sample(MixtureOfExperts.spec(experts=[FEED] * 4)),
        Sample(
            MixtureOfExperts.spec(experts=[FEED, FEED.replace(bias=False)], k=1, common=FEED),
            "one of two, and one for all",
        ),
        Sample(MixtureOfExperts.spec(experts=[FEED] * 3, k=3, normalise=False, capacity=0.5), "within a capacity"),
    ]


@samples_for(ExpertChoice)
def _expert_choice() -> list[Sample]:
    return [
        Sample(ExpertChoice.spec(experts=[FEED] * 4)),
        Sample(ExpertChoice.spec(experts=[FEED] * 3, capacity=0.7, common=FEED), "less than one expert a token"),
    ]


@samples_for(SoftmaxAttention)
def _softmax() -> list[Sample]:
    return [Sample(SoftmaxAttention.spec())]


@samples_for(LocalAttention)
def _local() -> list[Sample]:
    return [Sample(LocalAttention.spec(window=5)), Sample(LocalAttention.spec(window=1), "itself alone")]


@samples_for(GlobalAttention)
def _global() -> list[Sample]:
    return [Sample(GlobalAttention.spec(tokens=(0, 3))), Sample(GlobalAttention.spec(tokens=(2,)), "not the first")]


@samples_for(LongformerAttention)
def _longformer() -> list[Sample]:
    return [Sample(LongformerAttention.spec(window=3, tokens=(0, 4)))]


@samples_for(BigBirdAttention)
def _bigbird() -> list[Sample]:
    return [
        Sample(BigBirdAttention.spec(block=2, global_blocks=1, random_blocks=2)),
        Sample(BigBirdAttention.spec(), "long blocks"),
    ]


@samples_for(BlockSparseAttention)
def _block_sparse() -> list[Sample]:
    size = 40
    own = [[abs(i - j) < 2 or j in (0, 3) or i == 2 for j in range(size)] for i in range(size)]
    rows = tuple("".join("01"[one] for one in row) for row in own)
    return [
        Sample(BlockSparseAttention.spec(layout=rows, block=4)),
        Sample(BlockSparseAttention.spec(layout=(rows, ("1" * size,) * size) * 2, block=5), "by head"),
    ]


@samples_for(RandomAttention)
def _random() -> list[Sample]:
    return [Sample(RandomAttention.spec(r=0.3)), Sample(RandomAttention.spec(), "few pairs")]


@samples_for(FavorAttention)
def _favor() -> list[Sample]:
    return [
        Sample(FavorAttention.spec()),
        Sample(
            FavorAttention.spec(feature_map="sm_orf", dim_features=7, normalize_inputs=True), "positive, normalised"
        ),
        Sample(FavorAttention.spec(feature_map="sm_hyp", epsilon=0.0), "hyperbolic"),
    ]


@samples_for(RotatedAttention)
def _rotated() -> list[Sample]:
    spec = RotatedAttention.spec(rotation=RotaryRotation.spec(max_seq_len=None))
    return [Sample(spec, host=in_layers(lambda one: Sublayer.spec(body=CrossMultiHead.spec(attention=one))))]


@samples_for(PolarRotation)
def _polar() -> list[Sample]:
    return [Sample(PolarRotation.spec()), Sample(PolarRotation.spec(uniform_start=True, scale=0.5), "with phases")]


@samples_for(SomeHeads)
def _some_heads() -> list[Sample]:
    rotary = RotaryRotation.spec(xpos=50.0, max_seq_len=None)
    return [Sample(SomeHeads.spec(rotation=rotary, q_heads=(3, 1), k_heads=(1, 3)))]


@samples_for(DynamicBias)
def _dynamic() -> list[Sample]:
    return [Sample(DynamicBias.spec(hidden=6)), Sample(DynamicBias.spec(hidden=6, log=True, norm=True), "log, normed")]


@samples_for(RotaryRotation)
def _rotary() -> list[Sample]:
    return [
        Sample(RotaryRotation.spec(xpos=50.0), "fading"),
        Sample(RotaryRotation.spec()),
        Sample(RotaryRotation.spec(layout="half", rotary_dim=2, max_seq_len=None), "half, without tables"),
        Sample(RotaryRotation.spec(interpolation=2.0, ntk=4.0), "interpolated"),
    ]


# ---- layers ----


def _carried(spec: Spec, setting: Setting) -> Spec:
    inner = [COMPANION] if setting.companion else [Sublayer.spec(body=FEED)]
    layers = [Publish.spec(stream="skip"), *inner, AddStream.spec(stream="skip")]
    return model_around(setting, [LayerStack.spec(layers=layers, executor=setting.executor)])


@samples_for(Publish)
def _publish() -> list[Sample]:
    return [Sample(Publish.spec(stream="skip"), host=_carried)]


@samples_for(AddStream)
def _add_stream() -> list[Sample]:
    return [Sample(AddStream.spec(stream="skip"), host=_carried)]


@samples_for(Sublayer)
def _sublayer() -> list[Sample]:
    full = Sublayer.spec(
        body=FEED, norm="rms_norm", branch_norm="layer_norm", out_norm="layer_norm", residual="layer_scale"
    )
    return [
        Sample(Sublayer.spec(body="multi_head")),
        Sample(full, "all slots"),
        Sample(Sublayer.spec(body=Sublayer.spec(body="multi_head")), "nested"),
    ]


@samples_for(LayerStack)
def _stack() -> list[Sample]:
    layer = Sublayer.spec(body="multi_head")
    twice = [Shared("inner", layer), Sublayer.spec(body=FEED), Shared("inner")]
    return [
        Sample(LayerStack.spec(layers=[layer], norm="layer_norm")),
        Sample(LayerStack.spec(layers=twice), "a layer used twice"),
    ]


# ---- embeddings and heads ----


@samples_for(TokenEmbedding)
def _tokens() -> list[Sample]:
    return [
        Sample(TokenEmbedding.spec()),
        Sample(TokenEmbedding.spec(position="learned", norm="layer_norm", scale=True), "position and norm"),
    ]


@samples_for(PlacedEmbedding)
def _placed() -> list[Sample]:
    return [Sample(PlacedEmbedding.spec(embedding="tokens", position="sinusoidal"))]


@samples_for(FeatureEmbedding)
def _features() -> list[Sample]:
    return [
        Sample(FeatureEmbedding.spec(position="sinusoidal")),
        Sample(FeatureEmbedding.spec(dim_in=5, bias=True, position="sinusoidal", norm=LayerNorm.spec()), "mapped"),
    ]


@samples_for(JoinedHead)
def _joined_head() -> list[Sample]:
    return [Sample(JoinedHead.spec(parts=[LMHead.spec(bias=True), LinearHead.spec(outputs=3)]))]


@samples_for(PatchEmbedding)
def _patches() -> list[Sample]:
    spec = PatchEmbedding.spec(image_size=6, patch_size=2, class_tokens=1, position="learned")
    return [Sample(spec, host=_images), Sample(PatchEmbedding.spec(image_size=6, patch_size=3), "bare", _images)]


def _images(spec: Spec, setting: Setting) -> Spec:
    stack = LayerStack.spec(layers=[COMPANION if setting.companion else Sublayer.spec(body=FEED)])
    return Transformer.spec(embedding=spec, stacks=[stack], dim=FACTS["dim"], heads=FACTS["heads"])


@samples_for(ImageEmbedding)
def _image() -> list[Sample]:
    conv = ConvPatches.spec(kernel=3, stride=2, padding=1, out=FACTS["dim"])
    placed = FeatureEmbedding.spec(class_tokens=1, position=LearnedPosition.spec(max_seq_len=10))
    return [
        Sample(ImageEmbedding.spec(patches=conv, height=6, width=7), host=_images),
        Sample(ImageEmbedding.spec(patches=conv, height=6, channels=1, embedding=placed), "class token", _images),
    ]


def _from_image(spec: Spec, setting: Setting) -> Spec:
    return _images(ImageEmbedding.spec(patches=spec, height=6, width=7, channels=4), setting)


@samples_for(ConvPatches)
def _conv_patches() -> list[Sample]:
    return [Sample(ConvPatches.spec(kernel=3, stride=2, padding=1, out=FACTS["dim"]), host=_from_image)]


@samples_for(PoolPatches)
def _pool_patches() -> list[Sample]:
    return [
        Sample(PoolPatches.spec(kernel=3, stride=2, padding=1, how=how, out=FACTS["dim"]), how, _from_image)
        for how in ("mean", "max")
    ]


@samples_for(PatchMerging)
def _patch_merging() -> list[Sample]:
    return [
        Sample(PatchMerging.spec(out=FACTS["dim"]), host=_from_image),
        Sample(PatchMerging.spec(factor=4, norm=None, bias=True), "by four, bare", _from_image),
    ]


@samples_for(LearnedPosition)
def _learned() -> list[Sample]:
    return [Sample(LearnedPosition.spec())]


@samples_for(SinusoidalPosition)
def _sinusoidal() -> list[Sample]:
    return [Sample(SinusoidalPosition.spec())]


def _tied(spec: Spec, setting: Setting) -> Spec:
    embedding = Shared("tokens", TokenEmbedding.spec())
    stack = LayerStack.spec(layers=[COMPANION], executor=setting.executor)
    return model_around(setting, [stack], embedding=embedding, head=spec.replace(embedding=embedding))


@samples_for(TiedLMHead)
def _tied_head() -> list[Sample]:
    return [Sample(minimal(TiedLMHead), host=_tied)]


@samples_for(ClassifierHead)
def _classifier() -> list[Sample]:
    return [Sample(ClassifierHead.spec(classes=3, pool=pool), pool) for pool in ("mean", "first", "last")]


@samples_for(PoolHead)
def _pool() -> list[Sample]:
    return [Sample(PoolHead.spec(pool=pool), pool) for pool in ("mean", "first", "last")]


@samples_for(LMHead)
def _lm() -> list[Sample]:
    return [Sample(LMHead.spec(bias=True))]


@samples_for(PrefixedEmbedding)
def _prefixed() -> list[Sample]:
    return [Sample(PrefixedEmbedding.spec(embedding="tokens", gradient=0.3))]


@samples_for(SummedEmbedding)
def _summed() -> list[Sample]:
    return [Sample(SummedEmbedding.spec(embedding=TokenEmbedding.spec(position="sinusoidal"), norm="layer_norm"))]


@samples_for(JoinedHead)
def _joined() -> list[Sample]:
    return [Sample(JoinedHead.spec(parts=["lm", LMHead.spec(vocab_size=3)]))]


@samples_for(Readouts)
def _readouts() -> list[Sample]:
    return [Sample(Readouts.spec(main="lm"))]


@samples_for(PooledHead)
def _pooled() -> list[Sample]:
    inner = LMHead.spec(vocab_size=3)
    return [Sample(PooledHead.spec(head=inner, pool=pool), pool) for pool in ("mean", "first", "last")]


@samples_for(AttentionPoolHead)
def _attention_pool() -> list[Sample]:
    deep = LayerStack.spec(layers=[Sublayer.spec(body="cross_attention"), Sublayer.spec(body=FEED)])
    return [
        Sample(AttentionPoolHead.spec(body="cross_attention", queries=3)),
        Sample(AttentionPoolHead.spec(body=deep, dim_query=8, head=LMHead.spec(vocab_size=3)), "layers and a head"),
    ]


@samples_for(RegisterStack)
def _registers() -> list[Sample]:
    inner = LayerStack.spec(layers=[Sublayer.spec(body="multi_head")])
    return [Sample(RegisterStack.spec(stack=inner, count=2))]


@samples_for(RecycledStack)
def _recycled() -> list[Sample]:
    inner = LayerStack.spec(layers=[Sublayer.spec(body="multi_head")])
    return [Sample(RecycledStack.spec(stack=inner, passes=3))]


@samples_for(LoopedStack)
def _looped() -> list[Sample]:
    inner = LayerStack.spec(layers=[Sublayer.spec(body="multi_head")], norm="layer_norm")
    return [Sample(LoopedStack.spec(stack=inner, passes=3, result="mean"))]


# ---- models ----


@samples_for(Transformer)
def _transformer() -> list[Sample]:
    return [
        Sample(models.gpt(**TEXT, tie=True), "gpt"),
        Sample(models.llama(**TEXT, kv_heads=2), "llama"),
        Sample(models.bert(**TEXT), "bert"),
        Sample(models.vit(image_size=6, patch_size=2, **SIZES, classes=3), "vit"),
    ]


@samples_for(EncoderDecoder)
def _encoder_decoder() -> list[Sample]:
    return [Sample(models.seq2seq(**TEXT), "seq2seq")]
