"""Multi-head attention around any attention mechanism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from variform.core.spec import Spec
from variform.dialects.xformers.building import superset_keys, verify
from variform.dialects.xformers.components.attention import ATTENTION_REGISTRY, Attention
from variform.dialects.xformers.components.attention.masking import AttMask, Sizes, both, read_padding
from variform.dialects.xformers.components.attention.merging import call_foreign
from variform.dialects.xformers.components.attention.mixing import NativeMixer
from variform.dialects.xformers.components.attention.native import NativeAttention
from variform.dialects.xformers.components.input_projection import InputProjection, InputProjectionConfig
from variform.dialects.xformers.components.positional_embedding.rotary import RotaryEmbedding
from variform.dialects.xformers.errors import CallError, Wrong, config_error
from variform.errors import nearest_divisors
from variform.parts.mixer.multi_head import MultiHead

Rate = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(gt=0)]
Biases = tuple[bool, bool, bool, bool]


@dataclass
class MultiHeadDispatchConfig:
    """The configuration of `MultiHeadDispatch`; None takes the constructor's default."""

    dim_model: int
    num_heads: int
    attention: Any
    bias: Any = None
    residual_dropout: float | None = None
    dim_key: int | None = None
    dim_value: int | None = None
    in_proj_container: InputProjection | None = None
    use_separate_proj_weight: bool | None = None
    use_rotary_embeddings: bool | None = None
    out_proj: nn.Module | None = None

    def __getitem__(self, item: str) -> Any:
        return getattr(self, item)


