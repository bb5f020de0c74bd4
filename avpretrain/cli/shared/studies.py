"""What verbs share that measure a checkpoint's reconstructions on held-out clips."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from avpretrain.cli.shared.places import require_file, require_inputs
from avpretrain.core.errors import UsageError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import Console
from avpretrain.measures.results import Result

Study = TypeVar("Study", bound=Result)


@runtime_checkable
class Settings(Protocol):
    """Settings of a study."""

    @property
    def ratio(self) -> float: ...
    @property
    def split(self) -> str: ...


def run_study(
    name: str,
    ckpt: Path,
    data: tuple[str, ...],
    how: Settings,
    least: Mapping[str, int],
    out: Path | None,
    as_json: bool,
    measure: Callable[[], Study],
    show: Callable[[Study, Console], None],
) -> None:
    """Checks the settings, measures, writes the result to `out` or into the run's eval/ folder, and shows it.

    Args:
        least: smallest value of each setting that is a number of something.
        measure: gives the result; what is heavy is imported by it.

    Raises:
        UsageError: a setting is out of its range.
        UserError: there are no weights or no data; or `measure` failed.
    """
    if not 0 < how.ratio < 1:
        raise UsageError(f"--ratio must lie in (0, 1), got {how.ratio}")
    for setting, smallest in least.items():
        if (given := getattr(how, setting)) < smallest:
            raise UsageError(f"--{setting.replace('_', '-')} must be at least {smallest}, got {given}")
    require_file(out)
    require_inputs(ckpt, data)
    result = measure()
    from avpretrain.evaluation.results import result_path

    path = result_path(ckpt, out, name, how.split)
    if path:
        write_json(path, result.to_json())
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
        return
    console = Console()
    show(result, console)
    if path:
        console.print(f"result: {path}", highlight=False, soft_wrap=True)
