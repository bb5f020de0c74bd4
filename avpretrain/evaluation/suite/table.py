"""The results of a list as Markdown tables: a row for each task and modality, baselines beside, and what to mind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avpretrain.evaluation.frozen import PLAIN_NAMES
from avpretrain.evaluation.suite.plan import Job
from avpretrain.measures.scores import bounds, points

Result = dict[str, Any]
Row = list[str]

_PROBES = ("linear", "knn")
_KIND = {"linear": "linear probe", "knn": "kNN"}


def markdown(evaluations: Sequence[tuple[Job, Result]], missing: Sequence[str], command: str) -> str:
    """All tables, in % with 95% intervals in brackets.

    Args:
        evaluations: those that have a result, in the list's order.
        missing: data sets that were not there.
        command: what made the results.
    """
    parts = [_origin([result for _, result in evaluations], command)]
    for title, methods, of in (
        ("Probes of frozen features", _PROBES, _probes),
        ("Fine-tuning", ("finetune",), _finetuning),
        ("Retrieval, without training", ("retrieve",), _retrievals),
    ):
        mine = [(job, result) for job, result in evaluations if job.method in methods]
        if mine:
            parts.append(f"## {title}\n\n{of(mine)}")
    notes = [*_notes(evaluations), *(f"Left out, since it was not there: data set {name}." for name in missing)]
    if notes:
        parts.append("## To mind\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _origin(results: Sequence[Result], command: str) -> str:
    if not results:
        return f"`{command}`: no results."
    one = results[0]
    weights, hardware = one["checkpoint"], one["hardware"]
    seen = f", {weights['seen']:,} clips seen" if "seen" in weights else ""
    machine = ", ".join(hardware["gpus"]) or f"{hardware['processor']}, {hardware['cores']} cores"
    versions = ", ".join(
        f"{name} {one['versions'][name]}" for name in ("avpretrain", "torch") if name in one["versions"]
    )
    return (
        f"Made by `{command}` from weights {weights['sha256'][:16]}{seen}; commit {one['commit']}, {versions}, "
        f"{machine}, seed {one['seed']}. The JSON of each number, with data fingerprint and config, lies beside it.\n\n"
        "In %, with 95% intervals over test clips: Wilson's for accuracy and recall, bootstrap for the rest. "
        "Differences are paired by clip; those in bold have an interval without 0. One interval in "
        "twenty misses the truth, and no correction is made for the number of rows."
    )


def _table(headings: Sequence[str], rows: Sequence[Row], text_columns: int) -> str:
    rule = ["---"] * text_columns + ["---:"] * (len(headings) - text_columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rule, *rows))


def _probes(evaluations: Sequence[tuple[Job, Result]]) -> str:
    headings = ["task", "test clips", "from", "probe", "encoder", "random encoder", "no encoder", "majority",
                "ahead of random", "ahead of none"]  # fmt: skip
    rows = []
    for job, result in evaluations:
        others, plain = result["baselines"], PLAIN_NAMES[job.modality]
        shown = [_value(others[name]) for name in ("random_encoder", plain)]
        ahead = [_gain(others[name]) for name in ("random_encoder", plain)]
        rows.append([*_head(job, result), _probe(job, result), _value(result), *shown,
                     _value(others["majority_class"], ci=False), *ahead])  # fmt: skip
    none = "No encoder: mean log-mel for sound, mean frame of 8 by 8 pixels for picture, both for both."
    return f"{_table(headings, rows, 4)}\n\n{none}"


def _probe(job: Job, result: Result) -> str:
    """'linear probe', and how its features were pooled where that is not the mean of the last layer."""
    pool = result["probe"]["pool"]
    kind = "" if pool["kind"] == "mean" else f", {pool['kind'].replace('_', ' and ')}"
    layers = "" if pool["layers"] == 1 else f", {pool['layers']} layers"
    return f"{_KIND[job.method]}{kind}{layers}"


def _finetuning(evaluations: Sequence[tuple[Job, Result]]) -> str:
    headings = ["task", "test clips", "from", "recipe", "fine-tuned", "from scratch", "majority", "ahead of scratch"]
    rows = []
    for job, result in evaluations:
        scratch = result["baselines"]["from_scratch"]
        recipe = f"{job.entry.recipe}, {result['finetune']['epochs']} epochs"
        majority = _value(result["baselines"]["majority_class"], ci=False)
        rows.append([*_head(job, result), recipe, _value(result), _value(scratch), majority, _gain(scratch)])
    return _table(headings, rows, 4)


def _retrievals(evaluations: Sequence[tuple[Job, Result]]) -> str:
    headings = ["task", "gallery", "features", "query", "R@1", "R@5", "R@10", "median rank", "encoder ahead, R@1"]
    rows = []
    for job, result in evaluations:
        for name, of in {"encoder": result, **result["baselines"]}.items():
            for direction in ("audio_to_video", "video_to_audio"):
                first = direction == "audio_to_video"
                recalls = [_recall(of[direction], f"recall_at_{k}") for k in (1, 5, 10)]
                rank = f"{of[direction]['median_rank']:g}"
                ahead = _gain(of) if first and "difference" in of else ""
                head = [job.entry.name, str(result["gallery"])] if first and name == "encoder" else ["", ""]
                label = name.replace("_", " ") if first else ""
                rows.append([*head, label, "audio" if first else "video", *recalls, rank, ahead])
    return f"{_table(headings, rows, 4)}\n\nThe lead in R@1 is that of the mean over both directions."


def _head(job: Job, result: Result) -> Row:
    clips = sum(part["test"] for part in result["parts"])
    modality = job.modality
    return [job.entry.name, f"{clips:,}", modality]


def _value(of: Result, ci: bool = True) -> str:
    """'84.2 (80.6 to 87.6)'."""
    value = f"{100 * of[of['metric']]:.1f}"
    return f"{value} ({points(of['ci'])})" if ci else value


def _recall(scores: Result, name: str) -> str:
    if name not in scores:
        return ""
    value = f"{100 * scores[name]:.1f}"
    ci = scores.get("cis", {}).get(name)
    return value if bounds(ci) is None else f"{value} ({points(ci, digits=0)})"


def _gain(other: Result) -> str:
    """'**+3.1** (0.4 to 5.8)', in points; bold where the interval leaves out 0."""
    ci, gain = bounds(other["difference_ci"]), f"{100 * other['difference']:+.1f}"
    gain = f"**{gain}**" if ci and (ci[0] > 0 or ci[1] < 0) else gain
    return f"{gain} ({points(ci, '+')})"


def _notes(evaluations: Sequence[tuple[Job, Result]]) -> list[str]:
    notes = []
    for job, result in evaluations:
        of = f"{job.entry.name} from {job.modality}"
        edge = result.get("tried", {}).get("at_edge")
        if edge:
            tried = result["tried"]
            values = sorted({part[tried["setting"]] for part in result["parts"] if part["name"] in edge})
            chosen = ", ".join(f"{value:g}" for value in values)
            notes.append(f"{of}: {tried['setting']} = {chosen} lies at the edge of what was tried ({', '.join(edge)}).")
        if "across_folds" in result:
            mean, ci = result["across_folds"]["mean"], result["across_folds"]["ci"]
            spread = f"{100 * mean:.1f} ({100 * ci[0]:.1f} to {100 * ci[1]:.1f})"
            notes.append(f"{of}: mean over folds {spread}, Student's t over {len(result['parts'])} folds.")
        unreadable = result.get("clips", {}).get("unreadable", 0) or result.get("left_out", 0)
        if unreadable:
            notes.append(f"{of}: {unreadable} clips could not be read or lack a modality.")
        lacking = result.get("classes_without_positives")
        if lacking:
            notes.append(f"{of}: no test clip of {', '.join(lacking)}, which are left out.")
    return notes
