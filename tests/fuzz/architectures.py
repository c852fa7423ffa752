"""Random valid architectures: `draw(seed)` gives a spec and what is known about it, the same one for every run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import variform as vf

Plain = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A random architecture.

    Args:
        seed: what it was drawn from.
        data: its plain form.
        family: "decoder", "encoder", "classifier", "context", "seq2seq" or "images".
        vocab: number of tokens; None where the input is features or images.
        dim: features of the input where there are no tokens.
        longest: most tokens, or None.
        dim_context: features of the context where one is read.
        packs: whether documents may be packed.
        masks: whether a mask over pairs is honoured.
    """

    seed: int
    data: Plain
    family: str
    vocab: int | None
    dim: int
    longest: int | None
    dim_context: int | None
    packs: bool
    masks: bool

    @property
    def spec(self) -> vf.Spec:
        """The spec."""
        return vf.from_dict(self.data)

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later input."""
        return self.family in ("decoder", "context", "seq2seq")


class Draw:
    """Draws the parts of one architecture.

    Args:
        seed: of the random choices.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.heads = self.random.choice([1, 2, 3, 4])
        self.dim_head = self.random.choice([4, 6, 8] if self.heads == 1 else [2, 4, 6, 8])
        self.dim = self.heads * self.dim_head
        self.causal = True
        self.longest = self.random.choice([24, 32, None])
        self.shared = 0
        self.context: int | None = None
        self.packs = True
        self.masks = True

    def maybe(self, share: float = 0.5) -> bool:
        """True in this share of all cases."""
        return self.random.random() < share

    def pick(self, *options: Any) -> Any:
        """One of several values."""
        return self.random.choice(options)

    def name(self, what: str) -> str:
        """A name that is used nowhere else."""
        self.shared += 1
        return f"{what}{self.shared}"

    def norm(self, dim: int) -> Plain:
        """A norm over `dim` features."""
        options: list[Plain] = [
            {"part": "layer_norm", "bias": self.maybe()},
            {"part": "rms_norm", "gain": self.maybe(0.8)},
            {"part": "scale_norm"},
            {"part": "clamped_rms_norm", "per_feature": self.maybe()},
        ]
        if dim % 2 == 0 and dim > 2:  # with chunks of one feature all are 1
            options.append({"part": "simplicial", "chunks": 2})
        return self.pick(*options)

    def rotation(self, width: int) -> Plain:
        """A rotation of heads of `width` features."""
        data: Plain = {"part": "rotary", "layout": self.pick("half", "interleaved"), "base": self.pick(10000.0, 100.0)}
        turned = width
        if width >= 4 and self.maybe(0.4):
            turned = data["rotary_dim"] = width // 2 // 2 * 2
        if turned > 2 and self.maybe(0.3):
            data["ntk"] = 2.0
        if self.maybe(0.3):
            data["interpolation"] = 1.5
        return data

    def bias(self) -> Plain:
        """A bias on scores."""
        if self.maybe():
            return {"part": "alibi", "learned": self.maybe(0.3)}
        return {"part": "t5", "buckets": self.pick(4, 8), "max_distance": self.pick(8, 16)}

    def attention(self, cross: bool = False) -> Plain:
        """A head-level attention."""
        rate = self.pick(0.0, 0.0, 0.1)
        kinds = ["softmax", "softmax", "linear"] if cross else ["softmax", "softmax", "local", "linear", "patterned"]
        kind = self.pick(*kinds)
        if kind == "linear":
            if not cross:
                self.masks = False
            return {"part": "linear"}
        data: Plain = {**(self.pattern() if kind == "patterned" else {"part": kind}), "dropout": rate}
        if kind == "local":
            data["window"] = self.pick(1, 3, 5, 101)
        if kind == "softmax" and self.maybe(0.25):
            data["memory"] = {"part": "learned", "count": self.pick(1, 3)}
        if self.maybe(0.2):
            data["scale"] = 0.3
        if self.maybe(0.3):
            data["backend"] = self.pick("reference", "sdpa")
        return data

    def pattern(self) -> Plain:
        """A head-level attention over a fixed pattern."""
        return self.pick(
            {"part": "global", "tokens": self.pick([0], [0, 3], [2, 40])},
            {"part": "longformer", "window": self.pick(1, 3, 7), "tokens": self.pick([], [0], [1, 5])},
            {"part": "bigbird", "block": self.pick(1, 2, 5), "random_blocks": self.pick(0, 2)},
            {"part": "random", "r": self.pick(0.1, 0.5), "seed": self.pick(0, 7)},
        )

    def mixer(self, heads: int, biases: list[Plain]) -> Plain:
        """Self-attention with random slots."""
        data: Plain = {"part": "multi_head", "attention": self.attention(), "bias": self.maybe(0.3)}
        width = self.dim // heads
        if self.maybe(0.25):
            width = data["dim_head"] = self.pick(2, 4, 5)
        data["kv_heads"] = self.pick(*[n for n in range(1, heads + 1) if heads % n == 0])
        if data["attention"]["part"] != "linear" and self.maybe(0.4):
            data["position_bias"] = self.pick(*biases) if biases and self.maybe(0.7) else self.bias()
        elif width % 2 == 0 and self.maybe(0.6):
            data["rotation"] = self.rotation(width)
        for slot in ("q_norm", "k_norm"):
            if self.maybe(0.3):
                data[slot] = self.norm(width)
        return data

    def cross(self) -> Plain:
        """Attention to the context."""
        data: Plain = {"part": "cross_attention", "attention": self.attention(cross=True), "out_bias": self.maybe()}
        if self.maybe(0.3):
            data["context_norm"] = self.norm(self.context or self.dim)
        return data

    def feedforward(self) -> Plain:
        """An MLP or gated unit."""
        activation = self.pick("gelu", "relu", "silu", "relu_squared", "star_relu", "none", "tanh")
        data: Plain = {"part": self.pick("mlp", "glu"), "mult": self.pick(1.0, 1.7, 4.0), "activation": activation}
        if self.maybe(0.2):
            data["norm"] = "layer_norm"
        return {**data, "dropout": self.pick(0.0, 0.1)}

    def sublayer(self, body: Plain) -> Plain:
        """A residual step with norms in random slots."""
        data: Plain = {"part": "sublayer", "body": body, "norm": None}
        placement = self.pick("pre", "pre", "post", "sandwich", "deepnorm", "none")
        if placement in ("pre", "sandwich"):
            data["norm"] = self.norm(self.dim)
        if placement == "sandwich":
            data["branch_norm"] = self.norm(self.dim)
        if placement in ("post", "deepnorm"):
            data["out_norm"] = self.norm(self.dim)
        if placement == "deepnorm":
            data["residual"] = "deepnorm"
        elif self.maybe(0.2):
            data["residual"] = self.pick({"part": "layer_scale", "init": 0.1}, {"part": "scaled", "beta": 0.5})
        for rate in ("dropout", "drop_path", "layer_drop"):
            if self.maybe(0.2):
                data[rate] = 0.1
        return data

    def layer(self, biases: list[Plain]) -> Plain:
        """A layer of random sublayers."""
        data: Plain = {"part": "layer"}
        heads = self.heads
        if self.maybe(0.25):
            heads = data["heads"] = self.pick(*[n for n in range(1, self.dim + 1) if self.dim % n == 0][:4])
        usual = heads == self.heads
        bodies = [self.mixer(heads, biases if usual else [])]
        if self.context is not None:
            bodies.append(self.cross())
        bodies += [self.feedforward() for _ in range(self.pick(0, 1, 1, 2))]
        self.random.shuffle(bodies)
        steps = [self.sublayer(body) for body in bodies]
        if self.maybe(0.15):
            steps[0] = {"part": "zero_padding", "body": steps[0]}
        return {**data, "sublayers": steps}

    def stack(self) -> Plain:
        """Layers, some of them shared, with a long skip now and then."""
        data: Plain = {"part": "stack", "executor": self.pick("plain", "plain", "checkpoint")}
        if self.maybe(0.2):
            data["heads"] = self.heads  # the same, given again
        biases = [{"shared": self.name("bias"), "of": self.bias()}] if self.maybe(0.3) else []
        layers = [self.layer(biases) for _ in range(self.pick(1, 2, 3))]
        if self.maybe(0.3):
            twice = {"shared": self.name("layer"), "of": self.layer([])}
            layers += [twice, twice]
        if self.maybe(0.2):
            stream = self.name("skip")
            layers = [{"part": "publish", "stream": stream}, *layers, {"part": "add_stream", "stream": stream}]
        if layers[0].get("part") == "layer" and self.maybe(0.2):
            layers = [{"repeat": 2, "of": layers[0]}, *layers[1:]]
        if self.maybe(0.7):
            data["norm"] = self.norm(self.dim)
        return {**data, "layers": layers}

    def stacks(self) -> list[Plain]:
        """One or two stacks."""
        found = [self.stack() for _ in range(self.pick(1, 1, 2))]
        if self.maybe(0.1):
            found[0] = {"part": "registers", "stack": found[0], "count": 2, "side": "front"}
            self.packs = self.masks = False
        return found

    def position(self) -> Plain | None:
        """A position code for the embedding, or none."""
        options: list[Plain | None] = [None]
        if self.longest is not None:
            options.append({"part": "learned"})
        if self.dim % 2 == 0:
            options.append({"part": "sinusoidal", "scale": 0.5})
        return self.pick(*options)

    def tokens(self, vocab: int) -> Plain:
        """An embedding of tokens."""
        plain: Plain = {"part": "embedding/tokens", "scale": self.maybe(0.3), "dropout": self.pick(0.0, 0.1)}
        form = self.pick("plain", "plain", "plain", "placed", "factorised", "prefixed")
        if form == "factorised":
            return {"part": "factorised", "dim_embedding": 6, "embedding": plain}
        position = self.position()
        if form == "placed" and position is not None:
            return {"part": "placed", "embedding": plain, "position": position}
        plain["position"] = position
        if self.maybe(0.2):
            plain["norm"] = "layer_norm"
        return {"part": "prefixed", "embedding": plain} if form == "prefixed" else plain

    def facts(self) -> Plain:
        """The scalar fields of a model."""
        return {"dim": self.dim, "heads": self.heads, "init_std": self.pick(None, 0.1), "max_seq_len": self.longest}

    def finish(self, data: Plain, family: str, vocab: int | None) -> Drawn:
        """The architecture with what is known about it."""
        return Drawn(self.seed, data, family, vocab, self.dim, self.longest, self.context, self.packs, self.masks)


