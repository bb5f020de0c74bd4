"""The JSON of one cell: what it ran, what that cost, and what came out."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avpretrain.ablate.kinds import cost_of, fingerprint_of, sample_name
from avpretrain.ablate.matrix import AblationConfig, Cell
from avpretrain.config.reader import learnt_config, to_dict
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import read_json, write_json
from avpretrain.measures.results import Result, WrongShapeError
from avpretrain.measures.runs import LOSSES, Run, read_run
from avpretrain.measures.scores import read_score
from avpretrain.measures.studies import MissedDetail
from avpretrain.methods.load import config_of

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Flops(Result):
    """What a cell's training takes, as counted."""

    per_clip: float
    clips: int
    steps: int
    total: float
    components: Mapping[str, Mapping[str, float]]
    """forward and training of each."""
    phases: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Training(Result):
    """What a cell's training cost and came to."""

    clips: int
    steps: int
    seconds: float
    clips_per_second: float
    median_clips_per_second: float
    data_wait_share: float
    flops_total: float
    peak_memory_bytes: int
    failed_clips: int
    losses: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation(Result):
    """An evaluation without what the cell says already: origin, settings, lists by class."""

    task: str
    label: str = ""
    modality: str = ""
    name: str = ""
    """Of a probe that has one."""
    metric: str = ""
    value: float | None = None
    """The headline; none = this one has none, such as spectrum."""
    ci: tuple[float, float] | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    gallery: int | None = None
    clips: Any = None
    mel_hz: tuple[float, ...] = ()
    methods: Mapping[str, MissedDetail] = field(default_factory=dict)
    """Of spectrum."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    audio_to_video: Mapping[str, Any] = field(default_factory=dict)
    """Of retrieval."""
    video_to_audio: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """'class from audio, linear probe', or 'retrieval, test'; a probe's own name where it has one."""
        if self.name:
            return self.name
        label, modality, task = (text.replace("_", " ") for text in (self.label, self.modality, self.task))
        return f"{label} from {modality}, {task}" if modality else f"{task}, {label}"

    def to_json(self) -> dict[str, Any]:
        """Without the fields that say nothing."""
        return {key: value for key, value in super().to_json().items() if value not in (None, "", [], {})}


@dataclass(frozen=True, kw_only=True)
class Record(Result):
    """One cell: what was to be run, and how that ended."""

    format: int
    variant: str
    seed: int
    status: str
    """done or failed."""
    training_hash: str
    hash: str
    extends: tuple[str, ...]
    changes: Mapping[str, Any]
    differences: Mapping[str, Any]

    @property
    def cell(self) -> str:
        """Its name."""
        return f"{self.variant}-s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """A cell that failed."""

    stage: str
    """train, or a probe's file."""
    error: str


@dataclass(frozen=True, kw_only=True)
class Done(Record):
    """A cell that came to its end."""

    config: Mapping[str, Any]
    flops: Flops
    training: Training
    evaluations: tuple[Evaluation, ...]
    stage_seconds: Mapping[str, float]
    """Wall clock of each process, its start included."""
    jobs: int
    """Cells that ran at a time: speeds of cells that shared a machine say little."""
    sample: str = "clip"
    """What one sample is called."""
    data: Mapping[str, Any]
    parameters: int
    precision: str
    versions: Mapping[str, Any]
    hardware: Mapping[str, Any]
    commit: str | None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Hashes of what decides a cell's numbers."""

    training: str
    """Of config, seed and training data."""
    whole: str
    """Of these and of the evaluations."""


