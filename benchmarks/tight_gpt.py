"""The baseline of the benchmarks: a GPT written by hand for this one architecture, with nothing that it does not need.

The same function and the same number of parameters as `vf.models.gpt(vocab_size, dim, depth, heads, max_seq_len)`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Cache = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.norm2 = nn.LayerNorm(dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:
        batch, length, dim = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = heads.transpose(1, 3).unbind(2)
        if cache is not None:
            end = start + length
            cache[0][:, :, start:end], cache[1][:, :, start:end] = k, v
            k, v = cache[0][:, :, :end], cache[1][:, :, :end]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=start == 0)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, dim))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TightGPT(nn.Module):
    def __init__(self, vocab_size: int, dim: int, depth: int, heads: int, max_seq_len: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_seq_len, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, ids: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[start : start + ids.shape[1]]
        for place, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[place], start)
        return self.head(self.norm(x))

    @torch.no_grad()
    def generate(self, ids: Tensor, new: int) -> Tensor:
        """Greedy, with preallocated keys and values."""
        block = self.blocks[0]
        dim = block.out.in_features
        shape = (ids.shape[0], block.heads, ids.shape[1] + new, dim // block.heads)
        cache = [(torch.empty(shape), torch.empty(shape)) for _ in self.blocks]
        start, found = 0, []
        for _ in range(new):
            token = self(ids, cache, start)[:, -1:].argmax(-1)
            start, ids = start + ids.shape[1], token
            found.append(token)
        return torch.cat(found, 1)


def copy_weights(source: nn.Module, target: TightGPT) -> None:
    """From the preset's model to the hand-written one."""
    theirs = dict(source.named_parameters())
    with torch.no_grad():
        target.tokens.weight.copy_(theirs["embedding.weight"])
        target.positions.weight.copy_(theirs["embedding.position.weight"])
        target.norm.weight.copy_(theirs["stacks.0.norm.weight"])
        target.head.weight.copy_(theirs["head.project.weight"])
        for place, block in enumerate(target.blocks):
            first, second = (f"stacks.0.layers.{place}.sublayers.{step}" for step in (0, 1))
            block.norm1.weight.copy_(theirs[f"{first}.norm.weight"])
            block.qkv.weight.copy_(torch.cat([theirs[f"{first}.body.{name}.weight"] for name in "qkv"]))
            block.out.weight.copy_(theirs[f"{first}.body.out.weight"])
            block.norm2.weight.copy_(theirs[f"{second}.norm.weight"])
            block.up.weight.copy_(theirs[f"{second}.body.up.weight"])
            block.down.weight.copy_(theirs[f"{second}.body.down.weight"])
