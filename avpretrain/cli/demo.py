"""`avpretrain demo`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from avpretrain.cli import main as cli
from avpretrain.cli.shared.places import require_folder
from avpretrain.core.errors import UserError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import Console, say


def main(
    out: Annotated[Positional[Path], arg(metavar="OUT")] = Path("demo"),
    clips: int = 640,
    seed: int = 0,
) -> None:
    """Run the whole pipeline, small: synthetic scenes, shards, MAViL and DiffMAViL, linear probes, report.

    Reads nothing. Writes scenes, shards, two runs, report.html and demo.json (the time it took) into OUT. Takes three
    to five minutes on two CPU cores; the same command again resumes where it was interrupted.

    Args:
        out: Folder for everything.
        clips: Scenes to render.
        seed: Of scenes and training.
    """
    require_folder(out, "OUT")
    console = Console(stderr=True)
    scenes, shards, report = out / "scenes", out / "shards", out / "report.html"
    runs = {name: out / name for name in ("mavil", "diffmavil")}
    common = ["--data.shards", str(shards), "--seed", str(seed), "--run.preview-every", "1000000"]  # one, at the end
    synth = ["synth", str(scenes), "--clips", str(clips), "--seed", str(seed), "--test-share", "0.25", "--size", "96"]
    cut = ["shards", str(scenes), str(shards), "--clip-seconds", "0", "--short-side", "64"]
    trainings = [
        ["train", f"tiny_{name}", "--name", name, "--output-dir", str(run_dir), *common]
        for name, run_dir in runs.items()
    ]
    probes = [["probe", str(run_dir), str(shards), "--label", "class"] for run_dir in runs.values()]
    page = ["report", *map(str, runs.values()), "--out", str(report)]
    titles = ("render scenes", "cut them into shards", "pretrain", "probe", "report")
    started = time.perf_counter()
    for number, (title, commands) in enumerate(zip(titles, ([synth], [cut], trainings, probes, [page]), strict=True)):
        for verb, *arguments in commands:
            console.rule(f"{number + 1}/5 {title}  avpretrain {verb} {' '.join(arguments)}", align="left")
            if commands is not trainings:
                cli.run(verb, arguments)
        if commands is trainings:
            _train(trainings)
            if not all((run_dir / "model").exists() for run_dir in runs.values()):
                return  # told to stop; each run has said how to resume
    from avpretrain.core.provenance import environment
    from avpretrain.report.write import summary_table

    say(summary_table(list(runs.values())))
    seconds = time.perf_counter() - started
    write_json(out / "demo.json", {"seconds": seconds, "clips": clips, "seed": seed, **environment()})
    say(f"report: {report.resolve()}  ({seconds / 60:.1f} min)")


def _train(commands: Sequence[Sequence[str]]) -> None:
    """Both runs, one after the other on a GPU; on a CPU side by side, each on its share of the cores.

    Models this small gain nothing from a second thread, and side by side their wall clocks compare as well as in turn.

    Raises:
        UserError: a run failed; it has said why.
    """
    import torch

    cores = os.cpu_count() or 1
    if torch.cuda.is_available() or cores < len(commands):
        for verb, *arguments in commands:
            cli.run(verb, arguments)
        return
    env = os.environ | {"OMP_NUM_THREADS": str(cores // len(commands))}
    processes = [subprocess.Popen([sys.executable, "-m", "avpretrain", *command], env=env) for command in commands]

    def pass_on(number: int, _frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.terminate()  # does nothing to one that has ended
        for number, handler in old.items():
            signal.signal(number, handler)
    if any(codes):
        raise UserError("a pretraining run of the demo failed, as said above; the same command resumes from there")
