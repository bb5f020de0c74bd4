"""What a matrix says: each variant over its seeds, and beside the baseline, as JSON and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from avpretrain.ablate.matrix import Ablation, Variant
from avpretrain.measures.intervals import across
from avpretrain.measures.numbers import duration, flops, percent, si, significant
from avpretrain.measures.scores import SHARES

Record = Mapping[str, Any]


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Median, mean, and the mean's 95% interval by Student's t, which one seed can't give."""
    ci = across(values)["ci"] if len(values) > 1 else None
    return {"median": statistics.median(values), "mean": statistics.fmean(values), "ci": ci, "values": list(values)}


def summary(ablation: Ablation, records: Sequence[Record]) -> dict[str, Any]:
    """The matrix in plain JSON types; cells that failed are named, not counted.

    Args:
        records: of all cells that have been run, of this matrix or of a part of it.
    """
    done = [record for record in records if record["status"] == "done"]
    by_variant = {v.name: {r["seed"]: r for r in done if r["variant"] == v.name} for v in ablation.variants}
    base = by_variant[ablation.baseline.name]
    return {
        "ablation": ablation.name,
        "base": ablation.settings.base,
        "baseline": ablation.baseline.name,
        "variants": [
            _variant(variant, by_variant[variant.name], base)
            for variant in ablation.variants
            if by_variant[variant.name]
        ],
        "failed": {
            f"{r['variant']}-s{r['seed']}": f"{r['stage']}: {r['error']}" for r in records if r["status"] != "done"
        },
        "hardware": _shared(done, "hardware"),
        "versions": _shared(done, "versions"),
        "data": _shared(done, "data"),
        "sample": next((record.get("sample", "clip") for record in done), "clip"),
        "cells_at_a_time": sorted({record["jobs"] for record in done}),
    }


def _shared(records: Sequence[Record], key: str) -> Any:
    """What all records say, or the list of what they say."""
    found: list[Any] = []
    for record in records:
        if record[key] not in found:
            found.append(record[key])
    return found[0] if len(found) == 1 else found


def _variant(variant: Variant, records: Mapping[int, Record], base: Mapping[int, Record]) -> dict[str, Any]:
    rows = list(records.values())
    flops_per_clip = rows[0]["flops"]["per_clip"]
    seconds = over_seeds([r["training"]["seconds"] / r["training"]["clips"] for r in rows])
    row: dict[str, Any] = {
        "variant": variant.name,
        "extends": list(variant.extends),
        "changes": variant.changes,
        "seeds": list(records),
        "flops_per_clip": flops_per_clip,
        "flops_total": rows[0]["flops"]["total"],
        "components": {name: part["training"] for name, part in rows[0]["flops"]["components"].items()},
        "clips": rows[0]["training"]["clips"],
        "steps": rows[0]["training"]["steps"],
        "seconds": over_seeds([r["training"]["seconds"] for r in rows]),
        "seconds_per_clip": seconds,
        "clips_per_second": over_seeds([r["training"]["clips_per_second"] for r in rows]),
        "peak_memory_bytes": max(r["training"]["peak_memory_bytes"] for r in rows),
        "losses": {n: over_seeds([r["training"]["losses"][n] for r in rows]) for n in rows[0]["training"]["losses"]},
    }
    if base:
        theirs = list(base.values())
        row["flops_saving"] = 1 - flops_per_clip / theirs[0]["flops"]["per_clip"]
        baseline_seconds = [r["training"]["seconds"] / r["training"]["clips"] for r in theirs]
        row["time_saving"] = 1 - seconds["median"] / statistics.median(baseline_seconds)
    return row | {"results": _results(records, base), "spectrum": _spectrum(rows)}


def _values(record: Record) -> dict[str, dict[str, Any]]:
    """Evaluations that have one number, by task."""
    return {task_of(e): e for e in record["evaluations"] if "value" in e}


def task_of(evaluation: Mapping[str, Any]) -> str:
    """'class from audio, linear probe', or 'retrieval, test'; a probe's own name where it has one."""
    if "name" in evaluation:
        return str(evaluation["name"])
    label, modality, task = (str(evaluation.get(k) or "").replace("_", " ") for k in ("label", "modality", "task"))
    return f"{label} from {modality}, {task}" if modality else f"{task}, {label}"


