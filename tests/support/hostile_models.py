"""Variants of a model's folder, and of other projects' weights, that a stranger might send, and what must be said."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.support.hostile import Change, instead, text


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