def draw(seed: int) -> Drawn:
    """A random architecture."""
    draws = Draw(seed)
    family = draws.pick(
        "decoder", "decoder", "decoder", "encoder", "classifier", "context", "seq2seq", "images", "preset"
    )
    return _FAMILIES[family](draws)


def _decoder(d: Draw) -> Drawn:
    vocab: int | None = d.pick(11, 17)
    data: Plain = {"part": "transformer", **d.facts(), "causal": True, "vocab_size": vocab}
    if d.maybe(0.15):
        vocab, data["embedding"], data["vocab_size"] = None, d.pick(None, {"part": "features"}), None
        return d.finish({**data, "stacks": d.stacks(), "head": None}, "decoder", None)
    data["embedding"] = d.tokens(11)
    data["head"] = d.pick("lm", {"part": "lm", "bias": True}, None)
    if data["embedding"]["part"] == "embedding/tokens" and d.maybe(0.4):
        data["embedding"] = {"shared": "tokens", "of": data["embedding"]}
        data["head"] = {"part": "tied_lm", "embedding": {"shared": "tokens"}, "scale": d.pick(1.0, 0.5)}
    return d.finish({**data, "stacks": d.stacks()}, "decoder", vocab)


def _encoder(d: Draw) -> Drawn:
    data: Plain = {"part": "transformer", **d.facts(), "causal": False, "vocab_size": 13}
    return d.finish({**data, "embedding": d.tokens(13), "stacks": d.stacks(), "head": "lm"}, "encoder", 13)


