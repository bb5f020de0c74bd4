"""Variants of a data set and of a model's folder that a stranger might send, and a process that opens them all.

Run as `python -m tests.support.hostile data|models FOLDER OUT`, it opens each folder in FOLDER, with a gigabyte of
address space more than it began with, and writes what came of each to OUT.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import torch
from safetensors.torch import load_file, save_file

from avpretrain.core.errors import UserError
from avpretrain.core.terminal import plain
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.nn.weights import read_model_config
from tests.support.tiny_models import tiny

GIGABYTE = 1 << 30
Change = Callable[[Path], None]


# --- data sets -------------------------------------------------------------------------------------------------------


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


def text(name: str, content: bytes | str) -> Change:
    """Replaces a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda root: _replace(root / name, data)


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def instead(name: str, make: Callable[[Path], Any]) -> Change:
    """Puts something else in a file's place."""

    def change(root: Path) -> None:
        (root / name).unlink()
        make(root / name)

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


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 40)


def _many_values(root: Path) -> None:
    info = json.loads((root / "dataset.json").read_text())
    info["labels"] = {"class": ["VALUES"]}
    values = ",".join(['"\U0001f600"'] * 7_800_000)
    (root / "dataset.json").write_text(json.dumps(info).replace('"VALUES"', values))


def _audio(root: Path, rate: int, samples: int) -> None:
    """Another sound for the second clip, silent and small as a file; checksums, sizes and places fit."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate, 1, format="FLAC", subtype="PCM_16") as file:
        for start in range(0, samples, 1 << 20):
            file.write(np.zeros(min(1 << 20, samples - start), np.int16))
    data, tar = out.getvalue(), root / "train-000000.tar"
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
    "tar sparse": (instead("train-000000.tar", _sparse), "4 "),
    "tar linked out": (instead("train-000000.tar", lambda p: p.symlink_to("/etc/passwd")), "4 "),
    "summary sparse": (instead("dataset.json", _sparse), "!larger than"),
    "summary at the limit of values": (lambda root: _many_values(root), ""),
    "summary a number of many digits": (text("dataset.json", '{"format": ' + "9" * 5_000_000 + "}"), "!damaged"),
    "manifest sparse": (instead("manifest.arrow", _sparse), "!manifest.arrow"),
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


# --- models ----------------------------------------------------------------------------------------------------------


def config(*keys: str, value: Any) -> Change:
    """Replaces a value of config.json."""

    def change(root: Path) -> None:
        values = json.loads((root / "config.json").read_text())
        place = values
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (root / "config.json").write_text(json.dumps(values))

    return change


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Writes the weights anew."""

    def change(root: Path) -> None:
        state = load_file(root / "model.safetensors")
        edit(state)
        save_file(state, root / "model.safetensors", metadata={"format": "pt"})

    return change


def header(size: int, body: bytes) -> Change:
    return text("model.safetensors", struct.pack("<Q", size) + body)


def entries(**tensors: Any) -> Change:
    body = json.dumps(tensors).encode()
    return header(len(body), body + bytes(64))


