"""Asks how much past and how much future an active speaker detector needs: average precision over a grid of windows.

    python docs/studies/speaker_windows.py OUT [--result docs/results/speaker_windows_cpu.json]

Trains on synthetic talking heads (`avpretrain tracks synthetic`), a run for each cell and seed, with baselines of as
many parameters; a run that is there is not trained again, so the study can be stopped and resumed. The heads are
symmetrical in time ("reversible"): windows of equal length hold equal information on average. The control has heads
whose mouths are covered late in a bout ("onset"), played forwards and backwards: what favours the past forwards must
favour the future backwards. Prints every cell, whatever comes out. On a CPU a run takes about a minute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tyro

from avpretrain.api import train
from avpretrain.core.files import write_json
from avpretrain.core.provenance import environment
from avpretrain.measures.intervals import across
from avpretrain.methods.load import load_config, load_speaker
from avpretrain.methods.speaker.config import SpeakerConfig, with_fusion
from avpretrain.methods.speaker.data import TrackClips, is_track_set
from avpretrain.methods.speaker.evaluate import labelled_scores
from avpretrain.methods.speaker.metric import average_precision
from avpretrain.methods.speaker.results import WindowResult, make_result, read_result, write_result
from avpretrain.methods.speaker.tracks.config import TracksConfig
from avpretrain.methods.speaker.tracks.make import make_tracks

DATA: dict[str, dict[str, Any]] = {
    "reversible": {},
    "onset": {"symmetry": "onset"},
    "onset-reversed": {"symmetry": "onset", "time_reversed": True},
}
"""Options of the synthetic heads of each data set."""
Cell = tuple[str, str, int, int]
"""Data set, kind of fusion, past, future."""


def main(
    out: tyro.conf.Positional[Path],
    base: str = "speaker_tiny",
    pasts: tuple[int, ...] = (0, 2, 4, 8, 16, 32, -1),
    futures: tuple[int, ...] = (0, 1, 2, 4, 8),
    baselines: tuple[str, ...] = ("gru", "bigru", "frame", "tcn"),
    control: tuple[int, ...] = (4, 8),
    seeds: tuple[int, ...] = (0, 1, 2),
    samples: int | None = None,
    scenes: int = 400,
    face_size: int = 32,
    result: Path | None = None,
) -> None:
    """See the head of this file.

    Args:
        pasts: of each block; -1 = all.
        control: windows of so many frames in all, once as past alone and once as future alone.
    """
    start = load_config(base)
    assert isinstance(start, SpeakerConfig)
    start = dataclasses.replace(
        start,
        schedule=dataclasses.replace(start.schedule, samples=samples or start.schedule.samples),
        model=dataclasses.replace(start.model, encoder=dataclasses.replace(start.model.encoder, face_size=face_size)),
        run=dataclasses.replace(start.run, keep_checkpoints=1, keep_best="none"),
    )
    depth = start.model.fusion.depth
    cells: list[Cell] = [("reversible", kind, start.model.fusion.past, 0) for kind in baselines]
    cells += [("reversible", "banded", past, future) for past in pasts for future in futures]
    for data in ("onset", "onset-reversed", "reversible"):
        cells += [(data, "banded", past // depth, future) for n in control for past, future in ((n, 0), (0, n))]
    cells = list(dict.fromkeys(cells))
    for seed in seeds:
        for number, cell in enumerate(cells):
            found = one(start, out, cell, seed, scenes)
            print(f"{number + 1}/{len(cells)} seed {seed} {' '.join(map(str, cell))}: {found.average_precision:.4f}")
    rows = [summary([one(start, out, cell, seed, scenes) for seed in seeds]) for cell in cells]
    answer = {
        "study": "speaker_windows", "base": base, "samples": start.schedule.samples, "scenes": scenes,
        "face_size": face_size, "seeds": seeds, "cells": rows, "matching": matching(rows), **environment(),
    }  # fmt: skip
    write_json(result or out / "speaker_windows.json", answer)
    show(rows, answer["matching"])


def one(start: SpeakerConfig, out: Path, cell: Cell, seed: int, scenes: int) -> WindowResult:
    """Trains and tests a cell with a seed, or reads what was found."""
    data, kind, past, future = cell
    run = out / "runs" / f"{data}-{kind}-p{past}-f{future}-s{seed}"
    if (there := read_result(run)) is not None:
        return there
    tracks = data_set(out, data, scenes, start.model.encoder.face_size)
    cfg = dataclasses.replace(
        start,
        name=run.name,
        output_dir=str(run),
        seed=seed,
        data=dataclasses.replace(start.data, shards=(str(tracks),)),
        model=with_fusion(start.model, kind=kind, past=past, future=future),
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        outcome = train(cfg)
    if not outcome.finished:
        raise SystemExit(f"stopped by {outcome.stopped_by} in {run.name}; the same command resumes it")
    model, clips = load_speaker(run), TrackClips([tracks], "test")
    scores, positive, _ = labelled_scores(model, (clips[i] for i in range(len(clips))))
    parameters = sum(p.numel() for p in model.parameters())
    value = average_precision(scores, positive)
    found = make_result(model.cfg, data, seed, parameters, value, len(scores), int(positive.sum()))
    write_result(run, found)
    return found


def data_set(out: Path, name: str, scenes: int, face_size: int) -> Path:
    """The folder of a data set, made when it is first needed: a quarter of its scenes test."""
    folder = out / "data" / name
    if not is_track_set(folder):
        how = {"scenes": scenes, "face_size": face_size, "val_share": 0.0, "test_share": 0.25, **DATA[name]}
        make_tracks("synthetic", folder, TracksConfig(**how), lambda done, total: None)
    return folder


def summary(found: list[WindowResult]) -> dict[str, Any]:
    """A cell over its seeds."""
    values, first = [one.average_precision for one in found], found[0]
    row: dict[str, Any] = {
        "data": first.label, "kind": first.kind, "past": first.past, "future": first.future,
        "window_past": first.window_past, "window_future": first.window_future, "parameters": first.parameters,
        "values": values, "mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None,
    }  # fmt: skip
    return row | ({"ci": across(values)["ci"]} if len(values) > 1 else {})


def matching(rows: Iterable[dict[str, Any]], least_seeds: int = 2) -> dict[str, Any] | None:
    """For each future, the smallest past that is no worse than the GRU: its mean is at least the GRU's less the GRU's
    standard deviation over seeds. None where there are too few seeds to say.
    """
    rows = [row for row in rows if row["data"] == "reversible"]
    gru = next((row for row in rows if row["kind"] == "gru"), None)
    if gru is None or len(gru["values"]) < least_seeds:
        return None
    threshold = gru["mean"] - gru["sd"]
    reached: dict[str, Any] = {"threshold": threshold, "by_future": {}}
    for future in sorted({row["future"] for row in rows if row["kind"] == "banded"}):
        line = [row for row in rows if row["kind"] == "banded" and row["future"] == future and row["mean"] >= threshold]
        pasts = sorted((row["past"] for row in line), key=lambda past: (past < 0, past))
        reached["by_future"][str(future)] = pasts[0] if pasts else None
    return reached


def show(rows: list[dict[str, Any]], matched: dict[str, Any] | None) -> None:
    """Prints all cells, and what they say of the GRU."""
    print(f"{'data':<15} {'fusion':<8} {'past':>5} {'future':>6} {'AP':>8} {'sd':>8}")
    for row in rows:
        sd = "" if row["sd"] is None else f"{row['sd']:.4f}"
        past = row["past"] if row["kind"] in ("banded", "tcn") else ""
        future = row["future"] if row["kind"] == "banded" else ""
        print(f"{row['data']:<15} {row['kind']:<8} {past:>5} {future:>6} {row['mean']:>8.4f} {sd:>8}")
    if matched is not None:
        print(f"smallest past that matches the GRU ({matched['threshold']:.4f}), by future: {matched['by_future']}")


if __name__ == "__main__":
    tyro.cli(main)
