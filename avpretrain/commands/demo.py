"""`avpretrain demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from avpretrain import cli


def main(
    out: Annotated[Positional[Path], arg(metavar="OUT")] = Path("demo"),
    clips: int = 640,
    seed: int = 0,
) -> None:
    """Run the whole pipeline, small: synthetic scenes, shards, MAViL and DiffMAViL, linear probes, report.

    Reads nothing. Writes scenes, shards, two runs and report.html into OUT. Takes under five minutes on two CPU cores;
    the same command again goes on where it was interrupted.

    Args:
        out: Folder for everything.
        clips: Scenes to render.
        seed: Of scenes and training.
    """
    console = Console(stderr=True)
    scenes, shards, report = out / "scenes", out / "shards", out / "report.html"
    runs = {name: out / name for name in ("mavil", "diffmavil")}
    common = ["--data.shards", str(shards), "--seed", str(seed), "--run.preview-every", "1000000"]  # one, at the end
    synth = ["synth", str(scenes), "--clips", str(clips), "--seed", str(seed), "--test-share", "0.25", "--size", "96"]
    cut = ["shards", str(scenes), str(shards), "--clip-seconds", "0", "--short-side", "64"]
    steps = [("1/5 render scenes", synth), ("2/5 cut them into shards", cut)]
    for name, run_dir in runs.items():
        arguments = ["train", f"tiny_{name}", "--name", name, "--output-dir", str(run_dir), *common]
        steps.append((f"3/5 pretrain {name}", arguments))
    for name, run_dir in runs.items():
        steps.append((f"4/5 probe {name}", ["probe", str(run_dir), str(shards), "--label", "class"]))
    steps.append(("5/5 report", ["report", *map(str, runs.values()), "--out", str(report)]))
    started = time.perf_counter()
    for title, (verb, *arguments) in steps:
        console.rule(f"[bold]{title}[/]  avpretrain {verb} {' '.join(arguments)}", align="left")
        cli.run(verb, arguments)
    from avpretrain.efficiency.report import summary_table

    print(summary_table(list(runs.values())))
    print(f"report: {report.resolve()}  ({(time.perf_counter() - started) / 60:.1f} min)")