def _classifier(d: Draw) -> Drawn:
    data: Plain = {"part": "transformer", **d.facts(), "causal": d.maybe(), "vocab_size": 13}
    head = {"part": "classifier", "classes": 3, "pool": d.pick("mean", "first", "last")}
    head = d.pick(head, {"part": "head/pool", "pool": head["pool"]})
    return d.finish({**data, "embedding": d.tokens(13), "stacks": d.stacks(), "head": head}, "classifier", 13)


def _context(d: Draw) -> Drawn:
    d.context = d.pick(d.dim, 5)
    data: Plain = {"part": "transformer", **d.facts(), "causal": True, "vocab_size": 13, "dim_context": d.context}
    return d.finish({**data, "embedding": d.tokens(13), "stacks": d.stacks(), "head": "lm"}, "context", 13)


def _seq2seq(d: Draw) -> Drawn:
    source: Plain = {"part": "transformer", "max_seq_len": d.longest, "vocab_size": 13, "causal": False}
    encoder = {**source, "embedding": d.tokens(13), "stacks": d.stacks()}
    d.context = d.dim
    decoder = {**source, "causal": True, "embedding": d.tokens(13), "stacks": d.stacks(), "head": "lm"}
    data = {"part": "encoder_decoder", "encoder": encoder, "decoder": decoder, "dim": d.dim, "heads": d.heads}
    return d.finish({**data, "init_std": 0.1}, "seq2seq", 13)


