"""`avpretrain generate CKPT PROMPT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from avpretrain.core.errors import UsageError
from avpretrain.core.terminal import plain


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    prompt: Annotated[Positional[str], arg(metavar="PROMPT")] = "",
    /,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> None:
    """Continue a text by a language model.

    Reads a checkpoint. Writes the prompt and what follows it to the terminal, as it comes; it ends with the document,
    after --tokens, or where the model's context is full. The first words take seconds.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors, config.json and tokenizer.json.
        prompt: Text to continue; none = a new document.
        tokens: Most tokens to write.
        temperature: Above 1 bolder, below 1 safer; 0 = always the likeliest token.
        top_k: Draw from so many of the likeliest tokens; 0 = from all.
        seed: Of the draws.
    """
    if tokens < 1:
        raise UsageError(f"--tokens must be at least 1, got {tokens}")
    if not 0 <= temperature < 1e6:
        raise UsageError(f"--temperature must not be negative, got {temperature:g}")
    if top_k < 0:
        raise UsageError(f"--top-k must not be negative, got {top_k}")
    import torch

    from avpretrain.methods.load import load_language_model
    from avpretrain.methods.openelm.generate import generate

    model, tokenizer = load_language_model(ckpt)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    start = [tokenizer.separator, *tokenizer.encode(prompt)]
    found = generate(model, start, tokens, temperature, top_k, seed, tokenizer.ends)
    sys.stdout.write(plain(prompt))
    for piece in tokenizer.stream(found, after=start):
        sys.stdout.write(plain(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
