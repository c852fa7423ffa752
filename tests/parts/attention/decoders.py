"""Small decoders around an attention: they generate as they compute, and learn."""

from typing import Any

import torch
from torch.nn import functional

import variform as vf


def decoder(attention: Any, executor: str = "plain", **mixer: Any) -> Any:
    """A float64 decoder of two layers."""
    torch.manual_seed(2)
    spec = vf.models.gpt(vocab_size=31, dim=16, depth=2, heads=4, max_seq_len=40, init_std=0.4)
    body = "stacks.0.layers.*.sublayers.0.body"
    changes = {f"{body}.attention": attention, "stacks.0.executor": executor}
    return vf.build(vf.override(spec, changes | {f"{body}.{key}": value for key, value in mixer.items()})).double()


def generates_as_uncached(attention: Any, **mixer: Any) -> None:
    """Tokens sampled with the cache are those sampled from whole forward passes; prompts of two lengths."""
    model = decoder(attention, **mixer).eval()
    prompts = [torch.randint(0, 31, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 8)]
    runs = []
    for cached in (True, False):
        torch.manual_seed(5)
        runs.append(vf.generate(model, prompts, 20, use_cache=cached))
    assert len(runs[1].unique()) > 5  # a model that repeats one token would prove nothing
    assert torch.equal(runs[0], runs[1])


def learns(attention: Any, steps: int = 60, **mixer: Any) -> None:
    """To say what each row began with, which takes attention, is learned far beyond guessing."""
    model = decoder(attention, **mixer).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 11, (32, 7), generator=generator)
        loss = functional.cross_entropy(model(ids).flatten(0, 1), ids[:, :1].expand(-1, 7).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(losses[::10], losses[-1])
    assert losses[-1] < 0.5 * losses[0]
