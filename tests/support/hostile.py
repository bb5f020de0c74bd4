"""Variants of a data set and of a model's folder that a stranger might send, and a process that opens them all.

Run as `python -m tests.support.hostile data|models FOLDER OUT`, it opens each folder in FOLDER, with a gigabyte of
address space more than it began with, and writes what came of each to OUT.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avpretrain.core.errors import UserError
from avpretrain.core.terminal import plain
from tests.support.tiny_models import tiny

GIGABYTE = 1 << 30
Change = Callable[[Path], None]


def text(name: str, content: bytes | str) -> Change:
    """Replaces a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda root: _replace(root / name, data)


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def instead(name: str, make: Callable[[Path], Any]) -> Change:
    """Puts something else in a file's place."""

    def change(root: Path) -> None:
        (root / name).unlink()
        make(root / name)

    return change


def sparse(path: Path) -> None:
    """Ten terabytes that take no room."""
    with path.open("wb") as file:
        file.truncate(10 << 40)


def make(good: Path, variants: dict[str, tuple[Change, str]], folder: Path) -> None:
    """A copy of `good` for each variant, changed."""
    for name, (change, _) in variants.items():
        shutil.copytree(good, folder / name)
        change(folder / name)


# --- the process that opens them -------------------------------------------------------------------------------------


def open_data(root: Path) -> dict[str, Any]:
    """Every clip of a data set, decoded."""
    from avpretrain.cli.inspect import describe
    from avpretrain.config.model import InputConfig
    from avpretrain.data.read.clips import ClipSet
    from avpretrain.data.read.dataset import eval_loader
    from avpretrain.data.verify import require_data_set

    clips = ClipSet((str(root),), "all")
    input = InputConfig(audio_frames=64, mels=32, video_frames=2, video_fps=2.0, video_size=32)
    reasons: list[str] = []
    with eval_loader(clips, input, range(len(clips)), batch_size=4) as loader:
        for raw in loader:
            reasons += raw.reasons
    describe(require_data_set(root))
    return {"clips": len(clips), "bad": reasons, "log_mel": clips.log_mel}


def open_model(root: Path) -> dict[str, Any]:
    from avpretrain.methods.diffmavil.conversions.foreign import READERS
    from avpretrain.methods.diffmavil.conversions.importers import import_checkpoint
    from avpretrain.methods.load import load_model

    if root.suffix in (".pth", ".safetensors"):
        import_checkpoint(root, next((f for f in READERS if root.stem.startswith(f"{f} ")), "mae"), tiny(), "video")
    else:
        load_model(root)
    return {}


def main(what: str, folder: Path, out: Path) -> None:
    """Opens everything in a folder."""
    opened = open_data if what == "data" else open_model
    opened(folder / "good")  # imports what it needs
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, resource.RLIM_INFINITY))
    found = {}
    for path in sorted(folder.iterdir()):
        started = time.perf_counter()
        result: dict[str, Any] = {"error": None}
        try:
            result.update(opened(path))
        except UserError as error:
            result["error"] = plain(" ".join(str(error).split()))
        except BaseException as error:
            result["fault"] = f"{type(error).__name__}: {str(error)[:300]}"
        found[path.name] = {**result, "seconds": time.perf_counter() - started}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