class MultiHeadDispatch(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762): projections, the given attention, a projection.

    Shapes:
        query: [B, Sq, dim_model], key, value: [B, Sk, dim_model] -> [B, Sq, dim_model]; a batch of 1 is expanded

    Args:
        dim_model: features in and out.
        num_heads: number of heads; divides `dim_model`, `dim_key` and `dim_value`.
        attention: what happens between the heads' queries, keys and values.
        bias: learn offsets in the projections of (queries, keys, values, output), or one value for all.
        residual_dropout: probability of zeroing an output feature, in training.
        use_separate_proj_weight: False uses one weight for queries, keys and values.
        dim_key: features of projected queries and keys; `dim_model` by default.
        dim_value: features of projected values; `dim_model` by default.
        in_proj_container: the input projections, in place of new ones.
        use_rotary_embeddings: rotate queries and keys by their positions.
        out_proj: the output projection, in place of a new one.
        **superset: keys of attentions (`seq_len`), listed in `dropped`.

    Raises:
        ConfigError: with all wrong arguments; an `AssertionError` too where heads do not divide.
    """

    def __init__(
        self,
        dim_model: Size,
        num_heads: Size,
        attention: Attention,
        bias: bool | Biases = (True, True, True, True),
        residual_dropout: Rate = 0.0,
        use_separate_proj_weight: bool = True,
        dim_key: Size | None = None,
        dim_value: Size | None = None,
        in_proj_container: InputProjection | None = None,
        use_rotary_embeddings: bool | None = False,
        out_proj: nn.Module | None = None,
        **superset: Any,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "superset", "__class__")}
        self.dropped = superset_keys(ATTENTION_REGISTRY, superset, "multi_head_dispatch")
        biases: Biases = (bias,) * 4 if isinstance(bias, bool) else tuple(bias)  # type: ignore[assignment]
        verify(MultiHeadDispatch, **{**given, "bias": biases})
        dim_key, dim_value = dim_key or dim_model, dim_value or dim_model
        wrong = head_problems(num_heads, dim_model=dim_model, dim_key=dim_key, dim_value=dim_value)
        if wrong := wrong + _unused(given, attention) + _other_sizes(attention, dim_model, num_heads, dim_key):
            raise config_error(wrong)
        self.num_heads = num_heads
        self.dim_model = dim_model
        self.dim_key_head = dim_key // num_heads
        self.dim_value_head = dim_value // num_heads
        self.attention = attention
        if attention.requires_input_projection:
            self.in_proj_container = in_proj_container or InputProjection(
                InputProjectionConfig(dim_model, dim_key, biases[0]),
                InputProjectionConfig(dim_model, dim_key, biases[1]),
                InputProjectionConfig(dim_model, dim_value, biases[2]),
                use_separate_proj_weight,
            )
        self.rotary_embeddings = RotaryEmbedding(self.dim_key_head) if use_rotary_embeddings else None
        self.resid_drop = nn.Dropout(residual_dropout)
        self.proj: nn.Module | None = None
        if not attention.requires_skip_multi_head:
            self.proj = out_proj or nn.Linear(dim_value, dim_model, bias=biases[3])
        if isinstance(self.proj, nn.Linear) and biases[3] and out_proj is None:
            nn.init.zeros_(self.proj.bias)

    @classmethod
    def from_config(cls, config: MultiHeadDispatchConfig) -> MultiHeadDispatch:
        """Build from a configuration dataclass; fields that are None keep the constructor's defaults."""
        given = {f.name: getattr(config, f.name) for f in fields(config)}
        return cls(**{key: value for key, value in given.items() if value is not None})

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        att_mask: AttMask | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        input_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: what asks.
            key: what is asked; the query by default.
            value: what is answered; the query by default.
            att_mask: what may attend to what; see `read_att_mask`.
            key_padding_mask: [B, Sk], which keys are real; see `read_padding`.
            input_mask: another name of `key_padding_mask`; both together must allow a key.
            positions: [S] or [B, S] integers, for self-attention; 0, 1, ... by default.

        Raises:
            CallError: a mask or a length that the attention cannot honour.
        """
        query, key, value = _same_batch(query, query if key is None else key, query if value is None else value)
        sizes = Sizes(
            query.shape[0], self.num_heads, query.shape[1], key.shape[1], self.attention.requires_head_dimension
        )
        padding = both(
            read_padding(key_padding_mask, sizes.batch, sizes.keys, "key_padding_mask"),
            read_padding(input_mask, sizes.batch, sizes.keys, "input_mask"),
        )
        if isinstance(self.attention, NativeMixer):
            y = self.attention.mix(query, key, value, att_mask, padding, positions)
            return self.resid_drop(y if self.proj is None else self.proj(y))  # type: ignore[no-any-return]
        if self.attention.requires_skip_multi_head:
            y = call_foreign(self.attention, query, key, value, att_mask, padding, sizes)
            return self.resid_drop(y)  # type: ignore[no-any-return]
        q, k, v = (query, key, value)
        if self.attention.requires_input_projection:
            q, k, v = self.in_proj_container(query, key, value)
        q, k, v = (self._split(t, name) for t, name in ((q, "query"), (k, "key"), (v, "value")))
        if self.rotary_embeddings is not None:
            q, k = self.rotary_embeddings(q, k, positions)
        if isinstance(self.attention, NativeAttention):
            sides = self.attention.sides(att_mask, padding, sizes, positions)
            y = self.attention.attend(q, k, v, replace(sides, x=query))
        else:
            y = call_foreign(self.attention, q, k, v, att_mask, padding, sizes)
        assert self.proj is not None
        return self.resid_drop(self.proj(y.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def _split(self, x: Tensor, name: str) -> Tensor:
        batch, length, width = x.shape
        if width % self.num_heads:
            raise CallError(f"the {width} features of the projected {name} do not divide by {self.num_heads} heads")
        return x.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    @property
    def spec(self) -> Spec:
        """The native mixer that computes the same; its output dropout belongs to the sublayer around it.

        Raises:
            ConfigError: a setting that the native mixer does not have.
        """
        if isinstance(self.attention, NativeMixer) and isinstance(self.proj, (nn.Linear, type(None))):
            return self.attention.within(self.dim_model, self.proj is not None and self.proj.bias is not None)
        linears = _plain_linears(self)
        equal = self.dim_key_head == self.dim_value_head
        if not isinstance(self.attention, NativeAttention) or linears is None or not equal:
            message = "a MultiHeadDispatch with parts or sizes of its own has no native equivalent"
            raise config_error([Wrong("", message)])
        return MultiHead.spec(
            dim=self.dim_model,
            heads=self.num_heads,
            dim_head=self.dim_key_head,
            bias=linears[0].bias is not None,
            out_bias=linears[3].bias is not None,
            attention=self.attention.spec,
            rotation=None if self.rotary_embeddings is None else self.rotary_embeddings.spec,
        )


def head_problems(heads: int, **sizes: int) -> list[Wrong]:
    """What is wrong when `heads` do not divide the named sizes."""
    problems = []
    for name, size in sizes.items():
        if size % heads and (name == "dim_model" or size != sizes["dim_model"]):
            hint = nearest_divisors(size, heads)
            problems.append(Wrong("num_heads", f"must divide {name} = {size}", heads, hint, like=AssertionError))
    return problems


def _unused(given: Mapping[str, Any], attention: Any) -> list[Wrong]:
    """Settings of the heads that an attention without them would ignore."""
    if not isinstance(attention, Attention):
        return []
    name, problems = type(attention).__name__, []
    if not attention.requires_input_projection:
        settings = ["in_proj_container", "use_rotary_embeddings", "dim_key", "dim_value"]
        if attention.requires_skip_multi_head:
            settings.append("out_proj")
        for key in settings:
            if given[key] and given[key] != given["dim_model"]:
                message = f"{name} works on the features of the model itself, without projections: leave it out"
                problems.append(Wrong(key, message, given[key], like=AssertionError))
    return problems


def _other_sizes(attention: Any, dim: int, heads: int, dim_key: int) -> list[Wrong]:
    """Sizes for which the attention was made and which are not those around it."""
    told: dict[str, Any] = {}
    if isinstance(attention, NativeAttention):
        told = {"num_heads": attention.own_heads, "dim_head": attention.native.spec.get("dim_head")}
    elif isinstance(attention, NativeMixer) and attention.requires_skip_multi_head:
        told = {"dim_model": attention.native.spec.get("dim")}
    around = {"num_heads": heads, "dim_head": dim_key // heads, "dim_model": dim}
    return [
        Wrong(f"attention.{key}", f"the heads around it have {key} = {around[key]}", size, like=AssertionError)
        for key, size in told.items()
        if isinstance(size, int) and size != around[key]
    ]


def _same_batch(*tensors: Tensor) -> list[Tensor]:
    batch = max(t.shape[0] for t in tensors)
    if any(t.shape[0] not in (1, batch) for t in tensors):
        raise CallError(f"query, key and value have {[t.shape[0] for t in tensors]} rows: one number, or 1, is needed")
    return [t if t.shape[0] == batch else t.expand(batch, -1, -1) for t in tensors]


def _plain_linears(module: MultiHeadDispatch) -> list[nn.Linear] | None:
    """The four projections, where each is a plain linear map of its own and the first three agree on the offset."""
    container = getattr(module, "in_proj_container", None)
    if not isinstance(container, InputProjection):
        return None
    found = [container.q_proj, container.k_proj, container.v_proj, module.proj]
    plain = all(isinstance(linear, nn.Linear) for linear in found) and len({id(linear) for linear in found}) == 4
    offsets = {getattr(linear, "bias", None) is None for linear in found[:3]}
    return found if plain and len(offsets) == 1 else None  # type: ignore[return-value]
