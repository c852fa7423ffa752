"""What each attention and mixer has to be able to do: the requirement as data.

y: it must, and says so. r: it must refuse, and says that it cannot. o: either. -: has no meaning.
A part registered later under one of the names is held to its row.
"""

from dataclasses import dataclass

FLAGS = ("causal", "key_padding", "attention_mask", "packed", "cross", "decode")
"""The columns that are declared flags; bfloat16 is measured, not declared."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        title: as the requirement calls it.
        names: `kind/name` of the parts it holds for; `kind/*` stands for all of a kind.
        cells: one letter for each of `FLAGS`, then one for bfloat16.
    """

    title: str
    names: tuple[str, ...]
    cells: str

    def wants(self, flag: str) -> str:
        """The letter of a flag."""
        return self.cells[FLAGS.index(flag)]

    @property
    def bfloat16(self) -> str:
        """The letter of the last column."""
        return self.cells[-1]


ROWS = (
    #                                                                              causal, padding, mask, packed, cross,
    #                                                                              decode, bfloat16
    Row("scaled_dot_product (MHA, GQA, MQA)", ("attention/softmax", "mixer/multi_head"), "yyyyyyy"),
    Row(
        "cross attention",
        ("mixer/cross_attention", "mixer/projected_cross_attention", "mixer/cross_compositional"),
        "yyyyyyy",
    ),
    Row(
        "around softmax attention",
        (
            *("attention/gated", "attention/head_scale", "attention/value_norm", "attention/laser"),
            *("attention/l2_distance", "attention/delta"),
        ),
        "yyyyyyy",
    ),
    Row("the same, with the value of a query's own token", ("attention/orthogonal_values",), "yyyyryy"),
    Row(
        "around attention: prefixes, residuals over layers",
        ("attention/prefix", "attention/value_residual", "attention/score_residual"),
        "yyyoooo",
    ),
    Row("limits of distance around attention", ("attention/limited",), "yyyyyyy"),
    Row("sequences that end together", ("attention/ends_together",), "ryyryry"),
    Row("rotations to the places of another sequence", ("attention/rotated",), "yyooooo"),
    Row("attention beside another mixer", ("attention/hybrid",), "yyooyyy"),
    Row("recurrences of one vector", ("mixer/gru", "mixer/folded"), "yyrrryy"),
    Row("score features, softmax attention", ("scoring/*",), "yyyooyy"),
    Row(
        "weights of a row",
        tuple(
            f"weighting/{name}"
            for name in ("top_k", "hard", "sigmoid", "signed", "sink", "talking_heads", "scaled_by_heads", "custom")
        ),
        "yyyyyyy",
    ),
    Row("weights that are drawn", ("weighting/gumbel",), "yyyyyyo"),
    Row("keys that choose among queries", ("weighting/inverted",), "ryrryry"),
    Row("keys and values beside the sequence", ("memory/zero", "memory/learned", "memory/joined"), "yyyyyyy"),
    Row("local / sliding window", ("attention/local",), "yyyyryy"),
    Row(
        "global tokens, Longformer/BigBird patterns",
        ("attention/global", "attention/longformer", "attention/bigbird"),
        "yyyyryy",
    ),
    Row("windows of a grid (Swin)", ("attention/shifted_windows",), "roorrry"),
    Row("random", ("attention/random",), "yyyoroy"),
    Row("blocksparse", ("attention/block_sparse", "attention/blocksparse"), "yyyyoyy"),
    Row("linformer", ("attention/linformer", "mixer/linformer"), "ryrryry"),
    Row("nystrom", ("attention/nystrom", "mixer/nystrom"), "yyroyyy"),
    Row("favor", ("attention/favor",), "yyryyyy"),
    Row("orthoformer", ("attention/orthoformer",), "ryroyry"),
    Row("fourier_mix", ("attention/fourier_mix", "mixer/fourier_mix", "mixer/fourier"), "rrrrrro"),
    Row("lambda", ("attention/lambda", "mixer/lambda"), "yyroroy"),
    Row("compositional", ("attention/compositional", "mixer/compositional"), "yyyyyyy"),
    Row(
        "pooling, visual (square inputs)",
        ("attention/pooling", "mixer/pooling", "attention/visual", "mixer/visual"),
        "rrrrrry",
    ),
    Row("linear (elu+1), cosFormer", ("attention/linear", "attention/cosformer"), "yyryyyy"),
    Row(
        "gated linear / retention, delta rule",
        (
            "attention/gated_linear",
            "mixer/gated_linear",
            "attention/retention",
            "mixer/retention",
            "attention/delta_rule",
            "mixer/delta_rule",
            "attention/gated_delta_rule",
            "mixer/gated_delta_rule",
        ),
        "yyryryy",
    ),
    Row("long convolution (Hyena-like)", ("mixer/hyena", "mixer/long_convolution"), "yyroryo"),
    Row("diagonal state space (S4D)", ("mixer/s4d",), "yyroryy"),
    Row("selective state space (Mamba-style)", ("mixer/mamba", "mixer/selective_state_space"), "yyryryy"),
    Row("latent attention (MLA)", ("mixer/projected_attention", "key_values/latent"), "yyyyoyy"),
    Row("token shift", ("layer/token_shift", "mixer/token_shift"), "yy-y-yy"),
    Row("all position schemes", ("position/*", "rotation/*", "bias/*"), "yy-y-yy"),
    Row(
        "mixture of experts: token-choice",
        ("feedforward/mixture_of_experts", "feedforward/token_choice", "feedforward/top_k_experts"),
        "yy-y-yy",
    ),
    Row("mixture of experts: expert choice or capacity drops", ("feedforward/expert_choice",), "ry-o-ry"),
)