class Code:
    """A pickle of it makes a file when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def _sections(**depths: int) -> Change:
    def change(root: Path) -> None:
        for section, depth in depths.items():
            config("config", section, "depth", value=depth)(root)

    return change


def _many_tensors(root: Path) -> None:
    weights(lambda s: s.update({f"t{i}": torch.zeros(1) for i in range(2000)}))(root)


def _sparse_weights(root: Path) -> None:
    """Config and header agree on 2 TB of weights; the file is all holes."""
    config("config", "width", value=65_536)(root)
    config("config", "heads", value=64)(root)
    config("config", "audio", "depth", value=10)(root)
    cfg = read_model_config(root / "config.json")
    with torch.device("meta"):
        wanted = DiffMAViL(cfg).state_dict()
    place, tensors = 0, {}
    for name, tensor in wanted.items():
        end = place + 4 * tensor.numel()
        tensors[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    assert place > 1 << 40
    body = json.dumps(tensors).encode()
    header(len(body), body)(root)
    os.truncate(root / "model.safetensors", 8 + len(body) + place)


MODEL = ("config", "width")
MODELS: dict[str, tuple[Change, str]] = {
    "width huge": (config(*MODEL, value=1 << 40), "config.json"),
    "width negative": (config(*MODEL, value=-48), ""),
    "width zero": (config(*MODEL, value=0), ""),
    "width a text": (config(*MODEL, value="48"), "takes int"),
    "width not a number": (config(*MODEL, value=float("nan")), "takes int"),
    "depth huge": (config("config", "audio", "depth", value=1 << 30), ""),
    "depth a million": (config("config", "video", "depth", value=1_000_000), ""),
    "depth negative": (config("config", "audio", "depth", value=-1), ""),
    "heads zero": (config("config", "heads", value=0), ""),
    "heads do not divide": (config("config", "heads", value=5), "multiple of heads"),
    "patch zero": (config("config", "audio", "patch", value=[0, 0]), "patch"),
    "patch negative": (config("config", "video", "patch", value=[-2, 8, 8]), "patch"),
    "frames absurd": (config("config", "input", "audio_frames", value=1 << 40), ""),
    "bins absurd": (config("config", "input", "mels", value=1 << 30), ""),
    "sample rate absurd": (config("config", "input", "sample_rate", value=1 << 60), "sample_rate"),
    "sample rate zero": (config("config", "input", "sample_rate", value=0), "sample_rate"),
    "video size absurd": (config("config", "input", "video_size", value=1 << 30), ""),
    "frame rate absurd": (config("config", "input", "video_fps", value=1e300), "video_fps"),
    "mean infinite": (config("config", "input", "audio_mean", value=float("inf")), ""),
    "std zero": (config("config", "input", "audio_std", value=0.0), "audio_std"),
    "timesteps absurd": (config("config", "diffusion", "num_train_timesteps", value=1 << 40), ""),
    "unknown key": (config("config", "evil", value=1), "unknown config key"),
    "unknown word": (config("config", "objective", value="__import__"), "objective"),
    "config a list": (text("config.json", "[1]"), "holds no 'config'"),
    "config empty": (text("config.json", ""), "config.json"),
    "config deep": (text("config.json", '{"config":' * 100_000), "config.json"),
    "config large": (text("config.json", b" " * (70 << 20)), "larger than"),
    "config a pipe": (instead("config.json", os.mkfifo), ""),
    "config endless": (instead("config.json", lambda p: p.symlink_to("/dev/zero")), ""),
    "method of another": (config("method", value="os.system"), "os.system"),
    "method a list": (config("method", value=[1]), "method"),
    "weights empty": (text("model.safetensors", b""), "is empty"),
    "weights a pointer": (text("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "weights a page": (text("model.safetensors", "<!DOCTYPE html><html>"), "HTML page"),
    "weights cut": (lambda root: os.truncate(root / "model.safetensors", 9_000), "model.safetensors"),
    "weights a pipe": (instead("model.safetensors", os.mkfifo), ""),
    "weights endless": (instead("model.safetensors", lambda p: p.symlink_to("/dev/zero")), ""),
    "weights a pickle with code": (
        lambda root: (root / "model.safetensors").write_bytes(pickle.dumps(Code())), "model.safetensors",
    ),
    "header huge": (header(1 << 60, b"{}"), "header claims"),
    "header negative": (header((1 << 64) - 1, b"{}"), "header claims"),
    "header no json": (header(8, b"notjson!"), "damaged"),
    "header deep": (header(100_000, b"[" * 100_000), "damaged"),
    "tensors overlap": (
        entries(a={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                b={"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}), "damaged",
    ),
    "tensor beyond": (entries(a={"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}), "damaged"),
    "tensor of unknown type": (entries(a={"dtype": "EVIL", "shape": [4], "data_offsets": [0, 16]}), "damaged"),
    "tensor of integers": (
        weights(lambda s: s.update(dict.fromkeys(list(s)[:1], torch.zeros(s[next(iter(s))].shape, dtype=torch.int8)))),
        "not of floating point",
    ),
    "tensor missing": (weights(lambda s: s.pop(next(iter(s)))), "lacks"),
    "tensor too many": (weights(lambda s: s.update(evil=torch.zeros(1))), "has no place for"),
    "tensor of another shape": (weights(lambda s: s.update({next(iter(s)): torch.zeros(3)})), "shape"),
    "weights not numbers": (
        weights(lambda s: s.update({next(iter(s)): torch.full_like(s[next(iter(s))], float("nan"))})), "not finite",
    ),
    "weights infinite": (
        weights(lambda s: s.update({next(iter(s)): torch.full_like(s[next(iter(s))], float("inf"))})), "not finite",
    ),
    "weights sparse": (instead("model.safetensors", _sparse), "model.safetensors"),
    "weights sparse that fit": (lambda root: _sparse_weights(root), "memory"),
    "weights of the kernel": (instead("model.safetensors", lambda p: p.symlink_to("/proc/self/mem")), "kernel"),
    "weights a folder": (instead("model.safetensors", Path.mkdir), "no weights"),
    "tensor of a long name": (
        weights(lambda s: s.update({"\x1b[2J" + "n" * 5_000_000: torch.zeros(1)})), "has no place for",
    ),
    "all as deep as may be": (_sections(audio=256, video=256, fusion=256), "too few for"),
    "deep with as many tensors": (
        lambda root: (_sections(audio=256, video=256, fusion=256)(root), _many_tensors(root)), "does not fit",
    ),
    "all as wide as may be": (
        lambda root: (config("config", "width", value=65_536)(root), config("config", "heads", value=4096)(root)),
        "does not fit",
    ),
    "patches as large as may be": (
        lambda root: (config("config", "input", "audio_frames", value=1_000_000)(root),
                      config("config", "audio", "patch", value=[1_000_000, 8])(root)),
        "does not fit",
    ),
    "key long": (config("config", "k" * 30_000_000, value=1), "unknown config key"),
    "text long": (config("config", "width", value="w" * 50_000_000), "takes int"),
    "word long": (config("config", "objective", value="w" * 50_000_000), "objective"),
    "word a list": (config("config", "objective", value=[[0]] * 2_000_000), "objective"),
    "method long": (config("method", value="m" * 50_000_000), "mmm"),
    "levels without end": (config("config", "audio", "decoder", "levels", value=[0] * 2_000_000), "at most"),
    "window without end": (config("config", "audio", "decoder", "window", value=[1] * 9_000), "window"),
    "schedule without end": (
        lambda root: (config("config", "diffusion", "num_train_timesteps", value=1_000_000)(root),
                      config("config", "diffusion", "rho", value=2.0)(root)),
        "num_train_timesteps",
    ),
    "shift infinite": (config("config", "diffusion", "audio_shift", value=float("inf")), "audio_shift"),
    "sigma not a number": (config("config", "diffusion", "sigma_data", value=float("nan")), "sigma_data"),
    "logit mean not a number": (config("config", "diffusion", "logit_mean", value=float("nan")), "logit_mean"),
    "logit std infinite": (config("config", "diffusion", "logit_std", value=float("inf")), "logit_std"),
    "rho huge": (config("config", "diffusion", "rho", value=99.0), "rho"),
    "temperature zero": (config("config", "loss", "temperature_inter", value=0.0), "temperature_inter"),
}  # fmt: skip


def _zip_bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w", force_zip64=True) as member,
    ):
        for _ in range(192):
            member.write(bytes(1 << 24))


def _self_reference(path: Path) -> None:
    state: dict[str, Any] = {}
    state["model"] = state
    torch.save(state, path)


def vit() -> dict[str, torch.Tensor]:
    """An image ViT as MAE and timm write it: width 64, one layer, 4 x 4 patches of 8 pixels."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, 64), "pos_embed": (1, 17, 64), "patch_embed.proj.weight": (64, 3, 8, 8),
        "patch_embed.proj.bias": (64,), "norm.weight": (64,), "norm.bias": (64,),
    }  # fmt: skip
    layer = {"norm1": (64,), "attn.qkv": (192, 64), "attn.proj": (64, 64), "norm2": (64,), "mlp.fc1": (128, 64)}
    for part, shape in {**layer, "mlp.fc2": (64, 128)}.items():
        shapes |= {f"blocks.0.{part}.weight": shape, f"blocks.0.{part}.bias": shape[:1]}
    return {name: torch.rand(shape, generator=draw) for name, shape in shapes.items()}


