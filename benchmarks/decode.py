"""Greedy decoding with a cache: the preset GPT beside a hand-written loop, x-transformers and transformers.

python benchmarks/decode.py
python benchmarks/decode.py --threads 2 --clock wall --json
"""

from collections.abc import Callable

import torch
from side_by_side import arguments, chosen, compare, report, settle
from tight_gpt import TightGPT, copy_weights
from torch import Tensor

import variform as vf

SIZES = {"vocab_size": 256, "dim": 512, "depth": 6, "heads": 8, "max_seq_len": 512}


def x_transformers(prompt: Tensor, new: int) -> Callable[[], Tensor]:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(dim=SIZES["dim"], depth=SIZES["depth"], heads=SIZES["heads"], attn_flash=True)
    net = TransformerWrapper(num_tokens=SIZES["vocab_size"], max_seq_len=SIZES["max_seq_len"], attn_layers=layers)
    wrapper = AutoregressiveWrapper(net).eval()
    return lambda: wrapper.generate(prompt, new, temperature=0.0, cache_kv=True)


def transformers(prompt: Tensor, new: int) -> Callable[[], Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=SIZES["vocab_size"],
            n_positions=SIZES["max_seq_len"],
            n_embd=SIZES["dim"],
            n_layer=SIZES["depth"],
            n_head=SIZES["heads"],
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    seen = torch.ones_like(prompt)
    return lambda: model.generate(prompt, attention_mask=seen, max_new_tokens=new, do_sample=False)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate")
    options = parser.parse_args()
    settle(options)
    prompt, new = torch.randint(SIZES["vocab_size"], (options.batch, options.prompt)), options.new
    ours, tight = vf.build(vf.models.gpt(**SIZES)).eval(), TightGPT(**SIZES).eval()
    copy_weights(ours, tight)
    runs: dict[str, Callable[[], Tensor]] = {
        "hand-written": lambda: tight.generate(prompt, new),
        "variform": lambda: vf.generate(ours, prompt, new, greedy=True),
        "x-transformers": x_transformers(prompt, new),
        "transformers": transformers(prompt, new),
    }
    assert torch.equal(runs["hand-written"](), runs["variform"]())
    case = f"{options.new} new tokens"
    report("cached decoding", {case: compare(chosen(runs, options.only), options.rounds, options.clock)}, options)


if __name__ == "__main__":
    main()
