"""`avpretrain perplexity CKPT DATA`."""

from __future__ import annotations

import json as json_format
import tempfile
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import say


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    /,
    split: str = "",
    context: int = 0,
    windows: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure a language model on text: perplexity of a token, and bits per byte.

    Reads a checkpoint, and packed tokens or text, which is tokenized by the model's own tokenizer. Every token is
    predicted once, from those before it in its window; windows do not overlap. Bits per byte can be compared between
    tokenizers, perplexities can't. Writes eval/perplexity_SPLIT_DATA.json into the checkpoint's run, or the file --out.
    Takes about a minute for 100 kB with a tiny model on a CPU.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors, config.json and tokenizer.json.
        data: Folder that `avpretrain tokens` wrote, a text file, or a folder of them.
        split: Which split; without it 'val' of packed tokens, and all of a text.
        context: Tokens of a window; 0 = the model's.
        windows: So many from the beginning; 0 = all.
        out: JSON file to write in place of the run's.
        json: Print the result as JSON.
    """
    require_file(out)
    if context < 0 or windows < 0:
        raise UsageError("--context and --windows must not be negative")
    import torch

    from avpretrain.config.text import PackConfig
    from avpretrain.core.provenance import environment
    from avpretrain.data.text.pack import pack
    from avpretrain.data.text.tokens import TokenStream, is_token_set
    from avpretrain.evaluation.results import result_path
    from avpretrain.methods.load import load_language_model
    from avpretrain.methods.openelm.held_out import measure

    model, tokenizer = load_language_model(ckpt)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="avpretrain") as temporary:
        folder, chosen = data, split or "val"
        if not is_token_set(data):
            folder, chosen = Path(temporary) / "tokens", split or "all"
            tokenizer.save(Path(temporary))
            pack([data], folder, PackConfig(tokenizer=temporary, val_share=0.0))
        stream = TokenStream([folder], chosen)
        if stream.sets[0].values.get("tokenizer") != tokenizer.sha256:
            raise UsageError(f"{data} was packed by another tokenizer than the model's; name the text, or pack it anew")
        found = measure(model, stream, windows, context=context or None)
        answer = {
            "task": "perplexity", "label": chosen, "metric": "bits_per_byte", "split": chosen, **found.to_json(),
            "context": context or model.cfg.context,
            "checkpoint": str(ckpt), "data": str(data), "fingerprint": stream.fingerprint, **environment(),
        }  # fmt: skip
    path = result_path(ckpt, out, "perplexity", chosen, data.resolve().stem)
    if path is not None:
        write_json(path, answer)
    if json:
        print(json_format.dumps(answer, indent=2))
        return
    say(
        f"perplexity {found.perplexity:.3f}, {found.bits_per_byte:.4f} bits per byte, {found.nll:.4f} nats a token "
        f"over {found.tokens:,} tokens of '{chosen}'" + ("" if found.whole else " (a part of it)")
    )
    if path is not None:
        say(f"result: {path}")
