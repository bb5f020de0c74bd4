"""`avpretrain bench compress`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from avpretrain.cli.shared.arguments import bind
from avpretrain.cli.shared.places import require_file
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import Console


def run(args: Sequence[str]) -> None:
    """Fills the call from the command line."""
    bind(compress, args, "avpretrain bench compress")()


def compress(
    root: Annotated[Positional[Path], arg(metavar="FSDD")],
    /,
    seeds: int = 1,
    epochs: int = 8,
    width: float = 0.25,
    steps: int = 100,
    out: Path = Path("compress.json"),
) -> None:
    """Train a small MobileNetV1 on spoken digits, compress it in every way, and write accuracies.

    Reads recordings of the Free Spoken Digit Dataset. Writes one JSON file. Takes a few minutes a seed on a CPU.

    Args:
        root: Folder with recordings DIGIT_SPEAKER_INDEX.wav or .flac.
        seeds: Networks, trained from seeds 0, 1, ...
        epochs: Passes over the training split.
        width: Multiplier of the network's channels.
        steps: Steps of the solver by gradients.
        out: JSON file to write.
    """
    require_file(out)
    if seeds < 1 or epochs < 1 or steps < 1 or not 0.05 <= width <= 2:
        raise UsageError("--seeds, --epochs and --steps take 1 or more, --width 0.05 to 2")
    from avpretrain.compression.table import run as run_table
    from avpretrain.core.provenance import environment

    result = run_table(root, seeds, epochs, width, steps)
    write_json(out, {**result, **environment()})
    Console(highlight=False).print(f"wrote {out}: {len(result['rows'])} rows")