def fingerprint(cell: Cell, settings: AblationConfig) -> Fingerprint:
    """What decides the numbers of a cell.

    Raises:
        UserError: a data set can't be read.
    """
    wanted = to_dict(settings)
    for key in ("base", "seeds"):
        wanted.pop(key)
    for probe, spec in zip(wanted["probes"], settings.probes, strict=True):
        probe["data"] = fingerprint_of(cell.config, spec.data)
    training = {"config": learnt_config(cell.config), "data": fingerprint_of(cell.config)}
    return Fingerprint(_hash(training), _hash({**training, "settings": wanted}))


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_done(cell: Cell, digest: Fingerprint) -> bool:
    """Whether the cell's JSON says that this very work was done.

    Raises:
        UserError: the JSON is damaged.
        UsageError: it is the result of another training.
    """
    if not cell.record.is_file():
        return False
    record = read_record(cell.record)
    if isinstance(record, Failure):
        return False
    if record.training_hash != digest.training:
        raise UsageError(
            f"{cell.record} is the result of another config or other data; choose another folder with --out, "
            f"or delete it and {cell.run}"
        )
    return record.hash == digest.whole


def read_record(path: Path) -> Done | Failure:
    """What a cell's JSON says.

    Raises:
        UserError: it is missing or damaged.
    """
    status = Record.read(path, "cell", "avpretrain ablate").status
    kind = Done if status == "done" else Failure
    return kind.read(path, "cell", "avpretrain ablate")


def _head(cell: Cell, digest: Fingerprint, status: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "variant": cell.variant.name,
        "seed": cell.seed,
        "status": status,
        "training_hash": digest.training,
        "hash": digest.whole,
        "extends": cell.variant.extends,
        "changes": cell.variant.changes,
        "differences": cell.variant.differences,
    }


def write_failure(cell: Cell, digest: Fingerprint, stage: str, error: str) -> Failure:
    """Notes that a cell failed at a stage, and why."""
    record = Failure(**_head(cell, digest, "failed"), stage=stage, error=error)
    write_json(cell.record, record.to_json())
    return record


def write_record(
    cell: Cell, digest: Fingerprint, stage_seconds: dict[str, float], jobs: int, names: Mapping[str, str]
) -> Done:
    """Gathers what the cell's run folder holds.

    Args:
        stage_seconds: wall clock of each process, its start included.
        jobs: cells that ran at a time: speeds of cells that shared a machine say little.
        names: of probes that have one, by their files without the suffix.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    run = read_run(cell.run, config_of)
    results = sorted((cell.run / "eval").glob("*.json"))
    record = Done(
        **_head(cell, digest, "done"),
        config=learnt_config(run.config),
        flops=Flops.from_json(cost_of(run.config, int(run.last["samples_total"])).details),
        training=_training(run),
        evaluations=tuple(_evaluation(path, names.get(path.stem, "")) for path in results),
        stage_seconds=stage_seconds,
        jobs=jobs,
        sample=sample_name(run.config),
        data=run.info["data"],
        **{key: run.info[key] for key in ("parameters", "precision", "versions", "hardware", "commit")},
    )
    write_json(cell.record, record.to_json())
    return record


def _training(run: Run) -> Training:
    speeds = [float(line["clips_per_second"]) for line in run.lines]
    return Training(
        clips=run.seen,
        steps=run.last["step"],
        seconds=run.seconds,
        clips_per_second=run.clips_per_second,
        median_clips_per_second=statistics.median(speeds),
        data_wait_share=statistics.fmean(float(line["data_wait_share"]) for line in run.lines),
        flops_total=run.flops_total,
        peak_memory_bytes=run.peak_memory,
        failed_clips=run.last["failed_clips"],
        losses={name: run.last[name] for name in (*LOSSES, "nll") if name in run.last},
    )


def _evaluation(path: Path, name: str) -> Evaluation:
    score = read_score(path)
    headline = {"value": score.value, "ci": score.interval, "baselines": score.baselines} if score is not None else {}
    result = {
        key: value for key, value in read_json(path, "evaluation result").items() if key not in ("ci", "baselines")
    }
    try:
        return Evaluation.from_json({**result, **headline, "name": name})
    except WrongShapeError as error:
        raise UserError(f"{path} is no evaluation result ({error}); delete it and run the matrix again") from None
