"""Where a run keeps its checkpoints, and which weights a path means; free of torch: a wrong path is said at once."""

from __future__ import annotations

from pathlib import Path

from avpretrain.core.errors import UserError
from avpretrain.data.place import DATASET_NAME

WEIGHTS, CONFIG, OPTIMIZER, STATE = "model.safetensors", "config.json", "optimizer.safetensors", "state.json"


def list_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return [p for p in checkpoint_folders(root) if (p / STATE).is_file()]


def checkpoint_folders(root: Path) -> list[Path]:
    """All that is named as a checkpoint is, complete or not, oldest first."""
    return sorted(p for p in root.glob("[0-9]*") if p.name.isdigit()) if root.is_dir() else []


def find_weights(path: str | Path) -> Path:
    """The folder with `model.safetensors` that `path` means: itself, a run's final model, or its newest checkpoint.

    Raises:
        UserError: there are no weights.
    """
    path = Path(path)
    newest = list_checkpoints(path / "checkpoints")[-1:]
    for folder in (path, path / "model", *newest):
        if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file():
            return folder
    wanted = f"a run folder, a checkpoint, or a folder with {WEIGHTS} and {CONFIG}"
    if path.is_file():
        hint = "; turn another project's weights into one with: avpretrain import" if path.name != WEIGHTS else ""
        raise UserError(f"{path} is a file; give {wanted}{hint}")
    if not path.exists():
        raise UserError(f"there is no {path}; give {wanted}")
    if (path / DATASET_NAME).is_file():
        raise UserError(f"{path} is a sharded data set; give {wanted} (the checkpoint comes first, then the data)")
    raise UserError(f"no weights in {path}; give {wanted}")
