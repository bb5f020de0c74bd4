"""Variants of a data set and of a model's folder that a stranger might send, and a process that opens them all.

Run as `python -m tests.support.hostile data|models FOLDER OUT`, it opens each folder in FOLDER, with a gigabyte of
address space more than it began with, and writes what came of each to OUT.
"""

from __future__ import annotations

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
import torch
from safetensors.torch import load_file, save_file

from avpretrain.core.errors import UserError
from avpretrain.core.terminal import plain

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


NAN = torch.full((8, 3, 4, 4), torch.nan)
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
}
"""Files that might be given as another project's weights."""


def make(good: Path, variants: dict[str, tuple[Change, str]], folder: Path) -> None:
    """A copy of `good` for each variant, changed."""
    for name, (change, _) in variants.items():
        shutil.copytree(good, folder / name)
        change(folder / name)


# --- the process that opens them -------------------------------------------------------------------------------------


def open_data(root: Path) -> dict[str, Any]:
    """Every clip of a data set, decoded."""
    from avpretrain.config.model import InputConfig
    from avpretrain.data.read.clips import ClipSet
    from avpretrain.data.read.dataset import eval_loader

    clips = ClipSet((str(root),), "all")
    input = InputConfig(audio_frames=64, mels=32, video_frames=2, video_fps=2.0, video_size=32)
    reasons: list[str] = []
    with eval_loader(clips, input, range(len(clips)), batch_size=4) as loader:
        for raw in loader:
            reasons += raw.reasons
    labels = [clips.clip(i).labels for i in range(len(clips))]
    return {"clips": len(clips), "bad": reasons, "labels": len(labels)}


def open_model(root: Path) -> dict[str, Any]:
    from avpretrain.config.model import ModelConfig
    from avpretrain.methods.diffmavil.conversions.importers import import_checkpoint
    from avpretrain.methods.load import load_model

    if root.suffix in (".pth", ".safetensors"):
        import_checkpoint(root, "mae", ModelConfig(), "video")
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
