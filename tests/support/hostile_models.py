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

from avpretrain.methods.diffmavil.config import ModelConfig
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.nn.weights import read_model_config
from tests.support.hostile import Change, instead, sparse, text


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
    cfg = read_model_config(root / "config.json", ModelConfig)
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
    "config large": (text("config.json", b" " * (2 << 20)), "larger than"),
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
    "weights sparse": (instead("model.safetensors", sparse), "model.safetensors"),
    "weights sparse that fit": (lambda root: _sparse_weights(root), "memory"),
    "weights of the kernel": (instead("model.safetensors", lambda p: p.symlink_to("/proc/self/mem")), "kernel"),
    "weights a folder": (instead("model.safetensors", Path.mkdir), "no weights"),
    "tensor of a long name": (
        weights(lambda s: s.update({"\x1b[2J" + "n" * 5_000_000: torch.zeros(1)})), "has no place for",
    ),
    "all as deep as may be": (_sections(audio=128, video=128, fusion=128), "too few for"),
    "deep with as many tensors": (
        lambda root: (_sections(audio=128, video=128)(root), _many_tensors(root)), "does not fit",
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
    "key long": (config("config", "k" * 900_000, value=1), "unknown config key"),
    "text long": (config("config", "width", value="w" * 900_000), "takes int"),
    "word long": (config("config", "objective", value="w" * 900_000), "objective"),
    "word a list": (config("config", "objective", value=[[0]] * 200_000), "objective"),
    "method long": (config("method", value="m" * 900_000), "mmm"),
    "levels without end": (config("config", "audio", "decoder", "levels", value=[0] * 300_000), "at most"),
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
        archive.open("archive/data.pkl", "w") as member,
    ):
        for _ in range(8):
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
    "many tensors.pth": lambda path: torch.save({f"t{i}": torch.zeros(0) for i in range(6001)}, path),
    "folder.pth": Path.mkdir,
    "claims.safetensors": lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    "sparse.safetensors": sparse,
    "sparse.pth": sparse,
    **{f"{name}.pth": _changed(edit) for name, edit in {
        "mae layers with a gap": lambda s: s.update({"blocks.999999999.norm1.weight": torch.zeros(64)}),
        "mae stretched": lambda s: s.update(pos_embed=torch.zeros(1, 1, 1).expand(1, 1 << 40, 64)),
        "mae sparse layout": lambda s: s.update(pos_embed=torch.zeros(1, 17, 64).to_sparse()),
        "mae without memory": lambda s: s.update(pos_embed=torch.zeros(1, 17, 64, device="meta")),
        "mae complex": lambda s: s.update(pos_embed=torch.zeros(1, 17, 64, dtype=torch.complex64)),
        "mae no kernel": lambda s: s.update({"patch_embed.proj.weight": torch.zeros(64, 3, 0, 0)}),
        "mae kernel flat": lambda s: s.update({"patch_embed.proj.weight": torch.zeros(64)}),
        "mae positions of another width": lambda s: s.update(pos_embed=torch.zeros(1, 17, 60)),
        "mae positions no square": lambda s: s.update(pos_embed=torch.zeros(1, 19, 64)),
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
REASONS = {
    "code.pth": "could run code", "old code.pth": "could run code", "bomb.pth": "members claim",
    "folded tuples.pth": "unfolds to more", "folded tuples old.pth": "unfolds to more",
    "many tensors.pth": "6001 tensors", "wrapped deep.pth": "deeper than", "claims.safetensors": "header claims",
    "mae stretched.pth": "more than the file holds", "mae sparse layout.pth": "no plain tensor",
    "mae weight infinite.pth": "not finite", "mae positions no square.pth": "no square",
}  # fmt: skip
"""What must be said of some of them; of all, their name."""