def _changed(edit: Callable[[dict[str, Any]], Any]) -> Change:
    def write(path: Path) -> None:
        state = vit()
        edit(state)
        torch.save({"model": state}, path)

    return write


def _wrapped(depth: int) -> dict[str, Any]:
    state: dict[str, Any] = dict(vit())
    for _ in range(depth):
        state = {"model": state}
    return state


def _folded(path: Path, archive: bool) -> None:
    """A pair of pairs of pairs, 60 deep, as a key; whoever hashes it never ends."""
    pair: Any = ("a",)
    for _ in range(60):
        pair = (pair, pair)
    body = b"\x80\x02}" + pickle.dumps(pair, 2)[2:-1] + b"K\x01s."  # {pair: 1}
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            for name, data in {"data.pkl": body, "version": b"3\n", "byteorder": b"little"}.items():
                file.writestr(f"archive/{name}", data)
    else:
        head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + body + pickle.dumps([], 2))


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "code.pth": lambda path: torch.save({"model": Code()}, path),
    "old code.pth": lambda path: path.write_bytes(pickle.dumps(Code())),
    "loop.pth": _self_reference,
    "bomb.pth": _zip_bomb,
    "page.pth": lambda path: path.write_bytes(b"<html>"),
    "empty.pth": lambda path: path.write_bytes(b""),
    "pipe.pth": os.mkfifo,
    "endless.pth": lambda path: path.symlink_to("/dev/zero"),
    "garbage.safetensors": lambda path: path.write_bytes(np.random.default_rng(1).bytes(50_000)),
    "nan.pth": lambda path: torch.save(
        {"model": {"patch_embed.proj.weight": torch.full((8, 3, 4, 4), torch.nan)}}, path
    ),
    "numbers.pth": lambda path: torch.save({"model": 3}, path),
    "wrapped deep.pth": lambda path: torch.save(_wrapped(100), path),
    "folded tuples.pth": lambda path: _folded(path, archive=True),
    "folded tuples old.pth": lambda path: _folded(path, archive=False),
    "many tensors.pth": lambda path: torch.save({f"t{i}": torch.zeros(0) for i in range(21_000)}, path),
    "folder.pth": Path.mkdir,
    "claims.safetensors": lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    "sparse.safetensors": _sparse,
    "sparse.pth": _sparse,
    **{f"{name}.pth": _changed(edit) for name, edit in {
        "mae layers with a gap": lambda s: s.update({"blocks.999999999.norm1.weight": torch.zeros(64)}),
        "mae stretched": lambda s: s.update(pos_embed=torch.zeros(1, 1, 1).expand(1, 1 << 40, 64)),
        "mae sparse layout": lambda s: s.update(pos_embed=torch.zeros(1, 17, 64).to_sparse()),
        "mae without memory": lambda s: s.update(pos_embed=torch.zeros(1, 17, 64, device="meta")),
        "mae complex": lambda s: s.update(pos_embed=torch.zeros(1, 17, 64, dtype=torch.complex64)),
        "mae no kernel": lambda s: s.update({"patch_embed.proj.weight": torch.zeros(64, 3, 0, 0)}),
        "mae kernel flat": lambda s: s.update({"patch_embed.proj.weight": torch.zeros(64)}),
        "mae positions of another width": lambda s: s.update(pos_embed=torch.zeros(1, 17, 60)),
        "mae positions no square": lambda s: s.update(pos_embed=torch.zeros(1, 16, 64)),
        "mae no layers": lambda s: [s.pop(key) for key in list(s) if key.startswith("blocks")],
        "mae position not a number": lambda s: s.update(pos_embed=torch.full((1, 17, 64), torch.nan)),
        "mae weight infinite": lambda s: s.update({"blocks.0.mlp.fc1.bias": torch.full((128,), torch.inf)}),
        "mae shape of one": lambda s: s.update({"blocks.0.attn.qkv.weight": torch.zeros(1)}),
        "mae patch that does not divide": lambda s: s.update({"patch_embed.proj.weight": torch.zeros(64, 3, 7, 7)}),
        "mae colours": lambda s: s.update({"patch_embed.proj.weight": torch.zeros(64, 9, 8, 8)}),
        "mae of another type": lambda s: s.update({"norm.weight": torch.zeros(3)}),
        "timm layer scale": lambda s: s.update({"blocks.0." + "\x1b[2J" * 100_000: torch.zeros(64)}),
        "timm missing": lambda s: s.pop("patch_embed.proj.bias"),
        "audiomae of images": lambda s: None,
        "mavil of images": lambda s: None,
        "cav-mae of images": lambda s: None,
        "cav-mae without rows": lambda s: s.update({
            "pos_embed_a": torch.zeros(1, 4, 64), "modality_a": torch.zeros(1, 1, 64),
            "patch_embed_a.proj.weight": torch.zeros(64, 1, 300, 8), "patch_embed_a.proj.bias": torch.zeros(64),
            **{f"blocks_a{key.removeprefix('blocks')}": value for key, value in list(s.items()) if "blocks.0" in key},
        }),
    }.items()},
}  # fmt: skip
"""Files that might be given as another project's weights; their names begin with the format, or it is MAE's."""


