"""The work on one source file: its clips, cut, checked and laid down as a part, to be joined into shards.

A part is two files: ID.tar, the tar members of the clips in the very bytes in which shards will hold them, and ID.json,
which is written last: a part whose ID.json exists is complete. A file that can't be read now, through no fault of its
own, leaves ID.away instead, which says why and which the next run forgets. S samples.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import re
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av

from avpretrain.core.errors import UserError
from avpretrain.data.choices import Limits, Need
from avpretrain.data.container import DecodeError
from avpretrain.data.log_mel_sums import log_mel_sums
from avpretrain.data.media import SAMPLE_RATE
from avpretrain.data.names import escape_name, name_bytes
from avpretrain.data.rows import MAX_CLIP_BYTES
from avpretrain.data.sources.base import Item, need_of
from avpretrain.data.write.settings import TranscodeConfig
from avpretrain.data.write.transcode import ClipMedia, cut
from avpretrain.data.write.workers import Beat

MOMENTS = (1.0, 2.0, 4.0)
"""Seconds after which a file that can't be read is tried again."""
FOR_A_MOMENT = frozenset(
    getattr(errno, name)
    for name in (
        "ENOENT", "EIO", "ESTALE", "ETIMEDOUT", "ENODEV", "ENXIO", "ENOTCONN", "EREMOTEIO", "EAGAIN", "EBUSY", "EINTR",
        "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "EMFILE",
        "ENFILE",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Errors of a disk, a server or a process, not of a file, that may be over in a moment."""
FOR_LONGER = frozenset((errno.EACCES, errno.EPERM, errno.ENOMEM))
"""Such errors that last until something is changed."""


class AwayError(Exception):
    """A file can't be read now, through no fault of its own; the message says why.

    Args:
        moment: whether it is worth trying again at once.
    """

    def __init__(self, why: str, moment: bool) -> None:
        super().__init__(why)
        self.moment = moment


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One item to make a part of."""

    item: Item
    root: Path
    sign: tuple[int, int]
    """The file's `signature`."""
    part: Path
    """Path of the part, without extension."""
    cfg: TranscodeConfig
    limits: Limits

    def __str__(self) -> str:
        return str(self.root / self.item.path)

    @property
    def need(self) -> Need:
        """What its clips must have: as configured, or else as the source says, or else as the file's type promises."""
        return next(need for need in (self.cfg.need, self.item.need, need_of(self.item.path)) if need != "auto")


def make_part(task: Task, beat: Beat) -> None:
    """Writes the part of a file; one that can't be used leaves a part without clips that says why.

    One that can't be read now is tried again for some seconds, and then leaves a part that counts for this run alone.

    Raises:
        UserError: the part can't be written, or the whole source folder can't be read.
    """
    try:
        task.part.parent.mkdir(parents=True, exist_ok=True)
        for pause in (*MOMENTS, None):
            try:
                rows = _write_clips(task, beat)
            except DecodeError as error:
                return write_part(task, [], str(error))
            except AwayError as error:
                if pause is None or not error.moment:
                    _require_source(task, error)
                    return write_away(task, str(error))
                _wait(pause, beat)
            else:
                return write_part(task, rows, None)
    except OSError as error:
        where = task.part.parent
        raise UserError(f"can't write to {where}: {error.strerror}; fix that and run again to resume") from None


def _wait(seconds: float, beat: Beat) -> None:
    for _ in range(round(4 * seconds)):
        time.sleep(0.25)
        beat()


def _require_source(task: Task, error: AwayError) -> None:
    """Raises a UserError where not one file, but the whole source folder, can't be read."""
    try:
        next(task.root.iterdir(), None)
    except OSError as gone:
        raise UserError(
            f"the source folder {task.root} can't be read any more: {gone.strerror}; nothing is lost: fix that and "
            "run again to resume"
        ) from error


def _clips(task: Task, dropped: dict[str, float]) -> Iterator[ClipMedia]:
    """The clips of a file.

    Args:
        dropped: takes amounts of what is left out or filled in.

    Raises:
        DecodeError: the file can't be used.
        AwayError: it can't be read now.
    """
    try:
        yield from cut(task.root / task.item.path, task.item.segment, task.need, task.cfg, task.limits, dropped)
    except (DecodeError, OSError, MemoryError) as error:
        reason = (
            str(error) if isinstance(error, DecodeError) else getattr(error, "strerror", None) or type(error).__name__
        )
        raise away(error) or DecodeError(reason) from None


def away(error: BaseException) -> AwayError | None:
    """The error of a disk, a server or memory that an exception was made of; none = the file itself is to blame.

    FFmpeg's own errors are no evidence: it says "I/O error" and "out of memory" of damaged files.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) and not isinstance(cause, av.FFmpegError):
            return AwayError("needs more memory than there is", moment=False)
        genuine = cause.errno if isinstance(cause, OSError) and not isinstance(cause, av.FFmpegError) else None
        if isinstance(cause, OSError) and genuine in FOR_A_MOMENT | FOR_LONGER:
            return AwayError(f"can't be read: {cause.strerror}", cause.errno in FOR_A_MOMENT)
        cause = cause.__cause__ or cause.__context__
    return None


def _write_clips(task: Task, beat: Beat) -> list[dict[str, Any]]:
    """Writes the tar members of a part; returns their rows."""
    rows: list[dict[str, Any]] = []
    dropped: dict[str, float] = {}
    temporary = task.part.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            for clip in _clips(task, dropped):
                if len(clip.video) + len(clip.audio) > MAX_CLIP_BYTES:
                    raise DecodeError(f"gives a clip of more than {MAX_CLIP_BYTES >> 20} MiB; try --clip-seconds 10")
                data, row = clip_members(clip, task.item, len(rows))
                row["part_offset"] = file.tell()
                file.write(data)
                rows.append(row)
                beat()
        temporary.replace(task.part.with_suffix(".tar"))
    finally:
        temporary.unlink(missing_ok=True)
    rows[-1]["dropped"] = told(dropped)
    return rows


def write_away(task: Task, why: str) -> None:
    """Notes that a file can't be read in this run."""
    task.part.parent.mkdir(parents=True, exist_ok=True)
    temporary = task.part.with_suffix(".tmp")
    temporary.write_text(why)
    temporary.replace(task.part.with_suffix(".away"))


def told(dropped: Mapping[str, float]) -> str:
    """Amounts of what was left out or filled in, as text; `untold` reads it."""
    return "; ".join(f"{amount:.4g} {what}" for what, amount in sorted(dropped.items()))


def untold(texts: Iterable[str]) -> dict[str, float]:
    """Sums of the amounts in what `told` wrote."""
    sums: dict[str, float] = {}
    for entry in itertools.chain.from_iterable(text.split("; ") for text in texts if text):
        amount, what = entry.split(" ", 1)
        sums[what] = sums.get(what, 0.0) + float(amount)
    return sums


def write_part(task: Task, rows: list[dict[str, Any]], reason: str | None) -> None:
    """Writes the file that makes a part complete."""
    task.part.parent.mkdir(parents=True, exist_ok=True)
    temporary = task.part.with_suffix(".tmp")
    temporary.write_text(json.dumps({"rows": rows, "reason": reason, "sign": task.sign, "split": task.item.split}))
    temporary.replace(task.part.with_suffix(".json"))


def labels_json(item: Item) -> str:
    """An item's labels as the manifest holds them."""
    return json.dumps(item.labels, sort_keys=True, ensure_ascii=False)


def clip_key(item: Item, number: int) -> str:
    """Name of a clip's members: readable, of [A-Za-z0-9_-] only, and unique by a hash of path and segment."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", item.path.rsplit(".", 1)[0])[-48:].strip("_")
    digest = hashlib.sha256(name_bytes(f"{item.path}\n{item.segment}")).hexdigest()[:10]
    return f"{readable or 'clip'}-{digest}-{number:04d}"


def clip_members(clip: ClipMedia, item: Item, number: int) -> tuple[bytes, dict[str, Any]]:
    """A clip's tar members, and its row of the manifest (without the shard) with offsets from the first byte."""
    key = clip_key(item, number)
    row: dict[str, Any] = {
        "key": key,
        "video_ext": clip.video_ext,
        "video_offset": 0,
        "video_length": len(clip.video),
        "audio_ext": "flac" if clip.audio else "",
        "audio_offset": 0,
        "audio_length": len(clip.audio),
        "duration": clip.duration,
        "fps": clip.fps,
        "width": clip.width,
        "height": clip.height,
        "labels": labels_json(item),
        "source": escape_name(item.path),
        "start": clip.start,
        "license": item.license,
        "sha256": hashlib.sha256(clip.video + clip.audio).hexdigest(),
    }
    data = b""
    for kind, content in (("video", clip.video), ("audio", clip.audio)):
        if content:
            row[f"{kind}_offset"] = len(data) + tarfile.BLOCKSIZE
            data += tar_member(f"{key}.{row[f'{kind}_ext']}", content)
    names = ("source", "start", "duration", "fps", "license", "sha256")
    described = {"labels": item.labels, "split": item.split, **{name: row[name] for name in names}}
    text = json.dumps(described, sort_keys=True, ensure_ascii=False)
    data += tar_member(f"{key}.json", text.encode())
    row["bytes"] = len(data)
    row["log_mel"] = log_mel_sums(clip.pcm_S, SAMPLE_RATE) if clip.pcm_S is not None else None
    return data, row


def tar_member(name: str, content: bytes) -> bytes:
    """A file as it stands in a tar: one header block without date or owner, the content, zeros up to a whole block."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % tarfile.BLOCKSIZE)


def signature(path: Path) -> tuple[int, int]:
    """What shows that a file changed: its size in bytes and its time of change in nanoseconds; zeros if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def part_id(item: Item, sign: tuple[int, int], cfg: TranscodeConfig) -> str:
    """Name of an item's part: changes with the file, what is known of it, and the way it is written."""
    text = json.dumps([asdict(item), sign, asdict(cfg)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
