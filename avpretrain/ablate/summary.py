"""What a matrix says: each variant over its seeds, and beside the baseline, as JSON and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avpretrain.ablate.matrix import Ablation, Variant
from avpretrain.ablate.record import Done, Evaluation, Failure
from avpretrain.measures.intervals import across
from avpretrain.measures.numbers import duration, flops, percent, si, significant
from avpretrain.measures.results import Result
from avpretrain.measures.scores import SHARES


@dataclass(frozen=True, kw_only=True)
class OverSeeds(Result):
    """A number of several cells that differ in their seed alone."""

    median: float
    mean: float
    ci: tuple[float, float] | None
    """95% of the mean, by Student's t; one seed can't give it."""
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Scored(OverSeeds):
    """The headline of one evaluation over seeds."""

    metric: str
    ci_over_clips: tuple[float, float] | None
    """Of a single seed."""
    baselines: Mapping[str, float]
    gain: OverSeeds | None
    """Over the baseline's cells of the same seeds."""


@dataclass(frozen=True, kw_only=True)
class VariantSummary(Result):
    """One variant over its seeds, next to the matrix's baseline."""

    variant: str
    extends: tuple[str, ...]
    changes: Mapping[str, Any]
    seeds: tuple[int, ...]
    flops_per_clip: float
    flops_total: float
    components: Mapping[str, float]
    """FLOPs of training, by component."""
    clips: int
    steps: int
    seconds: OverSeeds
    seconds_per_clip: OverSeeds
    clips_per_second: OverSeeds
    peak_memory_bytes: int
    losses: Mapping[str, OverSeeds]
    flops_saving: float | None
    """Of the baseline's FLOPs a clip; none = no cell of the baseline is done."""
    time_saving: float | None
    results: Mapping[str, Scored]
    """By the evaluation's name in words."""
    spectrum: Mapping[str, Mapping[str, OverSeeds]]
    """Reconstruction -> missed_low, missed_high, detail_low, detail_high."""


@dataclass(frozen=True, kw_only=True)
class Summary(Result):
    """A whole matrix."""

    ablation: str
    base: str
    baseline: str
    variants: tuple[VariantSummary, ...]
    failed: Mapping[str, str]
    """Cell -> stage and error."""
    hardware: Any
    """What all cells say, or the list of what they say; so with `versions` and `data`."""
    versions: Any
    data: Any
    sample: str = "clip"
    """What one sample is called."""
    cells_at_a_time: tuple[int, ...]


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Median, mean, and the mean's interval."""
    low_high = across(values)["ci"] if len(values) > 1 else None
    ci = None if low_high is None else (low_high[0], low_high[1])
    return OverSeeds(median=statistics.median(values), mean=statistics.fmean(values), ci=ci, values=tuple(values))


def summary(ablation: Ablation, records: Sequence[Done | Failure]) -> Summary:
    """What the cells say together; those that failed are named, not counted.

    Args:
        records: of all cells that have been run, of this matrix or of a part of it.
    """
    done = [record for record in records if isinstance(record, Done)]
    by_variant = {v.name: {r.seed: r for r in done if r.variant == v.name} for v in ablation.variants}
    base = by_variant[ablation.baseline.name]
    return Summary(
        ablation=ablation.name,
        base=ablation.settings.base,
        baseline=ablation.baseline.name,
        variants=tuple(
            _variant(variant, by_variant[variant.name], base)
            for variant in ablation.variants
            if by_variant[variant.name]
        ),
        failed={record.cell: f"{record.stage}: {record.error}" for record in records if isinstance(record, Failure)},
        hardware=_shared([record.hardware for record in done]),
        versions=_shared([record.versions for record in done]),
        data=_shared([record.data for record in done]),
        sample=next((record.sample for record in done), "clip"),
        cells_at_a_time=tuple(sorted({record.jobs for record in done})),
    )


def _shared(values: Sequence[Any]) -> Any:
    """What all cells say, or the list of what they say."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different


def _variant(variant: Variant, records: Mapping[int, Done], base: Mapping[int, Done]) -> VariantSummary:
    rows, theirs = list(records.values()), list(base.values())
    trainings = [row.training for row in rows]
    seconds = over_seeds([training.seconds / training.clips for training in trainings])
    baseline_seconds = [row.training.seconds / row.training.clips for row in theirs]
    return VariantSummary(
        variant=variant.name,
        extends=tuple(variant.extends),
        changes=variant.changes,
        seeds=tuple(records),
        flops_per_clip=rows[0].flops.per_clip,
        flops_total=rows[0].flops.total,
        components={name: part["training"] for name, part in rows[0].flops.components.items()},
        clips=trainings[0].clips,
        steps=trainings[0].steps,
        seconds=over_seeds([training.seconds for training in trainings]),
        seconds_per_clip=seconds,
        clips_per_second=over_seeds([training.clips_per_second for training in trainings]),
        peak_memory_bytes=max(training.peak_memory_bytes for training in trainings),
        losses={name: over_seeds([t.losses[name] for t in trainings]) for name in trainings[0].losses},
        flops_saving=1 - rows[0].flops.per_clip / theirs[0].flops.per_clip if theirs else None,
        time_saving=1 - seconds.median / statistics.median(baseline_seconds) if theirs else None,
        results=_results(records, base),
        spectrum=_spectrum(rows),
    )


def _scores(record: Done) -> dict[str, Evaluation]:
    """Evaluations that have one number, by name."""
    return {evaluation.words: evaluation for evaluation in record.evaluations if evaluation.value is not None}


def _results(records: Mapping[int, Done], base: Mapping[int, Done]) -> dict[str, Scored]:
    """Each evaluation over seeds, with its gain over the baseline's run of the same seed."""
    ours = {seed: _scores(record) for seed, record in records.items()}
    theirs = {seed: _scores(record) for seed, record in base.items()}
    scored: dict[str, Scored] = {}
    for name in dict.fromkeys(name for scores in ours.values() for name in scores):
        results = [scores[name] for scores in ours.values() if name in scores]
        pairs = [(ours[s][name], theirs[s][name]) for s in ours if name in ours[s] and name in theirs.get(s, {})]
        gains = [(a.value or 0.0) - (b.value or 0.0) for a, b in pairs]
        shared = [n for n in results[0].baselines if all(n in r.baselines for r in results)]
        seeds = over_seeds([result.value or 0.0 for result in results])
        scored[name] = Scored(
            metric=results[0].metric,
            median=seeds.median,
            mean=seeds.mean,
            ci=seeds.ci,
            values=seeds.values,
            ci_over_clips=results[0].ci if len(results) == 1 else None,
            baselines={n: statistics.fmean(r.baselines[n] for r in results) for n in shared},
            gain=over_seeds(gains) if gains else None,
        )
    return scored