def _results(records: Mapping[int, Record], base: Mapping[int, Record]) -> dict[str, Any]:
    """Task -> value over seeds, baselines, and the gain over the baseline's run of the same seed."""
    ours = {seed: _values(record) for seed, record in records.items()}
    theirs = {seed: _values(record) for seed, record in base.items()}
    found: dict[str, Any] = {}
    for task in dict.fromkeys(task for values in ours.values() for task in values):
        results = [values[task] for values in ours.values() if task in values]
        pairs = [(ours[s][task], theirs[s][task]) for s in ours if task in ours[s] and task in theirs.get(s, {})]
        gain = over_seeds([a["value"] - b["value"] for a, b in pairs]) if pairs else None
        names = [n for n in results[0]["baselines"] if all(n in r["baselines"] for r in results)]
        floor = {n: statistics.fmean(r["baselines"][n] for r in results) for n in names}
        clips_ci = results[0]["ci"] if len(results) == 1 else None
        found[task] = {
            "metric": results[0]["metric"], **over_seeds([r["value"] for r in results]), "ci_over_clips": clips_ci,
            "baselines": floor, "gain": gain,
        }  # fmt: skip
    return found


def _spectrum(rows: Sequence[Record]) -> dict[str, Any]:
    """Method -> share of high and low detail that is missed, and the detail's energy, over seeds."""
    found = [e["methods"] for r in rows for e in r["evaluations"] if e["task"] == "spectrum"]
    if not found:
        return {}
    keys = ("missed_low", "missed_high", "detail_low", "detail_high")
    return {
        method: {key: over_seeds([f[method][key]["value"] for f in found if method in f]) for key in keys}
        for method in found[0]
    }


# --- for people ------------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """Headings, then a row a variant."""
    variants = found["variants"]
    tasks = list(dict.fromkeys(task for v in variants for task in v["results"]))
    heard = any(v["spectrum"] for v in variants)
    each = found["sample"]
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
        row = [v["variant"], str(len(v["seeds"])), flops(v["flops_per_clip"]), _saving(v, "flops_saving")]
        row += [duration(v["seconds"]["median"]), _saving(v, "time_saving")]
        memory = f"{si(v['peak_memory_bytes'])}B" if v["peak_memory_bytes"] else ""
        row += [significant(v["clips_per_second"]["median"]), memory]
        row += [_result(v["results"].get(task)) for task in tasks]
        row += [_missed(v["spectrum"])] if heard else []
        rows.append([cell or "-" for cell in row])
    return rows


def _saving(variant: Mapping[str, Any], key: str) -> str:
    return percent(variant[key]) if key in variant else ""


def _result(result: Mapping[str, Any] | None) -> str:
    """Median with the interval over seeds, or of one seed over clips."""
    if result is None:
        return ""
    ci = result["ci"] or result["ci_over_clips"]
    if result["metric"] not in SHARES:
        between = f" ({ci[0]:.4f} to {ci[1]:.4f})" if ci else ""
        return f"{result['median']:.4f} {result['metric'].replace('_', ' ')}{between}"
    return percent(result["median"]) + (f" ({100 * ci[0]:.1f} to {100 * ci[1]:.1f})" if ci else "")


def _missed(spectrum: Mapping[str, Any]) -> str:
    return ", ".join(f"{percent(s['missed_high']['median'])} {m}".replace("_", " ") for m, s in spectrum.items())


def markdown(found: Mapping[str, Any]) -> str:
    """The table and what it rests on, as Markdown."""
    headings, *rows = table(found)
    lines = [f"# {found['ablation']}: variants of {found['base']}, savings against {found['baseline']}", ""]
    lines += [_line(headings), _line(["---", *["---:"] * (len(headings) - 1)]), *map(_line, rows), ""]
    lines += [f"- {note}" for note in notes(found)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def notes(found: Mapping[str, Any]) -> list[str]:
    """How to read the table, and what keeps it from being read as it stands."""
    remarks = [
        "Medians over seeds; in brackets the 95% interval of the mean over seeds by Student's t, or with one seed that "
        "over clips.",
    ]
    if any(variant["spectrum"] for variant in found["variants"]):
        remarks.append(
            "High detail missed: share of the energy of hidden detail that a reconstruction misses in the upper half "
            "of the mel bins."
        )
    return remarks + warnings(found) + [f"Failed: {name}: {error}" for name, error in found["failed"].items()]


def warnings(found: Mapping[str, Any]) -> list[str]:
    """Why wall clock can't be compared, if it can't."""
    remarks = []
    if any(jobs > 1 for jobs in found["cells_at_a_time"]):
        remarks.append("Several cells shared the machine: compare FLOPs, not wall clock.")
    if isinstance(found["hardware"], list) and len(found["hardware"]) > 1:
        remarks.append("Cells ran on different hardware: compare FLOPs, not wall clock.")
    return remarks
