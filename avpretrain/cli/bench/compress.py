"""`avpretrain bench compress`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from avpretrain.cli.shared.arguments import bind
from avpretrain.cli.shared.places import require_file
from avpretrain.core.errors import UsageError
from avpretrain.core.terminal import Console, say


def run(args: Sequence[str]) -> None:
    """Fills the call from the command line."""
    bind(compress, args, "avpretrain bench compress")()


def compress(
    root: Annotated[Positional[Path], arg(metavar="FSDD")],
    /,
    network: Literal["mobilenet_v1", "mobilenet_v2", "resnet18"] = "mobilenet_v1",
    width: float = 0.25,
    seeds: int = 1,
    epochs: int = 40,
    steps: int = 60,
    out: Path = Path("compress.json"),
) -> None:
    """Train a small network on spoken digits, compress it in every way, and print and write accuracies.

    Reads recordings of the Free Spoken Digit Dataset. Writes one JSON file, after each cell of the table, and beside it
    the trained networks; what is there from an earlier run of the same settings is not measured again. Takes a quarter
    of an hour a seed on a CPU.

    Args:
        root: Folder with recordings DIGIT_SPEAKER_INDEX.wav or .flac.
        network: What is trained; the last two need torchvision.
        width: Multiplier of the network's channels.
        seeds: Networks, trained from seeds 0, 1, ...
        epochs: Passes over the training split.
        steps: Steps of the solver by gradients.
        out: JSON file to write.
    """
    require_file(out)
    if seeds < 1 or epochs < 1 or steps < 1 or not 0.05 <= width <= 2:
        raise UsageError("--seeds, --epochs and --steps take 1 or more, --width 0.05 to 2")
    from avpretrain.compression.table import Settings, markdown
    from avpretrain.compression.table import run as run_table
    from avpretrain.core.provenance import environment

    settings = Settings(network=network, width=width, seeds=seeds, epochs=epochs, steps=steps)
    rows = run_table(root, settings, out, environment())
    say(markdown(rows))
    Console(highlight=False).print(f"wrote {out}: {len(rows)} rows")