def make(good: Path, variants: dict[str, tuple[Change, str]], folder: Path) -> None:
    """A copy of `good` for each variant, changed."""
    for name, (change, _) in variants.items():
        shutil.copytree(good, folder / name)
        change(folder / name)


# --- the process that opens them -------------------------------------------------------------------------------------


def open_data(root: Path) -> dict[str, Any]:
    """Every clip of a data set, decoded."""
    from avpretrain.cli.inspect import describe
    from avpretrain.config.model import InputConfig
    from avpretrain.data.read.clips import ClipSet
    from avpretrain.data.read.dataset import eval_loader
    from avpretrain.data.verify import require_data_set

    clips = ClipSet((str(root),), "all")
    input = InputConfig(audio_frames=64, mels=32, video_frames=2, video_fps=2.0, video_size=32)
    reasons: list[str] = []
    with eval_loader(clips, input, range(len(clips)), batch_size=4) as loader:
        for raw in loader:
            reasons += raw.reasons
    describe(require_data_set(root))
    return {"clips": len(clips), "bad": reasons, "log_mel": clips.log_mel}


def open_model(root: Path) -> dict[str, Any]:
    from avpretrain.methods.diffmavil.conversions.foreign import READERS
    from avpretrain.methods.diffmavil.conversions.importers import import_checkpoint
    from avpretrain.methods.load import load_model

    if root.suffix in (".pth", ".safetensors"):
        import_checkpoint(root, next((f for f in READERS if root.stem.startswith(f"{f} ")), "mae"), tiny(), "video")
    else:
        load_model(root)
    return {}


def main(what: str, folder: Path, out: Path) -> None:
    """Opens everything in a folder."""
    opened = open_data if what == "data" else open_model
    opened(folder / "good")  # imports what it needs
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, resource.RLIM_INFINITY))
    found = {}
    for path in sorted(folder.iterdir()):
        started = time.perf_counter()
        result: dict[str, Any] = {"error": None}
        try:
            result.update(opened(path))
        except UserError as error:
            result["error"] = plain(" ".join(str(error).split()))
        except BaseException as error:
            result["fault"] = f"{type(error).__name__}: {str(error)[:300]}"
        found[path.name] = {**result, "seconds": time.perf_counter() - started}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
