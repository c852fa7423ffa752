"""Features in front of prompts while tokens are generated."""

from typing import Any

import pytest
import torch

from variform.dialects.x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper


@pytest.mark.parametrize("options", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
def test_features_in_front_are_read_once(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **options)
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=11, max_seq_len=12, attn_layers=layers)).double()
    prompt, front = torch.randint(0, 11, (3, 4)), torch.randn(3, 2, 16, dtype=torch.float64)
    seen = torch.tensor([[True, True], [False, True], [False, False]])
    wanted = prompt
    for _ in range(6):
        logits = model.net(wanted, prepend_embeds=front, prepend_mask=seen)[:, -1]
        wanted = torch.cat((wanted, logits.argmax(-1, keepdim=True)), 1)
    for cache in (True, False):
        made = model.generate(prompt, 6, temperature=0.0, cache_kv=cache, prepend_embeds=front, prepend_mask=seen)
        assert torch.equal(made, wanted[:, 4:])
    lengths = torch.tensor([4, 2, 3])
    ragged = model.generate(prompt, 6, temperature=0.0, prepend_embeds=front, prompt_lens=lengths)
    for row, length in enumerate(lengths.tolist()):
        at = slice(row, row + 1)
        alone = model.generate(prompt[at, :length], 6, temperature=0.0, prepend_embeds=front[at], cache_kv=False)
        assert torch.equal(ragged[at], alone)
    beams = model.beam_search(prompt, 4, beams=3, prepend_embeds=front)
    rows = [model.beam_search(prompt[i : i + 1], 4, beams=3, prepend_embeds=front[i : i + 1]) for i in range(3)]
    assert torch.equal(beams, torch.cat(rows))