def _images(d: Draw) -> Drawn:
    d.longest = None
    embedding: Plain = {"part": "patches", "image_size": 6, "patch_size": d.pick(2, 3), "channels": 2}
    embedding["class_tokens"] = d.pick(0, 1, 2)
    embedding["position"] = d.pick(None, "learned")
    for slot in ("norm", "patch_norm", "token_norm"):
        if d.maybe(0.3):
            embedding[slot] = "layer_norm"
    head = d.pick(None, {"part": "classifier", "classes": 3, "pool": d.pick("mean", "first")})
    data: Plain = {"part": "transformer", "dim": d.dim, "heads": d.heads, "embedding": embedding, "head": head}
    return d.finish({**data, "stacks": d.stacks()}, "images", None)


def _preset(d: Draw) -> Drawn:
    sizes: Plain = {
        "vocab_size": 11,
        "dim": d.dim,
        "depth": d.pick(1, 2, 3),
        "heads": d.heads,
        "dropout": d.pick(0.0, 0.1),
    }
    name = d.pick("gpt", "llama", "bert", "seq2seq")
    if name != "llama":
        d.longest = 24
    data: Plain = {"preset": name, **sizes, "max_seq_len": d.longest}
    if name in ("gpt", "llama"):
        data["kv_heads"] = d.pick(*[n for n in range(1, d.heads + 1) if d.heads % n == 0])
    if name == "llama":
        data["window"], data["rope_layout"] = d.pick(None, 4), d.pick("half", "interleaved")
    if name != "bert":
        data["tie"] = d.maybe()
    if name == "seq2seq":
        d.context = d.dim
    return d.finish(data, {"bert": "encoder", "seq2seq": "seq2seq"}.get(name, "decoder"), 11)


_FAMILIES = {
    "decoder": _decoder,
    "encoder": _encoder,
    "classifier": _classifier,
    "context": _context,
    "seq2seq": _seq2seq,
    "images": _images,
    "preset": _preset,
}
