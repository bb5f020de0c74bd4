"""What compression costs a language model: perplexity and size by bits and method.

    python docs/studies/compress_language_model.py CKPT TOKENS OUT.json

CKPT is a checkpoint of openelm, TOKENS a folder that `avpretrain tokens` wrote. Perplexity is that of the first 64
windows of the split val. Without data the model is given 32 random texts; real calibration sees 32 windows of the split
train. Activations are float32; the embedding, which is also the last layer, has 8 bits or is float32 (method
`float32 embedding`).
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avpretrain.compression.compress import Plan, compress
from avpretrain.compression.inputs import LayerNormInputs, PropagatedInputs, RealInputs, norm_moment_error
from avpretrain.compression.norms import equalise_norms
from avpretrain.compression.packed import write_packed
from avpretrain.core.files import write_json
from avpretrain.core.provenance import environment
from avpretrain.data.text.tokens import TokenStream
from avpretrain.methods.load import load_language_model
from avpretrain.methods.openelm.held_out import measure

WINDOWS, TEXTS = 64, 32
BITS = (4, 8, 3)
METHODS = ("naive", "float32 embedding", "equalise", "norms", "random text", "real text")
"""The last three choose grids in closed form."""


def main(ckpt: Path, tokens: Path, out: Path) -> None:
    model, tokenizer = load_language_model(ckpt)
    model.eval()
    context = model.cfg.context
    val, train = TokenStream([tokens], "val"), TokenStream([tokens], "train")
    if val.sets[0].values.get("tokenizer") != tokenizer.sha256:
        raise SystemExit(f"{tokens} was packed by another tokenizer than the model's")
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(model.cfg.vocabulary, (TEXTS, context), generator=generator)
    starts = torch.randint(len(train) - context, (TEXTS,), generator=generator).tolist()
    real = torch.from_numpy(np.stack([train.read(s, context) for s in starts]).astype(np.int64))

    def call(x: Tensor) -> Any:
        return lambda net: net.logits(x)

    full = measure(model, val, WINDOWS)
    rows: list[dict[str, Any]] = [{"method": "float32", "bits": 32, **full.to_json()}]
    with tempfile.TemporaryDirectory() as temporary:
        for bits in BITS:
            for method in METHODS:
                net = copy.deepcopy(model)
                plain = method in ("naive", "float32 embedding", "equalise")
                kept_back = [] if plain and method != "equalise" else equalise_norms(net, call(random))
                source = {"norms": LayerNormInputs(call(random)), "real text": RealInputs([call(real)])}.get(
                    method, PropagatedInputs([call(random)])
                )
                found, missed = source.moments(net)
                solver: Any = "naive" if plain else "closed"
                done = compress(net, Plan(bits=bits, solver=solver), found, [*kept_back, *missed], new_biases=False)
                if method == "float32 embedding":
                    net.embed.weight.data.copy_(model.embed.weight)
                    done.grids.pop("embed.weight")
                size = write_packed(Path(temporary) / "packed", dict(net.named_parameters()), done.grids)
                row = {"method": method, "bits": bits, "size": size, "missed": done.missed}
                rows.append({**row, **measure(net, val, WINDOWS).to_json()})
                print(json.dumps(rows[-1]), flush=True)
    write_json(out, {
        "parameters": sum(p.numel() for p in model.parameters()), "windows": WINDOWS, "context": context,
        "float32_size": 4 * sum(p.numel() for p in model.parameters()),
        "norm_moment_error": norm_moment_error(model, [call(real)]), "rows": rows, **environment(),
    })  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
