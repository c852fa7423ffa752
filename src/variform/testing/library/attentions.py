"""Instances of attentions."""

from __future__ import annotations

from variform.parts.attention.block_sparse import BlockSparseAttention
from variform.parts.attention.favor import FavorAttention
from variform.parts.attention.patterned import BigBirdAttention, GlobalAttention, LongformerAttention, RandomAttention
from variform.parts.attention.rotated import RotatedAttention
from variform.parts.attention.shifted_windows import ShiftedWindowAttention
from variform.parts.attention.softmax import LocalAttention, SoftmaxAttention
from variform.parts.mixer.cross import CrossMultiHead
from variform.parts.position.rotary import RotaryRotation
from variform.stack.sublayer import Sublayer
from variform.testing.hosts import in_layers
from variform.testing.samples import Sample, samples_for


@samples_for(ShiftedWindowAttention)
def _shifted_windows() -> list[Sample]:
    return [
        Sample(ShiftedWindowAttention.spec(window=2)),
        Sample(ShiftedWindowAttention.spec(grid=(6, 3), window=3, shift=1), "moved, on a grid"),
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
