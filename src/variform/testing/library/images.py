"""Instances of what makes tokens of images."""

from __future__ import annotations

from variform.core.spec import Spec
from variform.parts.embedding.features import FeatureEmbedding
from variform.parts.embedding.grid import ConvPatches, PatchMerging, PoolPatches
from variform.parts.embedding.image import ImageEmbedding
from variform.parts.embedding.patches import PatchEmbedding
from variform.parts.position.absolute import LearnedPosition
from variform.stack.model import Transformer
from variform.stack.stack import LayerStack
from variform.stack.sublayer import Sublayer
from variform.testing.hosts import COMPANION, FACTS, FEED, Setting
from variform.testing.samples import Sample, samples_for


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