def _spectrum(rows: Sequence[Done]) -> dict[str, dict[str, OverSeeds]]:
    """Method -> share of high and low detail that is missed, and the detail's energy, over seeds."""
    spectra = [evaluation.methods for row in rows for evaluation in row.evaluations if evaluation.methods]
    keys = ("missed_low", "missed_high", "detail_low", "detail_high")
    return {
        method: {
            key: over_seeds([getattr(s[method], key).value or 0.0 for s in spectra if method in s]) for key in keys
        }
        for method in (spectra[0] if spectra else ())
    }


# --- for people ------------------------------------------------------------------------------------------------------


def table(matrix: Summary) -> list[list[str]]:
    """Headings, then a row a variant."""
    variants = matrix.variants
    tasks = list(dict.fromkeys(task for v in variants for task in v.results))
    heard = any(v.spectrum for v in variants)
    each = matrix.sample
    headings = [
        "variant",
        "seeds",
        f"FLOPs a {each}",
        "saved",
        "wall clock",
        f"saved a {each}",
        f"{each}s/s",
        "peak memory",
    ]
    rows = [headings + tasks + (["high detail missed"] if heard else [])]
    for v in variants:
        row = [v.variant, str(len(v.seeds)), flops(v.flops_per_clip), _saving(v.flops_saving)]
        row += [duration(v.seconds.median), _saving(v.time_saving)]
        memory = f"{si(v.peak_memory_bytes)}B" if v.peak_memory_bytes else ""
        row += [significant(v.clips_per_second.median), memory]
        row += [_result(v.results.get(task)) for task in tasks]
        row += [_missed(v.spectrum)] if heard else []
        rows.append([cell or "-" for cell in row])
    return rows


def _saving(share: float | None) -> str:
    return "" if share is None else percent(share)


def _result(result: Scored | None) -> str:
    """Median with the interval over seeds, or of one seed over clips."""
    if result is None:
        return ""
    ci = result.ci or result.ci_over_clips
    if result.metric not in SHARES:
        between = f" ({ci[0]:.4f} to {ci[1]:.4f})" if ci else ""
        return f"{result.median:.4f} {result.metric.replace('_', ' ')}{between}"
    return percent(result.median) + (f" ({100 * ci[0]:.1f} to {100 * ci[1]:.1f})" if ci else "")


def _missed(spectrum: Mapping[str, Mapping[str, OverSeeds]]) -> str:
    return ", ".join(f"{percent(s['missed_high'].median)} {m}".replace("_", " ") for m, s in spectrum.items())


def markdown(matrix: Summary) -> str:
    """The table and what it rests on, as Markdown."""
    headings, *rows = table(matrix)
    lines = [f"# {matrix.ablation}: variants of {matrix.base}, savings against {matrix.baseline}", ""]
    lines += [_line(headings), _line(["---", *["---:"] * (len(headings) - 1)]), *map(_line, rows), ""]
    lines += [f"- {note}" for note in notes(matrix)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def notes(matrix: Summary) -> list[str]:
    """How to read the table, and what keeps it from being read as it stands."""
    remarks = [
        "Medians over seeds; in brackets the 95% interval of the mean over seeds by Student's t, or with one seed that "
        "over clips.",
    ]
    if any(variant.spectrum for variant in matrix.variants):
        remarks.append(
            "High detail missed: share of the energy of hidden detail that a reconstruction misses in the upper half "
            "of the mel bins."
        )
    return remarks + warnings(matrix) + [f"Failed: {name}: {error}" for name, error in matrix.failed.items()]


def warnings(matrix: Summary) -> list[str]:
    """Why wall clock can't be compared, if it can't."""
    remarks = []
    if any(jobs > 1 for jobs in matrix.cells_at_a_time):
        remarks.append("Several cells shared the machine: compare FLOPs, not wall clock.")
    if isinstance(matrix.hardware, list) and len(matrix.hardware) > 1:
        remarks.append("Cells ran on different hardware: compare FLOPs, not wall clock.")
    return remarks
