"""Nystrom attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention.base import AttentionConfig
from variform.dialects.xformers.components.attention.masking import AttMask
from variform.dialects.xformers.components.attention.native import NativeAttention
from variform.dialects.xformers.components.attention.registry import ATTENTION_REGISTRY, register_attention
from variform.dialects.xformers.errors import CallError
from variform.ops.shapes import unflatten
from variform.parts.attention.nystrom import NystromAttention as NativeNystrom

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]


@dataclass
class NystromSelfAttentionConfig(AttentionConfig):
    """The configuration of `NystromAttention`."""

    num_heads: int | None = None
    num_landmarks: int | None = None
    landmark_pooling: nn.Module | None = None
    causal: bool | None = None
    pinverse_original_init: bool | None = None
    inv_iterations: int | None = None
    v_skip_connection: nn.Module | None = None
    conv_kernel_size: int | None = None
    use_razavi_pinverse: bool | None = None


@register_attention("nystrom", NystromSelfAttentionConfig)
class NystromAttention(NativeAttention):
    """Softmax attention through landmarks (Nystromformer, Xiong et al. 2021, arXiv:2102.03902).

    With `causal` the construction of the native part, which does not look ahead. Its inverses are of single numbers:
    the fields about the inverse then change nothing.

    Args:
        dropout: probability of zeroing a number of the result, in training.
        num_heads: number of heads.
        num_landmarks: how many landmarks there are; at most that many tokens are softmax attention.
        landmark_pooling: makes landmarks of queries and keys [N, S, D], in place of means over segments.
        causal: only the past.
        use_razavi_pinverse: invert by iteration, not by singular values.
        pinverse_original_init: begin the iteration with one factor for all heads of a sequence.
        inv_iterations: how often the inverse is improved.
        v_skip_connection: makes of the values [B, heads, S, D] what is added to the result.
        conv_kernel_size: add a convolution of the values of this size, where there is no `v_skip_connection`.
        **superset: keys of other attentions, listed in `dropped`.
    """

    stands_for: ClassVar[str] = "nystrom"

    def __init__(
        self,
        dropout: Rate,
        num_heads: Size,
        num_landmarks: Size = 64,
        landmark_pooling: nn.Module | None = None,
        causal: bool = False,
        use_razavi_pinverse: bool = True,
        pinverse_original_init: bool = False,
        inv_iterations: Annotated[int, Field(ge=0)] = 6,
        v_skip_connection: nn.Module | None = None,
        conv_kernel_size: Size | None = None,
        **superset: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "superset", "__class__")}
        verify(NystromAttention, **given)
        spec = NativeNystrom.spec(
            landmarks=num_landmarks,
            causal=causal,
            dropout=dropout,
            inverse="iterative" if use_razavi_pinverse else "exact",
            iterations=inv_iterations,
            original_init=pinverse_original_init,
            conv_kernel=conv_kernel_size if v_skip_connection is None else None,
            heads=num_heads,
            pooling=landmark_pooling,
            skip=v_skip_connection,
        )
        super().__init__(spec)
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "nystrom")
        self.requires_separate_masks = True
        self.num_heads = num_heads
        self.num_landmarks = num_landmarks

    def forward(  # type: ignore[override]  # upstream's order of arguments
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_padding_mask: Tensor | None = None,
        att_mask: AttMask | None = None,
        *,
        mask: AttMask | None = None,
    ) -> Tensor:
        """Attend, as called on its own; with folded heads the mask has a line for each sequence, or for each head.

        Shapes:
            q, k, v: [B * heads, S, D] or [B, heads, S, D]; the result has q's form
            key_padding_mask: [B, Sk], [B * heads, Sk] or [B * heads, 1, Sk]

        Raises:
            CallError: a mask of another shape, or any `att_mask`.
        """
        if q.dim() != 3:
            return super().forward(q, k, v, att_mask, key_padding_mask, mask=mask)
        heads, padding = self._by_sequence(q.shape[0], key_padding_mask)
        q, k, v = (unflatten(t, 0, (-1, heads)) for t in (q, k, v))
        return super().forward(q, k, v, att_mask, padding, mask=mask).flatten(0, 1)

    def _by_sequence(self, rows: int, padding: Tensor | None) -> tuple[int, Tensor | None]:
        """How many heads are folded into `rows`, and the mask with a line for each sequence."""
        heads = 1 if rows % self.num_heads else self.num_heads
        if padding is None or padding.dim() == 1:
            return heads, padding
        if padding.dim() == 3 and padding.shape[1] == 1:
            padding = padding.squeeze(1)
        lines = padding.shape[0]
        if padding.dim() != 2 or rows % lines:
            raise CallError(f"key_padding_mask {list(padding.shape)} has no line for each of {rows} rows, or sequences")
        if lines < rows:
            return (heads, padding) if lines == 1 else (rows // lines, padding)
        by_head = unflatten(padding, 0, (-1, heads))
        same = bool((by_head == by_head[:, :1]).all())
        return (heads, by_head[:, 0]) if same else (1, padding)
