"""Reading run folders for the report."""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from avpretrain.config.reader import load_yaml
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UserError
from avpretrain.core.files import MAX_LOG_BYTES, read_json, read_text
from avpretrain.measures.scores import SHARES, Score, number, read_score

LOSSES = ("loss", "reconstruction_audio", "reconstruction_video", "inter", "intra_audio", "intra_video")

ConfigOf = Callable[[dict[str, Any]], EngineConfig]
Line = dict[str, Any]
"""One line of metrics.jsonl."""

NEEDED = ("seen", "samples_total", "loss", "seconds", "flops_total")


@dataclass(frozen=True, slots=True)
class Probe:
    """One evaluation of a run: a number, its 95% interval, and what needs no pretraining gets."""

    task: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    baselines: dict[str, float]
    seen: int
    """Clips that the evaluated weights had seen."""
    path: Path | None = None
    """The result; the scores of its clips lie next to it."""

    @property
    def is_share(self) -> bool:
        """Whether the value lies in [0, 1] and is read as a percentage."""
        return self.metric.replace(" ", "_") in SHARES


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder says."""

    path: Path
    name: str
    config: EngineConfig
    info: dict[str, Any]
    """run.json: versions, hardware, data."""
    lines: tuple[Line, ...]
    probes: tuple[Probe, ...]
    pictures: tuple[Path, ...]
    """Reconstructions, in order of clips seen."""
    results: tuple[Path, ...] = ()
    """Figures that evaluations drew (--pictures), in order of their names."""
    previews: tuple[Line, ...] = ()
    """What previews during training measured on held-out clips, in order of `seen`."""

    @property
    def last(self) -> Line:
        return self.lines[-1]

    @property
    def seen(self) -> int:
        return int(self.last["seen"])

    @property
    def share_done(self) -> float:
        return min(1.0, self.seen / self.last["samples_total"])

    @property
    def finished(self) -> bool:
        return self.share_done == 1

    @property
    def seconds(self) -> float:
        """Wall clock spent on training."""
        return float(self.last["seconds"])

    @property
    def flops_total(self) -> float:
        return float(self.last["flops_total"])

    @property
    def flops_per_clip(self) -> float:
        return self.flops_total / self.seen

    @property
    def clips_per_second(self) -> float:
        return self.seen / self.seconds if self.seconds else 0.0

    @property
    def peak_memory(self) -> int:
        return max(int(line.get("peak_memory_bytes") or 0) for line in self.lines)

    def probe(self, task: str) -> Probe | None:
        """The last probe of a task: of the weights that had seen the most clips."""
        return max((p for p in self.probes if p.task == task), key=lambda p: p.seen, default=None)

    def at(self, seen: int, key: str) -> float:
        """A column of the metrics where `seen` clips had been seen, interpolated between lines."""
        xs, ys = [0.0, *(float(line["seen"]) for line in self.lines)], [0.0, *(float(x[key]) for x in self.lines)]
        i = min(max(1, bisect_left(xs, seen)), len(xs) - 1)
        share = min(1.0, (seen - xs[i - 1]) / (xs[i] - xs[i - 1])) if xs[i] > xs[i - 1] else 1.0
        return ys[i - 1] + share * (ys[i] - ys[i - 1])


# --- reading ---------------------------------------------------------------------------------------------------------


def read_run(path: str | Path, config_of: ConfigOf) -> Run:
    """Reads a run folder.

    Args:
        config_of: makes a config of what its file holds (`methods.load.config_of`).

    Raises:
        UserError: it is no run folder, or a file in it is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no run folder {folder}; give the folder that avpretrain train wrote")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is no run folder (no config.yaml); give the folder that avpretrain train wrote")
    config, lines = _config(folder, config_of), _lines(folder / "metrics.jsonl")
    info = read_json(folder / "run.json", "run description") if (folder / "run.json").is_file() else {}
    if not isinstance(info, dict):
        raise UserError(f"run description {folder / 'run.json'} must hold an object")
    return Run(
        path=folder,
        name=config.name,
        config=config,
        info=info,
        lines=lines,
        probes=tuple(p for f in sorted((folder / "eval").glob("*.json")) for p in _probe(f, int(lines[-1]["seen"]))),
        pictures=tuple(sorted((folder / "reconstructions").glob("*.png"))),
        results=tuple(sorted((folder / "eval").glob("*.png"))),
        previews=tuple(_previews(folder / "reconstructions")),
    )


def _previews(folder: Path) -> Iterable[Line]:
    """The numbers that lie next to the images of previews; files of another shape are none."""
    for path in sorted(folder.glob("*.json")):
        preview = read_json(path, "preview")
        if isinstance(preview, dict) and number(preview.get("seen")) is not None:
            yield {key: value for key, value in preview.items() if number(value) is not None}


def _config(folder: Path, config_of: ConfigOf) -> EngineConfig:
    path = folder / "config.yaml"
    try:
        values = load_yaml(read_text(path))
        if not isinstance(values, dict):
            raise UserError("it holds no 'key: value' lines")
        return config_of(values)
    except (yaml.YAMLError, ValueError, OSError, UserError) as error:
        raise UserError(f"{path} is not a config that this version can read: {error}") from None


def _lines(path: Path) -> tuple[Line, ...]:
    """Lines of metrics; a last one cut off by a crash is left out."""
    if not path.is_file():
        raise UserError(f"no metrics at {path}; has the run logged its first step yet?")
    lines: list[Line] = []
    texts = read_text(path, MAX_LOG_BYTES, errors="replace").splitlines()
    for place, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            if place == len(texts):
                break
            raise UserError(f"{path} line {place} is not valid JSON") from None
        missing = [k for k in NEEDED if not isinstance(line.get(k), int | float)] if isinstance(line, dict) else NEEDED
        if missing:
            raise UserError(f"{path} line {place} lacks a number for '{missing[0]}'")
        lines.append(line)
    if not lines:
        raise UserError(f"{path} is empty; has the run logged its first step yet?")
    return tuple(lines)


def _probe(path: Path, seen: int) -> Iterable[Probe]:
    """The result in an evaluation's file; files of another shape are none."""
    score = read_score(path)
    if score is None:
        return
    yield Probe(
        task=_task(score) or path.stem,
        metric=score.metric.replace("_", " "),
        value=score.value,
        interval=score.interval,
        baselines={name.replace("_", " "): value for name, value in score.baselines.items()},
        seen=seen if score.seen is None else score.seen,
        path=path,
    )


def _task(score: Score) -> str:
    """'class from audio, linear probe', or 'retrieval, test' where no modality is named."""
    label, modality, task = (text.replace("_", " ") for text in (score.label, score.modality, score.task))
    parts = (f"{label} from {modality}", task) if label and modality else (task, label)
    return ", ".join(part for part in parts if part)


# --- several runs ----------------------------------------------------------------------------------------------------


def read_runs(paths: Sequence[str | Path], config_of: ConfigOf) -> list[Run]:
    """Reads run folders; runs of the same name are told apart by their folders.

    Raises:
        UserError: see `read_run`.
    """
    runs = [read_run(path, config_of) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    parts = [run.path.resolve().parts for run in runs]
    common = common_prefix([p[:-1] for p in parts])
    return [dataclasses.replace(run, name="/".join(p[common:])) for run, p in zip(runs, parts, strict=True)]


def common_prefix(sequences: Sequence[Sequence[str]]) -> int:
    """How many leading items all sequences share."""
    return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False)))
