"""`avpretrain inspect SHARDS`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.progress import Progress
from tyro.conf import Positional, arg

from avpretrain.cli.shared.tables import show_facts
from avpretrain.core.errors import UserError
from avpretrain.core.terminal import Console, plain, plain_json, plain_line, say

if TYPE_CHECKING:
    import numpy as np

    from avpretrain.data.manifest import Manifest

MAX_VALUES = 12
"""Values of one label that the table shows."""
MAX_LETTERS = 24
"""Of one value."""


def main(
    shards: Annotated[Positional[Path], arg(metavar="SHARDS")],
    verify_: Annotated[bool, arg(name="verify")] = False,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Show what is in a sharded data set, and check it.

    Reads manifest and summary: seconds. With --verify it reads every byte, names each damaged shard and clip, and exits
    with status 1 if there is one: as long as the disk takes.

    Args:
        shards: folder written by `avpretrain shards`.
        verify_: read every byte and compare checksums.
        json_: print JSON.
    """
    from avpretrain.data.verify import require_data_set

    problems = _verified(shards) if verify_ else []
    if problems:
        _complain(problems, shards, json_)
    facts = describe(require_data_set(shards))
    if json_:
        shown = {**facts, "problems": problems} if verify_ else facts
        print(plain_json(json.dumps(shown, indent=2, ensure_ascii=False)))
        return
    show_facts(_rows(facts))
    if verify_:
        say(f"verified: every byte of {len(facts['shards'])} shards is as it was written")


def _verified(root: Path) -> list[str]:
    from avpretrain.data.verify import verify

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("reading shards", total=None)
        return verify(root, lambda done, total: bar.update(line, completed=done, total=total))


def _complain(problems: list[str], root: Path, as_json: bool) -> None:
    print(json.dumps({"problems": problems}, indent=2) if as_json else plain("\n".join(problems)))
    raise UserError(f"{root} is damaged ({len(problems)} findings); fetch it again, or shard the source again")


def describe(manifest: Manifest) -> dict[str, Any]:
    """Everything that the table shows, as plain values."""
    import numpy as np

    from avpretrain.data.verify import label_counts

    table, info = manifest.table, manifest.info
    if manifest.bad:
        good = np.ones(len(table), dtype=bool)
        good[list(manifest.bad)] = False
        table = table.filter(good)
    splits = {}
    for name in manifest.splits:
        shards = [shard for shard in manifest.shards if shard.split == name]
        splits[name] = {"clips": sum(s.clips for s in shards), "bytes": sum(s.bytes for s in shards)}
    has_video, has_audio = (np.asarray(table.column(f"{m}_length")) > 0 for m in ("video", "audio"))
    side = np.minimum(np.asarray(table.column("width")), np.asarray(table.column("height")))[has_video]
    kept = ("name", "clips", "hours", "bytes", "fingerprint", "log_mel", "created_with", "source", "shards")
    return {
        **{name: info[name] for name in kept if name in info},
        "splits": splits,
        "with_video": int(has_video.sum()),
        "with_audio": int(has_audio.sum()),
        "duration": _spread(np.asarray(table.column("duration"))),
        "fps": _spread(np.asarray(table.column("fps"))[has_video]),
        "short_side": _spread(side),
        "licenses": dict(Counter(table.column("license").to_pylist()).most_common()),
        "labels": label_counts(manifest),
        "damaged_rows": {manifest.clip(row).key: reason for row, reason in manifest.bad.items()},
        "free_text": [name for name, values in info.get("labels", {}).items() if not values],
    }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    import numpy as np

    if not len(values):
        return None
    low, middle, high = np.percentile(values.astype(np.float64), [0, 50, 100])
    return {"min": low, "median": middle, "max": high}


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []

    def add(name: str, shown: str) -> None:
        rows.append((name, shown))

    add("data set", plain_line(facts["name"]))
    size = f"{facts['bytes'] / 1e6:.1f} MB in {len(facts['shards'])} shards"
    add("clips", f"{facts['clips']} ({facts['hours']:.2f} h, {size})")
    if damaged := facts["damaged_rows"]:
        key, reason = next(iter(damaged.items()))
        add("damaged rows", f"{len(damaged)}, such as {key}: {reason}; in training they count as damaged clips")
    add("splits", ", ".join(f"{plain_line(name)} {split['clips']}" for name, split in facts["splits"].items()))
    add("with video", str(facts["with_video"]))
    add("with audio", str(facts["with_audio"]))
    for name, unit in (("duration", "s"), ("fps", ""), ("short_side", "px")):
        if facts[name]:
            add(name.replace("_", " "), "{min:g} to {max:g}, median {median:g} ".format(**facts[name]) + unit)
    for name, counts in facts["labels"].items():
        add(f"label {plain_line(name)}", label_in_a_line(counts))
    for name in facts["free_text"]:
        add(f"label {plain_line(name)}", "free text: too many values to count")
    add("licences", label_in_a_line({name or "unknown": count for name, count in facts["licenses"].items()}))
    log_mel = facts["log_mel"]
    add("log-mel", f"mean {log_mel['mean']:.7f}, std {log_mel['std']:.7f} over {log_mel['clips']} clips")
    add("fingerprint", facts["fingerprint"])
    return rows


def label_in_a_line(counts: Mapping[str, int]) -> str:
    """What a label holds: its values with their clips, or what kind of values they are where there are many.

    Numbers such as times and coordinates give their range; values that hardly any two clips share give examples.
    """
    there = {value: count for value, count in counts.items() if count}
    clips, names = sum(there.values()), [_short(value) for value in there]
    if not there:
        return "no clip has it"
    if len(there) <= MAX_VALUES:
        return ", ".join(f"{name} {count}" for name, count in zip(names, there.values(), strict=True))
    numbers = [_number(value) for value in there]
    if all(number is not None for number in numbers):
        known = [number for number in numbers if number is not None]
        return f"{len(there)} numbers from {min(known):g} to {max(known):g} in {clips} clips"
    if 2 * len(there) > clips:
        return f"{len(there)} values in {clips} clips, such as {', '.join(names[:3])}"
    most = sorted(there, key=lambda value: (-there[value], value))[:MAX_VALUES]
    return f"{len(there)} values, most often {', '.join(f'{_short(value)} {there[value]}' for value in most)}"


def _short(value: str) -> str:
    return plain_line(value if len(value) <= MAX_LETTERS else f"{value[: MAX_LETTERS - 3]}...")


def _number(value: str) -> float | None:
    """A finite number; none for other texts."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
