"""Clips of shards that are written, taken out byte for byte for other shards, with the labels and split of today."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avpretrain.core.errors import UserError
from avpretrain.data.decode import decode_audio
from avpretrain.data.log_mel_sums import LogMelSums, log_mel_sums
from avpretrain.data.media import SAMPLE_RATE
from avpretrain.data.write.parts import tar_member

BLOCK = tarfile.BLOCKSIZE


def moving_row(row: Mapping[str, Any], shard: str, out: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a clip that is to move.

    Args:
        row: of the manifest, or of a joined shard; offsets are those in `shard`.
        shard: the tar that it stands in.
        out: folder of the shards.
        changes: `labels` (JSON), `license`, `split`.
    """
    moved = {"shard": shard} | {f"{kind}_offset": row[f"{kind}_offset"] for kind in ("video", "audio")}
    new = {**row, **changes, "moved": moved}
    size = 0
    for kind in ("video", "audio"):
        length = row[f"{kind}_length"]
        new[f"{kind}_offset"] = size + BLOCK if length else 0
        size += BLOCK + length + -length % BLOCK if length else 0
    length = len(_description(out, new))
    return {**new, "bytes": size + BLOCK + length + -length % BLOCK}


def moved_members(out: Path, row: Mapping[str, Any]) -> bytes:
    """A clip's tar members, as `parts.clip_members` would write them with its present labels and split.

    Raises:
        UserError: the clip is damaged where it stands.
    """
    data, digest = b"", hashlib.sha256()
    for kind in ("video", "audio"):
        content = _media(out, row, kind)
        digest.update(content)
        if content:
            data += tar_member(f"{row['key']}.{row[f'{kind}_ext']}", content)
    if digest.hexdigest() != row["sha256"]:
        raise _damaged(out, row)
    return data + tar_member(f"{row['key']}.json", _description(out, row))


def sums_of(out: Path, row: Mapping[str, Any]) -> LogMelSums | None:
    """The log-mel sums of a moving clip's audio, as they were measured when it was sharded; none where it has none."""
    content = _media(out, row, "audio")
    return log_mel_sums(decode_audio(content, SAMPLE_RATE), SAMPLE_RATE) if content else None


def _media(out: Path, row: Mapping[str, Any], kind: str) -> bytes:
    with (out / row["moved"]["shard"]).open("rb") as file:
        file.seek(row["moved"][f"{kind}_offset"])
        return file.read(row[f"{kind}_length"])


def _description(out: Path, row: Mapping[str, Any]) -> bytes:
    """The JSON of a clip, which follows its media in the tar, with what has changed."""
    ends = [row["moved"][f"{kind}_offset"] + row[f"{kind}_length"] for kind in ("video", "audio")]
    end = max(ends)
    with (out / row["moved"]["shard"]).open("rb") as file:
        file.seek(end + -end % BLOCK)
        try:
            header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "strict")
            described = json.loads(file.read(header.size))
        except (tarfile.TarError, ValueError):
            raise _damaged(out, row) from None
    if header.name != f"{row['key']}.json" or not isinstance(described, dict):
        raise _damaged(out, row)
    described |= {"labels": json.loads(row["labels"]), "license": row["license"], "split": row["split"]}
    return json.dumps(described, sort_keys=True, ensure_ascii=False).encode()


def _damaged(out: Path, row: Mapping[str, Any]) -> UserError:
    return UserError(
        f"clip {row['key']} in {out / row['moved']['shard']} is damaged, so its labels can't be changed; "
        "avpretrain inspect --verify lists all that are; shard into a new folder"
    )
