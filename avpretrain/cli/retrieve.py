"""`avpretrain retrieve`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file, require_inputs
from avpretrain.cli.shared.results import comparison_line
from avpretrain.cli.shared.tables import show_table
from avpretrain.core.terminal import Console, say
from avpretrain.measures.scores import points, require_score


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    data: Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")],
    /,
    split: str = "test",
    limit: int = 0,
    max_seconds: float = 30.0,
    baselines: bool = True,
    seed: int = 0,
    batch_size: int = 32,
    num_workers: int = 2,
    compare: Path | None = None,
    out: Path | None = None,
    pictures: bool = False,
    json: bool = False,
) -> None:
    """Find video by audio and audio by video, among all clips of a split, without training.

    Reads a checkpoint and a sharded data set. Writes the result as JSON, and every clip's ranks next to it, to --out or
    else into the run's eval/ folder. Takes a pass of two encoders over the clips, then N x N products: seconds for
    1,000 clips on a CPU; N = 100,000 fits in memory.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        data: Folders or URLs written by `avpretrain shards`.
        split: Clips to search; 'all' takes every one.
        limit: Take only so many, evenly from the split; 0 = all.
        max_seconds: Of longer clips the middle is taken.
        baselines: Also measure a random encoder.
        seed: Of the random encoder and the intervals.
        batch_size: Clips at a time on each device; changes nothing but speed.
        num_workers: Processes that decode, for each rank.
        compare: An earlier result on the same clips; prints the paired difference to it.
        out: File of the result.
        pictures: Also draw examples, NAME-examples.png next to the result.
        json: Print the result as JSON.
    """
    require_file(out)
    require_inputs(ckpt, data)
    if compare is not None:
        require_score(compare)
    from accelerate import PartialState

    from avpretrain.evaluation.results import compare_results, result_path, save_result
    from avpretrain.evaluation.retrieval.run import RetrievalConfig, run_retrieval

    cfg = RetrievalConfig(
        split=split, limit=limit, max_seconds=max_seconds, baselines=baselines, batch_size=batch_size,
        num_workers=num_workers, seed=seed,
    )  # fmt: skip
    found = run_retrieval(ckpt, data, cfg)
    if not PartialState().is_main_process:
        return
    path = result_path(ckpt, out, "retrieval", split)
    if path:
        save_result(path, found.result, found.predictions)
    if path and pictures:
        from avpretrain.evaluation.figures import retrieval_strips

        retrieval_strips(found, path.with_name(f"{path.stem}-examples.png"))
    comparison = compare_results(path, compare, seed) if path and compare else None
    if json:
        print(json_format.dumps({**found.result, **({"comparison": comparison} if comparison else {})}, indent=2))
        return
    _show(found.result, path)
    if comparison:
        say(comparison_line(comparison))


def _show(result: dict[str, Any], path: Path | None) -> None:
    console = Console()
    rows = []
    for name, row in {"encoder": result, **result["baselines"]}.items():
        for direction in ("audio_to_video", "video_to_audio"):
            cells = [_cell(row[direction], f"recall_at_{k}") for k in (1, 5, 10)]
            title = name.replace("_", " ") if direction == "audio_to_video" else ""
            rows.append([title, direction.split("_")[0], *cells, f"{row[direction]['median_rank']:g}"])
    title = f"retrieval among {result['gallery']} clips of split '{result['label']}', in %"
    show_table(("features", "query", "R@1", "R@5", "R@10", "median rank"), rows, title, text=2, console=console)
    if path:
        console.print(f"result: {path}", highlight=False, soft_wrap=True)


def _cell(scores: dict[str, Any], name: str) -> str:
    """'12.0 (8-16)': value and 95% interval; empty where the gallery is smaller than the cutoff."""
    if name not in scores:
        return ""
    value = f"{100 * scores[name]:.1f}"
    if "cis" not in scores:
        return value
    return f"{value} ({points(scores['cis'][name], digits=0, between='-')})"
