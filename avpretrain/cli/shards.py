"""`avpretrain shards SRC OUT`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from tyro.conf import OmitArgPrefixes, Positional, arg

from avpretrain.core.terminal import Console, say
from avpretrain.data.write.settings import ShardConfig

if TYPE_CHECKING:
    from avpretrain.data.write.shards import Progress, ShardReport


def main(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    cfg: Annotated[OmitArgPrefixes[ShardConfig], arg(name="")] = ShardConfig(),  # noqa: B008
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Turn a folder of video or audio files into shards and a manifest.

    Reads SRC and never changes it. Writes OUT: SPLIT-000000.tar ..., manifest.arrow, dataset.json, and the lists
    sources.csv, skipped.csv and missing.csv. Takes as long as decoding every file once (docs/DATA.md has
    figures). Stopped at any moment and started again, it resumes where it was; with new files in
    SRC it adds only those; where its list gives other labels or splits than before, clips get them without being
    decoded again.

    Args:
        src: folder with the files.
        out: folder of the data set; new, empty, or one to resume.
        cfg: how.
        json_: print the summary as JSON.
    """
    report = shard_with_progress(src, out, cfg)
    if json_:
        json.dump(_facts(report), sys.stdout, indent=2)
        print()
    else:
        _say(report, out)


def shard_with_progress(src: Path, out: Path, cfg: ShardConfig) -> ShardReport:
    """As `make_shards`, with a bar on a terminal."""
    from avpretrain.data.write.shards import make_shards

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
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=None, clips=0, skipped=0)

        def show(progress: Progress) -> None:
            bar.update(
                line, completed=progress.done, total=progress.total, clips=progress.clips, skipped=progress.skipped
            )

        return make_shards(src, out, cfg, show)


def _kind(reason: str) -> str:
    """A reason without what was seen of the single file, which stands in brackets at its end."""
    return reason.split(" (")[0] if reason.endswith(")") else reason


def _facts(report: ShardReport) -> dict[str, object]:
    info = report.manifest.info
    return {
        **{name: info[name] for name in ("name", "clips", "hours", "bytes", "fingerprint")},
        "added_files": report.added,
        "skipped": dict(Counter(done.reason for done in report.skipped).most_common()),
        "away_files": len(report.away),
        "dropped": report.dropped,
        "changed_files": len(report.changed),
        "relabelled_files": len(report.revision.relabelled),
        "resplit_files": len(report.revision.resplit),
        "removed_files": len(report.revision.removed),
        "unlisted_files": len(report.revision.kept),
        "in_several_splits": len(report.shared),
        "notes": report.listing.notes,
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
        for reason, count in Counter(_kind(done.reason) for done in report.skipped).most_common(5):
            say(f"  {count} x {reason}")
    if report.away:
        say(
            f"{len(report.away)} files could not be read this time, e.g. {report.away[0].path} "
            f"{report.away[0].reason}; run the same command again to try them"
        )
    if report.dropped:
        say(f"of the others, left out or filled in (by file in {out / 'sources.csv'}):")
        for what, amount in sorted(report.dropped.items()):
            say(f"  {amount:.10g} {what}" if amount == int(amount) else f"  {amount:.1f} {what}")
    if listing.missing:
        say(f"missing {len(listing.missing)} files ({listing.present:.1%} of the set is present; see missing.csv)")
    if listing.ignored:
        say(f"ignored {listing.ignored} files that are no media or that no table names")
    if report.changed:
        say(
            f"{len(report.changed)} files changed since they were sharded, e.g. {report.changed[0]}; "
            "their old clips stay (for new ones, shard into a new folder)"
        )
    revision = report.revision
    for paths, what in (
        (revision.relabelled, "files got the labels or licence that the list has now"),
        (revision.resplit, "files went to the split that the list has now"),
        (revision.removed, "files are no longer in the list, or have another name; their clips are left out"),
        (revision.kept, "files are gone or not in the list; their clips stay"),
    ):
        if paths:
            say(f"{len(paths)} {what}, e.g. {paths[0]}")
    if report.shared:
        say(f"warning: {len(report.shared)} clips or files stand in several splits, e.g. {report.shared[0]}")
    for note in listing.notes:
        say(note)
    say(f"fingerprint {info['fingerprint'][:16]}")
