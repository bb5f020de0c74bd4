"""A result on a terminal, next to its baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avpretrain.cli.shared.tables import show_table
from avpretrain.core.terminal import Console
from avpretrain.measures.scores import points


def show_result(result: dict[str, Any], comparison: dict[str, Any] | None, path: Path | None) -> None:
    """Prints a result with its baselines, for people."""
    metric, console = result["metric"], Console()
    rows = [("encoder", f"{result[metric]:.1%}", points(result["ci"]), "")]
    for name, other in result["baselines"].items():
        gain = f"{100 * other['difference']:+.1f} ({points(other['difference_ci'], '+')}) points"
        rows.append((name.replace("_", " "), f"{other[metric]:.1%}", points(other["ci"]), gain))
    title = f"{result['task'].replace('_', ' ')}: {result['label']} from {result['modality']}"
    show_table(("features", metric, "95% interval", "encoder is ahead by"), rows, title, bold=0, console=console)
    parts = result["parts"]
    console.print(
        f"{sum(p['test'] for p in parts)} test clips, {len(result['classes'])} classes; "
        + f"fit on {parts[0]['fit']}, "
        + (f"chosen on {parts[0]['val']}" if parts[0]["val_score"] is not None else "nothing chosen")
        + (f" of each of {len(parts)} folds" if len(parts) > 1 else ""),
        highlight=False,
    )
    edge = result.get("tried", {}).get("at_edge")
    if edge:
        setting, values = result["tried"]["setting"], result["tried"]["values"]
        console.print(
            f"{setting} chosen at the edge of what was tried ({max(values):g} to {min(values):g}) in {', '.join(edge)}",
            highlight=False,
        )
    if comparison:
        console.print(comparison_line(comparison), highlight=False)
    if path:
        console.print(f"result: {path}", highlight=False, soft_wrap=True)


def comparison_line(comparison: dict[str, Any]) -> str:
    """A paired difference in a line."""
    gain = f"{100 * comparison['difference']:+.1f} ({points(comparison['difference_ci'], '+')}) points"
    return f"against {comparison['b']['path']}: {gain} on {comparison['clips']} clips"
