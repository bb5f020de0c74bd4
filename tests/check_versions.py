"""Installs avpretrain into fresh environments and runs synth, shards, train and probe there: `make check-versions`.

Without arguments: the lowest direct versions that pyproject.toml admits on the oldest Python found, and the newest
versions on the newest Python; with --all, both on every Python found (3.11 or later, on the PATH or from pyenv).
constraints.txt plays no part. Needs uv, and the network or a filled cache of uv; environments live in build/ while they
are checked. No test of pytest, since it needs other environments than the one that runs it.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLIPS = 32
BATCH = ("--schedule.batch.size", "8", "--schedule.batch.max-size", "8")  # half of the clips are for training
SHOWN = ("torch", "av", "numpy", "pyarrow", "accelerate", "diffusers")
"""Packages whose versions are printed."""
Version = tuple[int, int, int]


def find_pythons() -> dict[tuple[int, int], Path]:
    """Minor version to interpreter: the newest final release of each from 3.11 on."""
    folders = [Path(p) for p in os.get_exec_path()]
    folders += sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))
    found: dict[tuple[int, int], tuple[Version, Path]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("python3.*"))):
        if not re.fullmatch(r"python3\.\d+", path.name):
            continue
        ask = "import sys, ensurepip; print(*sys.version_info[:4], sys.executable)"
        said = subprocess.run([path, "-c", ask], capture_output=True, text=True)
        if said.returncode:  # a shim of pyenv without its version, or a Python in parts
            continue
        *numbers, level, executable = said.stdout.strip().split(" ", 4)
        major, minor, micro = map(int, numbers)
        if (major, minor) >= (3, 11) and level == "final":
            known = found.get((major, minor), ((0, 0, 0), path))
            found[major, minor] = max(known, ((major, minor, micro), Path(executable)))
    return {minor: path for minor, (_, path) in sorted(found.items())}


def say(what: str, step: str, started: float, more: str = "") -> None:
    print(f"{what:<13} {step:<8} {time.monotonic() - started:4.0f} s  {more}".rstrip(), flush=True)


def run(what: str, step: str, command: Sequence[str | Path], folder: Path) -> str:
    """Runs a command in `folder` and returns what it printed; one that fails ends everything."""
    unset = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")  # torch is compiled once, not by each verb
    env = {name: value for name, value in os.environ.items() if name not in unset} | {"UV_PYTHON_DOWNLOADS": "never"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-15:]))
        sys.exit(f"check-versions: {what}: {step} failed (exit status {done.returncode}), its last lines stand above")
    return done.stdout


def check(python: Path, resolution: str, what: str, folder: Path) -> None:
    """Installs, and runs the pipeline on 32 clips."""
    uv, started = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv", time.monotonic()
    inside, pins = folder / "venv" / "bin" / "python", folder / "pins.txt"
    run(what, "venv", [uv, "venv", "--python", python, folder / "venv"], folder)
    resolve = [uv, "pip", "compile", "--resolution", resolution, "--python", inside, "--output-file", pins]
    run(what, "resolve", [*resolve, ROOT / "pyproject.toml"], folder)
    # wheels only: a bound without a wheel for this Python is a fault of the bound
    run(what, "install", [uv, "pip", "install", "--no-build", "--python", inside, "--requirement", pins], folder)
    run(what, "install", [uv, "pip", "install", "--no-deps", "--python", inside, ROOT], folder)
    versions = dict(re.findall(r"^([\w-]+)==(\S+)", pins.read_text(), flags=re.MULTILINE))
    say(what, "install", started, ", ".join(f"{name} {versions[name]}" for name in SHOWN))
    steps = {
        "synth": ["scenes", "--clips", CLIPS, "--size", "32", "--test-share", "0.5"],
        "shards": ["scenes", "set", "--clip-seconds", "0", "--short-side", "32"],
        "train": ["tiny_diffmavil", "--data.shards", "set", "--output-dir", "run", "--schedule.samples", "64", *BATCH],
        "probe": ["run", "set", "--label", "class"],
    }
    for verb, arguments in steps.items():
        started = time.monotonic()
        run(what, verb, [inside, "-m", "avpretrain", verb, *map(str, arguments)], folder)
        if verb == "shards":
            with (folder / "set" / "skipped.csv").open(newline="") as file:
                skipped = [f"{row['path']}: {row['reason']}" for row in csv.DictReader(file)]
            if skipped:
                sys.exit(f"check-versions: {what}: shards skipped {len(skipped)} good files, e.g. {skipped[0]}")
        say(what, verb, started)


def main() -> None:
    pythons = find_pythons()
    if not pythons:
        sys.exit("check-versions: no Python 3.11 or later with ensurepip found, on the PATH or in ~/.pyenv/versions")
    oldest, newest = min(pythons), max(pythons)
    jobs = [(oldest, "lowest-direct"), (newest, "highest")]
    if "--all" in sys.argv[1:]:
        jobs = [(minor, resolution) for minor in pythons for resolution in ("lowest-direct", "highest")]
    (ROOT / "build").mkdir(exist_ok=True)
    for minor, resolution in jobs:
        what = f"{minor[0]}.{minor[1]} {resolution.split('-')[0]}"
        with tempfile.TemporaryDirectory(prefix="versions-", dir=ROOT / "build") as folder:
            check(pythons[minor], resolution, what, Path(folder))


if __name__ == "__main__":
    main()
