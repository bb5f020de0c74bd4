"""Whether what a verb reads is there and what it will write has a place, asked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from avpretrain.core.errors import UsageError
from avpretrain.data.place import require_data_sets
from avpretrain.training.folders import find_weights

MODEL_FILES = ("model.safetensors", "config.json")


def require_inputs(ckpt: Path, data: Iterable[str] = ()) -> None:
    """Checks that there are weights and sharded data sets where a verb is told to read them.

    Raises:
        UserError: there are none.
    """
    find_weights(ckpt)
    require_data_sets(data)


def require_file(out: Path | None, option: str = "--out", suffixes: tuple[str, ...] = (), example: str = "") -> None:
    """Checks that a file can be written there.

    Raises:
        UsageError: it is a folder, lies below a file, or ends in none of `suffixes`.
    """
    if out is None:
        return
    if out.is_dir():
        example = example or f"result{suffixes[0] if suffixes else '.json'}"
        raise UsageError(f"{option} {out} is a folder; name a file, such as {out / example}")
    if suffixes and out.suffix not in suffixes:
        raise UsageError(f"{option} must end in {' or '.join(suffixes)}, got {out}")
    _require_parent(out, option)


def require_folder(out: Path, option: str = "--out") -> None:
    """Checks that a folder with files of ours can be written there; those in it stay.

    Raises:
        UsageError: it is a file, or lies below one.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{option} {out} is a file; name a folder")
    _require_parent(out, option)


def require_model_folder(out: Path) -> None:
    """Checks that a folder may be written anew: it is not there, is empty, or holds a model that was written before.

    Raises:
        UsageError: it is something else, which would be lost.
    """
    require_folder(out, "OUT")
    here = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if here and not (here.issuperset(MODEL_FILES) and "run.json" not in here):
        raise UsageError(f"{out} is something else already, which would be replaced; name a new folder")


def _require_parent(out: Path, option: str) -> None:
    above = next((parent for parent in out.absolute().parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        raise UsageError(f"{option} {out} lies below {above}, which is a file; name another place")
