"""`avpretrain bench manifest`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from avpretrain.cli.shared.arguments import bind
from avpretrain.cli.shared.places import require_file
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import say


def measure(
    rows: int = 10_000_000,
    out: Path | None = None,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measure what a huge data set costs before the first step, and what memory its manifest takes in a loader process.

    Writes a manifest of --rows clips into a temporary folder (300 bytes a row), with a copy for a while, and deletes
    them. Takes a few minutes.

    Args:
        rows: clips.
        out: write the numbers as JSON.
        json_: print the numbers as JSON.
    """
    require_file(out)
    from avpretrain.bench.manifest import measure_manifest, write_rows
    from avpretrain.core.provenance import environment

    if rows < 1:
        raise UsageError(f"--rows must be at least 1, got {rows}")
    with tempfile.TemporaryDirectory(prefix="avpretrain-") as folder:
        write_rows(Path(folder), rows)
        answer = {**measure_manifest(Path(folder)), **environment()}
    if out is not None:
        write_json(out, answer)
    if json_:
        print(json.dumps(answer, indent=2))
        return
    own, shared, steps = answer["own_bytes"] / 2**20, answer["shared_bytes"] / 2**20, answer["plan_own_bytes"] / 2**20
    size = answer["manifest_bytes"] / 1e9
    say(f"{answer['rows']:,} clips in {answer['shards']:,} shards, a manifest of {size:.2f} GB")
    say(
        f"list of shards: {answer['summary_bytes'] / 1e6:.1f} MB, {answer['listing_seconds']:.3f} s; "
        f"fetch all by HTTP on this machine {answer['fetch_seconds']:.1f} s"
    )
    say(
        f"a rank: open and check {answer['open_seconds']:.3f} s ({answer['open_processor_seconds']:.1f} s of a "
        f"processor), find the next sample {answer['seek_seconds']:.3f} s"
    )
    say(
        f"the plan of {answer['plan_config']}, {answer['plan_steps']:,} steps: {answer['plan_seconds']:.1f} s "
        f"({answer['plan_processor_seconds']:.1f} s of a processor), {steps:.0f} MiB"
    )
    say(
        f"a loader process: open {answer['loader_open_seconds']:.3f} s, {own:.0f} MiB of its own, "
        f"{shared:.0f} MiB of file pages shared by all"
    )


def run(args: Sequence[str]) -> None:
    """Measures as the command line says."""
    bind(measure, args, "avpretrain bench manifest")()
