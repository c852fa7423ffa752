"""`variform generate`: text from a trained run."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from pathlib import Path

from variform.cli.output import show
from variform.errors import ConfigError
from variform.generate import stream


def generate_text(options: argparse.Namespace) -> None:
    """Continue the prompt; the text goes to stdout as it is made, or all at once as JSON."""
    from variform.train.trained import load_run

    if not options.prompt:
        raise ConfigError("the prompt is empty: at least one character is needed", path="--prompt")
    model, vocabulary = load_run(Path(options.run_folder))
    seed = secrets.randbits(31) if options.seed is None else options.seed
    if seed < 0:
        raise ConfigError("a seed is not negative", path="--seed", value=seed)
    tokens = stream(
        model,
        vocabulary.encode(options.prompt),
        options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=seed,
    )
    start = time.perf_counter()
    pieces: list[str] = []
    if not options.json:
        sys.stdout.write(options.prompt)
    for token in tokens:
        pieces.append(vocabulary.decode([int(token)]))
        if not options.json:
            sys.stdout.write(pieces[-1])
            sys.stdout.flush()
    seconds = time.perf_counter() - start
    data = {"prompt": options.prompt, "text": "".join(pieces), "tokens": len(pieces), "seed": seed, "seconds": seconds}
    show("", data, options.json)
