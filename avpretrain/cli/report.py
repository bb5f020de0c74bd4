"""`avpretrain report`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file
from avpretrain.core.errors import UsageError
from avpretrain.core.terminal import say
from avpretrain.report.comparison import as_json, summary_table
from avpretrain.report.write import write_report


def main(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")],
    /,
    out: Path = Path("report.html"),
    json: bool = False,
) -> None:
    """Compare runs in one HTML page: cost, curves, probes, reconstructions, configs.

    Reads run folders as `avpretrain train` writes them, and the results in their eval/ folders; no data, no weights.
    Writes one file that needs no network. Takes seconds. Savings and paired differences are measured against the run
    whose config is MAViL's, else the first.

    Args:
        runs: Folders of runs.
        out: The page.
        json: Print the comparison as JSON.
    """
    if not runs:
        raise UsageError("no runs; give one or more folders written by avpretrain train")
    require_file(out, example="report.html")
    comparison = write_report(runs, out)
    if json:
        print(json_format.dumps({**as_json(comparison), "report": str(out)}, indent=2))
    else:
        say(summary_table(runs))
        say(f"report: {out}")
