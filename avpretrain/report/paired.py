"""Differences of a task's results between groups, on the clips that both tested."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from avpretrain.core.errors import UserError
from avpretrain.measures.scores import bounds
from avpretrain.report.groups import Group

LARGEST = 32 << 20
"""Bytes of a result's scores above which the page leaves the bootstrap to `avpretrain compare`."""


@dataclass(frozen=True, slots=True)
class Paired:
    """A headline metric of one group less that of another."""

    value: float | None
    """None where there is no difference to tell, which `reason` explains."""
    interval: tuple[float, float] | None = None
    """95% over clips of one pair of runs, or the range over pairs of several seeds."""
    clips: int = 0
    pairs: int = 0
    reason: str = ""

    @property
    def words(self) -> str:
        """'+2.1 points (-0.4 to +4.6), no clear difference'."""
        if self.value is None:
            return f"not paired: {self.reason}"
        text = f"{100 * self.value:+.1f} points"
        if self.interval is None:
            return f"{text}, interval unknown: the clips are too few or too alike"
        low, high = self.interval
        text += f" ({100 * low:+.1f} to {100 * high:+.1f}"
        if self.pairs > 1:
            return f"{text} over {self.pairs} seeds)"
        return f"{text}), {'clear' if low > 0 or high < 0 else 'no clear difference'}"


def paired_difference(task: str, ours: Group, theirs: Group) -> Paired:
    """Last result of `task` of each run of `ours` less that of the run of `theirs` with the same seed.

    Two single runs are compared whatever their seeds are.
    """
    a, b = ({run.config.seed: p.path for run in g.runs if (p := run.probe(task)) and p.path} for g in (ours, theirs))
    if not a or not b:
        return Paired(None, reason=f"{(theirs if a else ours).name} has no such result")
    pairs = [(a[seed], b[seed]) for seed in a if seed in b]
    if len(a) == len(b) == 1:
        pairs = list(zip(a.values(), b.values(), strict=True))
    every = [_of_two(*pair) for pair in pairs] or [Paired(None, reason="no seed in common")]
    known = [one for one in every if one.value is not None] or every
    values = [one.value for one in known if one.value is not None]
    if len(values) < 2:
        return known[0]
    return Paired(statistics.fmean(values), (min(values), max(values)), known[0].clips, len(values))


def _of_two(a: Path, b: Path) -> Paired:
    from avpretrain.evaluation.results import compare_results, predictions_path

    scores = [predictions_path(path) for path in (a, b)]
    if not all(path.is_file() for path in scores):
        return Paired(None, reason="the scores of single clips are missing")
    if any(path.stat().st_size > LARGEST for path in scores):
        return Paired(None, reason="many scores; see avpretrain compare")
    try:
        comparison = compare_results(a, b)
    except UserError as error:
        return Paired(None, reason=str(error))
    return Paired(comparison["difference"], bounds(comparison["difference_ci"]), comparison["clips"], 1)
