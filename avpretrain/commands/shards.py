"""`avpretrain shards SRC OUT`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from tyro.conf import OmitArgPrefixes, Positional, arg

from avpretrain.data.shards import Progress, ShardConfig, ShardReport, make_shards
from avpretrain.terminal import Console, say


def main(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    cfg: Annotated[OmitArgPrefixes[ShardConfig], arg(name="")] = ShardConfig(),  # noqa: B008
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Turn a folder of videos or sounds into shards and a manifest.

    Reads SRC and never changes it. Writes OUT: SPLIT-000000.tar ..., manifest.arrow, dataset.json, and the lists
    sources.csv, skipped.csv and missing.csv. Takes as long as decoding every file once (docs/DATA.md has
    figures). Stopped at any moment and started again, it goes on where it was; with new files in
    SRC it adds only those.

    Args:
        src: folder with the files.
        out: folder of the data set; new, empty, or one to go on with.
        cfg: how.
        json_: print the summary as JSON.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]files"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[clips]} clips, {task.fields[skipped]} skipped"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        line = bar.add_task("", total=None, clips=0, skipped=0)

        def show(progress: Progress) -> None:
            bar.update(
                line, completed=progress.done, total=progress.total, clips=progress.clips, skipped=progress.skipped
            )

        report = make_shards(src, out, cfg, show)
    if json_:
        json.dump(_facts(report), sys.stdout, indent=2)
        print()
    else:
        _say(report, out)


def _facts(report: ShardReport) -> dict[str, object]:
    info = report.manifest.info
    return {
        **{name: info[name] for name in ("name", "clips", "hours", "bytes", "fingerprint")},
        "added_files": report.added,
        "skipped": dict(Counter(done.reason for done in report.skipped).most_common()),
        "changed_files": len(report.changed),
        "missing_files": len(report.listing.missing),
        "present_share": report.listing.present,
        "ignored_files": report.listing.ignored,
    }


def _say(report: ShardReport, out: Path) -> None:
    info, listing = report.manifest.info, report.listing
    say(
        f"{out}: {info['clips']} clips, {info['hours']:.2f} h, {info['bytes'] / 1e6:.1f} MB "
        f"in {len(report.manifest.shards)} shards; {report.added} files added"
    )
    if report.skipped:
        say(f"skipped {len(report.skipped)} files (see {out / 'skipped.csv'}):")
        for reason, count in Counter(done.reason for done in report.skipped).most_common(5):
            say(f"  {count} x {reason}")
    if listing.missing:
        say(f"missing {len(listing.missing)} files ({listing.present:.1%} of the set is present; see missing.csv)")
    if listing.ignored:
        say(f"ignored {listing.ignored} files that are no media or that no table names")
    if report.changed:
        say(
            f"{len(report.changed)} files changed since they were sharded, e.g. {report.changed[0]}; "
            "their old clips stay (for new ones, shard into a new folder)"
        )
    say(f"fingerprint {info['fingerprint'][:16]}")
