"""`avpretrain compare`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from avpretrain.core.terminal import say
from avpretrain.measures.scores import bounds, points


def main(
    a: Annotated[Positional[Path], arg(metavar="A")],
    b: Annotated[Positional[Path], arg(metavar="B")],
    /,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Say by how much one result is better than another on the clips both tested, with a paired 95% interval.

    Reads two results of `probe` or `finetune` and the predictions (.npz) next to them. Writes nothing. Takes a second.

    Args:
        a: A result, as JSON.
        b: Another of the same task.
        seed: Of the bootstrap.
        json: Print the comparison as JSON.
    """
    from avpretrain.evaluation.results import compare_results

    found = compare_results(a, b, seed)
    if json:
        print(json_format.dumps(found, indent=2))
        return
    interval = bounds(found["difference_ci"])
    if interval is None:
        certainty = "95% interval unknown: the clips are too few or too alike to tell"
    else:
        clear = interval[0] > 0 or interval[1] < 0
        sure = "the interval leaves out 0" if clear else "no clear difference: the interval holds 0"
        certainty = f"95% interval {points(interval, '+')} ({sure})"
    say(
        f"{found['metric']} of {a} less that of {b}, on {found['clips']} clips: "
        f"{100 * found['difference']:+.1f} points, {certainty}"
    )
