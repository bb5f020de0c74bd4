"""Variants of a data set that a stranger might send, and what must become of each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from tests.support.hostile import Change, instead, sparse, text


def summary(**changes: Any) -> Change:
    """Replaces keys of dataset.json; `...` takes one away."""

    def change(root: Path) -> None:
        info = json.loads((root / "dataset.json").read_text())
        info.update(changes)
        info = {key: value for key, value in info.items() if value is not ...}
        (root / "dataset.json").write_text(json.dumps(info))

    return change


def shard(**changes: Any) -> Change:
    """Replaces keys of its first shard's entry."""

    def change(root: Path) -> None:
        info = json.loads((root / "dataset.json").read_text())
        info["shards"][0].update(changes)
        info["shards"][0] = {key: value for key, value in info["shards"][0].items() if value is not ...}
        (root / "dataset.json").write_text(json.dumps(info))

    return change


def row(**changes: Any) -> Change:
    """Replaces values of the manifest's second row."""

    def change(root: Path) -> None:
        path = root / "manifest.arrow"
        with pa.ipc.open_file(path) as reader:
            table = reader.read_all()
        rows = table.to_pylist()
        rows[1].update(changes)
        _write(path, pa.Table.from_pylist(rows, schema=table.schema))

    return change


def _write(path: Path, table: pa.Table, **options: Any) -> None:
    path.unlink()
    how = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=how) as writer:
        writer.write_table(table)


def table(change_of: Callable[[pa.Table], pa.Table], **options: Any) -> Change:
    """Writes the manifest anew."""

    def change(root: Path) -> None:
        path = root / "manifest.arrow"
        with pa.ipc.open_file(path) as reader:
            found = reader.read_all()
        _write(path, change_of(pa.Table.from_pylist(found.to_pylist(), schema=found.schema)), **options)

    return change


def tar_bytes(edit: Callable[[bytearray], Any]) -> Change:
    def change(root: Path) -> None:
        path = root / "train-000000.tar"
        data = bytearray(path.read_bytes())
        edit(data)
        path.write_bytes(data)

    return change


def _doubled(root: Path) -> None:
    path = root / "train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(m.name, (tar.extractfile(m) or io.BytesIO()).read()) for m in tar.getmembers()]
    with tarfile.open(path, "w") as tar:
        for name, data in members * 2:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _many_values(root: Path) -> None:
    info = json.loads((root / "dataset.json").read_text())
    info["labels"] = {"class": ["VALUES"]}
    values = ",".join(['"\U0001f600"'] * 3_999_000)
    (root / "dataset.json").write_text(json.dumps(info).replace('"VALUES"', values))


def _audio(root: Path, rate: int, samples: int) -> None:
    """Another audio file for the second clip, which claims so many samples; checksums, sizes and places fit."""
    out = io.BytesIO()
    soundfile.write(out, np.zeros(min(samples, 1 << 20), np.int16), rate, format="FLAC", subtype="PCM_16")
    data, tar = bytearray(out.getvalue()), root / "train-000000.tar"
    data[22:26] = samples.to_bytes(4, "big")  # of STREAMINFO; silence takes so little that a whole file is as small
    offset = tar.stat().st_size
    with tar.open("ab") as file:
        file.write(data)
    info = json.loads((root / "dataset.json").read_text())
    info["shards"][0]["bytes"] += len(data)
    info["bytes"] += len(data)
    (root / "dataset.json").write_text(json.dumps(info))
    seal = hashlib.sha256(data).hexdigest()
    row(video_ext="", video_length=0, fps=0.0, audio_offset=offset, audio_length=len(data), sha256=seal)(root)


