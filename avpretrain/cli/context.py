"""`avpretrain context`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from avpretrain.cli.shared.studies import run_study
from avpretrain.cli.shared.tables import show_table
from avpretrain.core.terminal import Console
from avpretrain.evaluation.settings import ContextConfig
from avpretrain.measures.results import Estimate
from avpretrain.measures.studies import Context


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    data: Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")],
    /,
    how: OmitArgPrefixes[ContextConfig] = ContextConfig(),  # noqa: B008
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure what the encoder's context is worth to the decoders at each timestep: error with another's less with own.

    Reads a checkpoint and a sharded data set. Writes the result as JSON to --out or else into the run's eval/ folder,
    where `avpretrain report` finds it. Takes two passes of the decoders for each level: seconds on a GPU, a minute on
    two CPU cores for a small model.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        data: Folders or URLs written by `avpretrain shards`.
        how: Which clips, what is hidden, and how finely.
        out: File of the result.
        json: Print the result as JSON.
    """

    def measure() -> Context:
        from avpretrain.evaluation.generation.context import run_context

        return run_context(ckpt, data, how)

    least = {"clips": 2, "levels": 1, "batch_size": 2}
    run_study("context", ckpt, data, how, least, out, json, measure, _show)


def _show(result: Context, console: Console) -> None:
    for side, benefit in result.sides.items():
        headings = ("timestep", "alpha_bar", "draws", "error", "benefit of context", "encoder gradient")
        names = ("timesteps", "alphas_cumprod", "share", "error_own", "benefit", "gradient")
        rows = [
            (str(t), f"{alpha:.2g}", f"{share:.0%}", f"{error:.3f}", f"{worth:.3f}", f"{gradient:.2g}")
            for t, alpha, share, error, worth, gradient in zip(*(getattr(benefit, name) for name in names), strict=True)
        ]
        title = f"{side}, {benefit.input.replace('_', ' ')}, {result.clips[side]} clips"
        show_table(headings, rows, title, console=console)
        drawn, effective = benefit.benefit_of_draws, benefit.effective_share
        console.print(f"mean over draws: benefit {_interval(drawn, '.3f')}", highlight=False)
        console.print(f"share of the benefit at the most noise: {_interval(effective, '.0%')}", highlight=False)


def _interval(estimate: Estimate, shape: str) -> str:
    if estimate.value is None or None in estimate.ci:
        return "undefined (context is worth nothing there)"
    return f"{estimate.value:{shape}} [{estimate.ci[0]:{shape}}, {estimate.ci[1]:{shape}}]"