LOG_MEL = {"mean": -8.0, "std": 4.0, "clips": 12}
LABEL = '{"class": "%s"}'
DATA: dict[str, tuple[Change, str]] = {
    # what becomes of each: "!text" = refused with that text in its line; "N text" = N bad clips, named so; "" = as good
    "shard name absolute": (shard(name="/etc/passwd.tar"), "!'name' can't be '/etc/passwd.tar'"),
    "shard name above": (shard(name="../x.tar"), "!'name' can't be"),
    "shard name two up": (shard(name=".."), "!'name' can't be"),
    "shard name with folder": (shard(name="a/b.tar"), "!'name' can't be"),
    "shard name with backslash": (shard(name="a\\b.tar"), "!'name' can't be"),
    "shard name empty": (shard(name=""), "!'name' can't be"),
    "shard name with nul": (shard(name="a\0b.tar"), "!'name' can't be"),
    "shard name with newline": (shard(name="a\nb.tar"), "!'name' can't be"),
    "shard name hidden": (shard(name=".x.tar"), "!'name' can't be"),
    "shard name a number": (shard(name=3), "!'name' can't be"),
    "shard name missing": (shard(name=...), "!lacks 'name'"),
    "shard clips negative": (shard(clips=-4), "!'clips' can't be"),
    "shard clips huge": (shard(clips=1 << 61), "!disagree"),
    "shard clips a text": (shard(clips="4"), "!'clips' can't be"),
    "shard clips true": (shard(clips=True), "!'clips' can't be"),
    "shard bytes negative": (shard(bytes=-1), "!'bytes' can't be"),
    "shard bytes too many": (shard(bytes=1 << 50), "!not the sum"),
    "shard split empty": (shard(split=""), "!'split' can't be"),
    "shard split of escapes": (shard(split="\x1b[2Jtrain"), ""),
    "two shards of one name": (lambda root: _same_names(root), "!same name"),
    "shards no list": (summary(shards={"a": 1}), "!'shards' can't be"),
    "shards of numbers": (summary(shards=[1, 2, 3]), "!is no object"),
    "shards missing": (summary(shards=...), "!lacks 'shards'"),
    "format of the future": (summary(format=99), "!has data format 99"),
    "format missing": (summary(format=...), "!has data format None"),
    "format a list": (summary(format=[1]), "!has data format [1]"),
    "clips disagree": (summary(clips=5), "!disagree"),
    "clips huge": (summary(clips=1 << 80), "!'clips' can't be"),
    "hours infinite": (text("dataset.json", '{"format": 1, "hours": 1e999}'), "!"),
    "hours not a number": (summary(hours=float("nan")), "!'hours' can't be"),
    "hours wrong": (summary(hours=1e6), "!disagree on the hours"),
    "log mel missing": (summary(log_mel=...), "!lacks 'log_mel'"),
    "log mel std negative": (summary(log_mel={"mean": 0.0, "std": -1.0, "clips": 1}), "!'std' can't be"),
    "labels a number": (summary(labels=7), "!'labels' can't be"),
    "fingerprint a path": (summary(fingerprint="../../x"), "!'fingerprint' can't be"),
    "summary empty": (text("dataset.json", ""), "!manifest is damaged"),
    "summary a list": (text("dataset.json", "[]"), "!no object"),
    "summary deep": (text("dataset.json", "[" * 2_000_000), "!manifest is damaged"),
    "summary many values": (text("dataset.json", "[" + "0," * 9_000_000 + "0]"), "!manifest is damaged"),
    "summary large": (text("dataset.json", b" " * (70 << 20)), "!is larger than"),
    "summary binary": (text("dataset.json", b"\xff\xfe\x00\x01"), "!manifest is damaged"),
    "summary a folder": (instead("dataset.json", Path.mkdir), "!is a folder"),
    "summary a pipe": (instead("dataset.json", os.mkfifo), "!is a pipe"),
    "summary endless": (instead("dataset.json", lambda p: p.symlink_to("/dev/zero")), "!is a device"),
    "manifest empty": (text("manifest.arrow", b""), "!damaged"),
    "manifest garbage": (text("manifest.arrow", np.random.default_rng(0).bytes(100_000)), "!damaged"),
    "manifest a pipe": (instead("manifest.arrow", os.mkfifo), "!is a pipe"),
    "manifest endless": (instead("manifest.arrow", lambda p: p.symlink_to("/dev/zero")), "!is a device"),
    "manifest missing": (instead("manifest.arrow", lambda p: None), "!is missing"),
    "manifest compressed": (table(lambda t: t, compression="zstd"), "!is compressed"),
    "manifest other columns": (table(lambda t: t.drop_columns(["fps"])), "!other columns"),
    "manifest other types": (
        table(lambda t: t.set_column(8, "duration", t.column("duration").cast(pa.float64()))), "!other columns",
    ),
    "manifest in pieces": (
        table(lambda t: pa.concat_tables([t.slice(0, 0)] * 70_000 + [t])), "!more than 65536 pieces",
    ),
    "offset negative": (row(video_offset=-1), "1 outside its shard"),
    "offset beyond": (row(video_offset=1 << 60), "1 outside its shard"),
    "length huge": (row(audio_length=1 << 62), "1 outside its shard"),
    "length negative": (row(audio_length=-5), "1 "),
    "length overflows": (row(video_offset=(1 << 63) - 1, video_length=(1 << 63) - 1), "1 outside its shard"),
    "extension a path": (row(video_ext="/../x"), "1 no file extension"),
    "key a path": (row(key="../../x"), "1 key is not of"),
    "key with escapes": (row(key="a\x1b[31m"), "1 key is not of"),
    "duration not a number": (row(duration=float("nan")), "1 duration is impossible"),
    "duration infinite": (row(duration=float("inf")), "1 duration is impossible"),
    "duration negative": (row(duration=-1.0), "1 duration is impossible"),
    "fps huge": (row(fps=1e30), "1 fps is impossible"),
    "size huge": (row(width=1 << 30), "1 width or height"),
    "start infinite": (row(start=float("-inf")), "1 start is impossible"),
    "labels no json": (row(labels="__import__('os')"), "1 labels are no JSON"),
    "labels deep": (row(labels='{"a": ' + "[" * 100_000), "1 labels are no JSON"),
    "labels of numbers": (row(labels='{"class": 3}'), "1 labels are no JSON"),
    "labels with escapes": (row(labels=LABEL % "\\u001b[2J"), ""),
    "labels of markup": (row(labels=LABEL % "<script>[/red]"), ""),
    "labels that turn around": (row(labels=LABEL % "\\u202egnp.exe"), ""),
    "nothing in a row": (row(video_ext="", audio_ext=""), "1 "),
    "a null": (row(labels=None), "1 no value"),
    "sha256 wrong": (row(sha256="0" * 64), "1 checksum"),
    "sha256 none": (row(sha256="x"), "1 sha256 is none"),
    "shard of another": (row(shard=2), "1 shard is another"),
    "tar cut": (lambda root: os.truncate(root / "train-000000.tar", 5000), "4 "),
    "tar of garbage": (tar_bytes(lambda d: d.__setitem__(slice(0, None), os.urandom(len(d)))), "4 "),
    "tar empty": (lambda root: os.truncate(root / "train-000000.tar", 0), "4 "),
    "tar doubled": (_doubled, ""),
    "tar missing": (instead("train-000000.tar", lambda p: None), "4 "),
    "tar a folder": (instead("train-000000.tar", Path.mkdir), "4 "),
    "tar a pipe": (instead("train-000000.tar", os.mkfifo), "4 "),
    "tar endless": (instead("train-000000.tar", lambda p: p.symlink_to("/dev/zero")), "4 "),
    "tar sparse": (instead("train-000000.tar", sparse), "4 "),
    "tar linked out": (instead("train-000000.tar", lambda p: p.symlink_to("/etc/passwd")), "4 "),
    "summary sparse": (instead("dataset.json", sparse), "!larger than"),
    "summary at the limit of values": (lambda root: _many_values(root), ""),
    "summary a number of many digits": (text("dataset.json", '{"format": ' + "9" * 5_000_000 + "}"), "!damaged"),
    "manifest sparse": (instead("manifest.arrow", sparse), "!manifest.arrow"),
    "format long": (summary(format="9" * 5_000_000), "!has data format '999"),
    "name long": (summary(name="x" * 5_000_000), "!'name' can't be"),
    "label name long": (summary(labels={"x" * 5_000_000: ["a"]}), "!'labels' can't be"),
    "shard name long": (shard(name="x" * 5_000_000), "!'name' can't be"),
    "log mel mean huge": (summary(log_mel={"mean": 1e200, "std": 1.0, "clips": 1}), "!'mean' can't be"),
    "log mel sums a text": (summary(log_mel={**LOG_MEL, "sums": "abc"}), "!'sums' can't be"),
    "log mel sums empty": (summary(log_mel={**LOG_MEL, "sums": {"train": []}}), "!'sums' can't be"),
    "log mel splits a number": (summary(log_mel={**LOG_MEL, "splits": 5}), "!'splits' can't be"),
    "source long": (row(source="x" * 5_000_000), "1 source is longer than"),
    "license long": (row(license="x" * 5_000_000), "1 license is longer than"),
    "labels long": (row(labels=LABEL % ("x" * 20_000_000)), "1 labels is longer than"),
    "source with escapes": (row(source="\x1b]0;evil\x07\u202e"), ""),
    "two clips of one key": (row(key="clip00000"), ""),  # a key is a name: nothing is found by it
    "audio that unfolds": (lambda root: _audio(root, 1000, 1 << 26), "1 which at 16000 Hz are"),
    "audio of many samples": (lambda root: _audio(root, 16_000, 1 << 28), "1 more than 134217728"),
    "audio of an absurd rate": (lambda root: _audio(root, 500, 1000), "1 claims a sample rate"),
}  # fmt: skip


def _same_names(root: Path) -> None:
    info = json.loads((root / "dataset.json").read_text())
    info["shards"][1]["name"] = info["shards"][0]["name"]
    (root / "dataset.json").write_text(json.dumps(info))
