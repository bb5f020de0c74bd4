"""Other projects' ViT checkpoints, read safely and brought to one shape: patches, positions, blocks, norm.

Layouts: MAE and timm (an image ViT), AudioMAE and Dasheng (over spectrograms), CAV-MAE and MAViL (two ViTs and shared
blocks); those of `transformers` are in `huggingface_vits.py`. D width, C colours, L patches, N layers; kernels are
[D, C, p, q] or [D, C, u, p, q].
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from avpretrain.core.errors import UserError
from avpretrain.core.files import NotAFileError, check_zip, mistaken_for, open_file, read_head
from avpretrain.core.terminal import LONGEST, brief
from avpretrain.methods.diffmavil.conversions.pickles import check_pickles
from avpretrain.nn.weights import check_finite, read_header

MAX_WRAPPERS = 8
"""Most mappings around a checkpoint's weights."""
MAX_TENSORS = 6000

AUDIOSET_STATS = (-4.2677393, 4.5689974)
"""Mean and standard deviation of AudioMAE's and MAViL's log-mel; they divide by twice the latter, as we do."""
CAV_MAE_STATS = (-5.081, 4.4849 / 2)
"""CAV-MAE divides by the standard deviation itself."""
DECIBELS = (0.0, math.log(10) / 20)
"""By which a natural logarithm of energy, divided by twice the second, is in decibels."""
DASHENG_HEADS = {768: 12, 1280: 16, 1536: 24}
"""Heads by width, of the released models."""
BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True)
class ForeignViT:
    """One encoder of a foreign checkpoint."""

    kind: Literal["image", "audio", "video"]
    kernel: Tensor
    """Of the patch embedding, in the order of our axes: audio (time, frequency)."""
    bias_D: Tensor
    cls_11D: Tensor | None
    """Its own position added."""
    position_LD: Tensor
    """Row-major over (rows, columns), (time, frequency) or (time, rows, columns)."""
    blocks: list[dict[str, Tensor]]
    """A layer each, keys as in `Block`."""
    norm: dict[str, Tensor]
    """The final norm; empty where the layout has none."""
    grid: tuple[int, ...] | None = None
    """Of the positions, where the layout says it."""
    resize: Literal["linear", "bicubic"] = "linear"
    """How an image's positions are brought to another size."""


@dataclass(frozen=True)
class ForeignModel:
    """What a checkpoint holds for us."""

    vits: list[ForeignViT]
    fusion: list[dict[str, Tensor]] = field(default_factory=list)
    """Blocks over both modalities."""
    norms: bool = True
    """Whether encoders and fusion end in a norm; without, ours have none either."""
    heads: int | None = None
    """Attention heads, where the layout says how many."""
    audio_stats: tuple[float, float] | None = None
    """Mean and standard deviation for `InputConfig`, where the layout implies them."""
    mels: int | None = None
    """Mel bins of the spectrograms, where the layout fixes them."""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a torch checkpoint, without wrappers such as `model.` and `module.`.

    Raises:
        UserError: there is no such file, it is damaged, or it holds code (pickles are read with `weights_only=True`).
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file of the weights in it (.pth, .bin or .safetensors)")
    if path.is_file() and (mistake := mistaken_for(read_head(path))):
        raise UserError(f"{path} {mistake}")
    try:
        with open_file(path) as file:
            size = file.seek(0, 2)
        if path.suffix == ".safetensors":
            read_header(path)
            return _unwrapped(load_file(path), size)
        check_zip(path, size)  # torch stores its archives' members as they are, so more is a bomb
        check_pickles(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # MAE keeps its arguments so; plain data
            return _unwrapped(torch.load(path, map_location="cpu", weights_only=True), size)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}; name a .pth, .bin or .safetensors file") from None
    except NotAFileError as error:
        raise UserError(f"{path} {error.strerror}; name a checkpoint file") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named.group(1)})" if named else ""
        raise UserError(
            f"{path} is a pickle that holds more than weights{what}, which could run code; it was not opened. "
            "Save its state_dict alone, best as .safetensors"
        ) from None
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OSError,
        MemoryError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip - torch's reader raises any of them on damage
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"{path} is not a readable checkpoint: {reason}; name a file of weights (.pth, .bin or .safetensors)"
        ) from None


def _unwrapped(saved: Any, size: int) -> dict[str, Tensor]:
    """The named tensors inside at most `MAX_WRAPPERS` mappings.

    Args:
        size: bytes of the file; tensors that claim more are none (a stride of 0 makes a value a matrix of any size).

    Raises:
        ValueError: there are none, too many, or too large ones.
    """
    for _ in range(MAX_WRAPPERS + 1):
        if not isinstance(saved, Mapping):
            break
        inner = next(
            (saved[key] for key in ("model", "state_dict", "module") if isinstance(saved.get(key), Mapping)), None
        )
        if inner is None:
            break
        saved = inner
    else:
        raise ValueError(f"its weights lie deeper than {MAX_WRAPPERS} wrappers, or nowhere")
    if not isinstance(saved, Mapping):
        raise ValueError(f"it holds {type(saved).__name__}, not named tensors")
    tensors = {str(key): value for key, value in saved.items() if isinstance(value, Tensor)}
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"it holds {len(tensors)} tensors, more than {MAX_TENSORS}")
    for key, value in tensors.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_complex() or value.is_quantized:
            raise ValueError(f"'{key[:80]}' is no plain tensor")
        if value.numel() * value.element_size() > max(size, 1024):
            raise ValueError(f"'{key[:80]}' claims {value.numel()} values, more than the file holds")
    if sum(value.numel() * value.element_size() for value in tensors.values()) > 4 * max(size, 1024):
        raise ValueError("its tensors claim more values than it holds")
    for prefix in ("module.", "_orig_mod.", "encoder."):
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {key: value.float() for key, value in tensors.items()}


class Taker:
    """Hands out tensors by name and remembers which were never asked for.

    Args:
        source: where the weights come from, for messages.
        config: what lies beside the weights and describes them; empty where the format has no such thing.
    """

    def __init__(self, weights: Mapping[str, Tensor], source: str, config: Mapping[str, Any] | None = None) -> None:
        self.weights, self.source, self.config = dict(weights), source, dict(config or {})
        self.unused, self.folded = set(weights), False

    def __contains__(self, key: str) -> bool:
        return key in self.weights

    def cut_prefix(self, prefix: str) -> None:
        """Cuts a prefix off the names that bear it; the others stay."""
        inner = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        self.weights = {key: value for key, value in self.weights.items() if not key.startswith(prefix)} | inner
        self.unused = set(self.weights)

    def take(self, key: str) -> Tensor:
        """The tensor of that name.

        Raises:
            UserError: there is none.
        """
        if key not in self.weights:
            has = ", ".join(key[:LONGEST] for key in sorted(self.weights)[:4])
            raise UserError(f"{self.source} has no '{key}'; is --format right? It begins with {has}")
        self.unused.discard(key)
        check_finite({key: self.weights[key]}, Path(self.source))
        return self.weights[key]

    def take_all(self, prefix: str) -> dict[str, Tensor]:
        """All tensors below a prefix, which is cut off; may be none."""
        tensors = {key.removeprefix(prefix): self.take(key) for key in self.weights if key.startswith(prefix)}
        return dict(sorted(tensors.items()))

    def blocks(self, name: str) -> list[dict[str, Tensor]]:
        """Layers `name.0.`, `name.1.`, ...

        Raises:
            UserError: a layer has parts that our blocks lack (norms of queries), or lacks one of ours.
        """
        numbers = {int(m.group(1)) for k in self.weights if (m := re.match(rf"{name}\.(\d{{1,9}})\.", k))}
        count = 1 + max(numbers, default=-1)
        if count > len(numbers):
            raise UserError(f"{self.source} has {len(numbers)} layers '{name}.N', but their numbers reach {count - 1}")
        return [self._block(f"{name}.{i}.") for i in range(count)]

    def _block(self, prefix: str) -> dict[str, Tensor]:
        keys = {k.removeprefix(prefix) for k in self.weights if k.startswith(prefix)}
        scaled = {"ls1.gamma", "ls2.gamma"} <= keys
        known = {*BLOCK_KEYS, *(("ls1.gamma", "ls2.gamma") if scaled else ())}
        if alien := sorted(k for k in keys if k not in known and not re.match(r"norm[12]_[av]\.", k)):
            raise UserError(
                f"{self.source} is not a plain ViT: our blocks have no place for {brief(prefix + alien[0])}"
            )
        block = {key: self.take(prefix + key) for key in BLOCK_KEYS}
        if scaled:
            self.folded = True
            return fold_layer_scale(block, self.take(f"{prefix}ls1.gamma"), self.take(f"{prefix}ls2.gamma"))
        return block


FOLDED = "LayerScale multiplied into the layers before it, which gives the same outputs"


def fold_layer_scale(block: dict[str, Tensor], attention_D: Tensor, mlp_D: Tensor) -> dict[str, Tensor]:
    """A block whose two branches end in a factor for each channel, as one without: g (W x + b) = (g W) x + g b.

    Raises:
        UserError: the factors do not fit the block.
    """
    width = block["attn.proj.weight"].shape[:1]
    matrices = all(block[f"{layer}.weight"].ndim == 2 for layer in ("attn.proj", "mlp.fc2"))
    if attention_D.shape != width or mlp_D.shape != width or not matrices:
        raise UserError(f"LayerScale has {list(attention_D.shape)} and {list(mlp_D.shape)} factors, not {list(width)}")
    folded = dict(block)
    for layer, gamma_D in (("attn.proj", attention_D), ("mlp.fc2", mlp_D)):
        folded[f"{layer}.weight"] = block[f"{layer}.weight"] * gamma_D[:, None]
        folded[f"{layer}.bias"] = block[f"{layer}.bias"] * gamma_D
    return folded


BLOCK_KEYS = tuple(
    f"{part}.{kind}"
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
)


def _vit(
    taker: Taker, kind: Literal["image", "audio", "video"], suffix: str, blocks: list[dict[str, Tensor]], norm: str
) -> ForeignViT:
    """The encoder whose names end in `suffix`."""
    position_1LD = taker.take(f"pos_embed{suffix}")
    cls_11D = taker.take(f"cls_token{suffix}") if f"cls_token{suffix}" in taker else None
    kernel = taker.take(f"patch_embed{suffix}.proj.weight")
    check_shapes(taker, kernel, position_1LD, cls_11D, blocks)
    if cls_11D is not None and _has_class_position(kind, position_1LD.shape[1]):
        cls_11D, position_1LD = cls_11D + position_1LD[:, :1], position_1LD[:, 1:]
    bias_D = taker.take(f"patch_embed{suffix}.proj.bias")
    return ForeignViT(kind, kernel, bias_D, cls_11D, position_1LD[0], blocks, taker.take_all(f"{norm}."))


def check_shapes(
    taker: Taker, kernel: Tensor, position_1LD: Tensor, cls_11D: Tensor | None, blocks: list[dict[str, Tensor]]
) -> None:
    """Raises a UserError unless a ViT's tensors have the dimensions that their names promise."""
    width = kernel.shape[0] if kernel.ndim in (4, 5) else 0
    fits = (
        width > 0
        and position_1LD.ndim == 3
        and position_1LD.shape[0] == 1
        and position_1LD.shape[1] > 1
        and position_1LD.shape[2] == width
        and (cls_11D is None or cls_11D.shape == (1, 1, width))
        and all(size > 0 for size in kernel.shape)
        and len(blocks) > 0
        and all(block["mlp.fc1.weight"].ndim == 2 for block in blocks)
    )
    if not fits:
        raise UserError(
            f"{taker.source} is no such ViT: patch_embed {list(kernel.shape)}, pos_embed {list(position_1LD.shape)}, "
            f"{len(blocks)} layers; is --format right?"
        )


def _has_class_position(kind: str, length: int) -> bool:
    """Whether the first of so many positions is the class token's: images are square, other grids have even sides."""
    return round((length - 1) ** 0.5) ** 2 == length - 1 if kind == "image" else length % 2 == 1


def _mae(taker: Taker) -> ForeignModel:
    vit = _vit(taker, "image", "", taker.blocks("blocks"), "norm")
    return ForeignModel([vit], notes=[FOLDED] if taker.folded else [])


def _timm(taker: Taker) -> ForeignModel:
    for prefix, what in (("reg_token", "register tokens"), ("norm_pre.", "a norm before its blocks")):
        if any(key.startswith(prefix) for key in taker.weights):
            raise UserError(f"{taker.source} has {what}, for which our encoders have no place; take a model without")
    model = _mae(taker)
    notes = [
        "frames are normalised by ImageNet's mean and std; some timm weights expect 0.5 and 0.5 (their pretrained_cfg)",
        *([FOLDED] if taker.folded else []),
    ]
    return dataclasses.replace(model, notes=notes)


def _audiomae(taker: Taker) -> ForeignModel:
    vit = _vit(taker, "audio", "", taker.blocks("blocks"), "norm")
    return ForeignModel([vit], audio_stats=AUDIOSET_STATS)


def _dasheng(taker: Taker) -> ForeignModel:
    """Dasheng's patches span 4 frames and all mel bins; its batch norm of these joins the patch embedding."""
    blocks = taker.blocks("blocks")
    kernel, bias_D = taker.take("patch_embed.proj.weight"), taker.take("patch_embed.proj.bias")  # [D, 1, mel, time]
    time_1D1T, freq_1DF1 = taker.take("time_pos_embed"), taker.take("freq_pos_embed")
    norm = {name: taker.take(f"init_bn.1.{name}") for name in ("weight", "bias", "running_mean", "running_var")}
    mels = norm["weight"].numel()
    fits = freq_1DF1.ndim == time_1D1T.ndim == kernel.ndim == 4 and freq_1DF1.shape[2] == kernel.shape[1] == 1
    if not fits or kernel.shape[2] != mels or any(value.shape != (mels,) for value in norm.values()):
        raise UserError(f"{taker.source}: its patches {list(kernel.shape)} do not span its {mels} mel bins and no more")
    position_1LD = (time_1D1T + freq_1DF1).permute(0, 3, 2, 1).flatten(1, 2)
    cls_11D = taker.take("cls_token") + taker.take("token_pos_embed") if "cls_token" in taker else None
    check_shapes(taker, kernel, position_1LD, cls_11D, blocks)
    scale_M = norm["weight"] / (norm["running_var"] + BATCH_NORM_EPS).sqrt()
    shift_M = norm["bias"] - norm["running_mean"] * scale_M
    bias_D = bias_D + (kernel * shift_M[:, None]).sum(dim=(1, 2, 3))
    kernel = (kernel * scale_M[:, None]).transpose(2, 3)
    for name in [n for n in taker.weights if n.startswith("front_end.") or n.endswith("num_batches_tracked")]:
        taker.unused.discard(name)
    vit = ForeignViT("audio", kernel, bias_D, cls_11D, position_1LD[0], blocks, taker.take_all("norm."),
                     grid=(time_1D1T.shape[3], 1))  # fmt: skip
    return ForeignModel(
        [vit], heads=DASHENG_HEADS.get(kernel.shape[0]), audio_stats=DECIBELS, mels=mels,
        notes=["batch norm of mel bins multiplied into the patch embedding", *([FOLDED] if taker.folded else [])],
        warnings=[
            "the encoder is Dasheng's, what it hears is not: our log-mel has windows of 25 ms (32 there), Kaldi's mel "
            "filters and no floor below the maximum; measure it, or fine-tune, before you rely on its features"
        ],
    )  # fmt: skip


def _mavil(taker: Taker) -> ForeignModel:
    """MAViL's released model deletes its final norms: raw encoder outputs go to `blocks_av`."""
    audio = _vit(taker, "audio", "", taker.blocks("blocks"), "norm")
    video = _vit(taker, "video", "_v", taker.blocks("blocks_v"), "norm_v")
    norms = bool(audio.norm and video.norm)
    return ForeignModel([audio, video], taker.blocks("blocks_av"), norms=norms, audio_stats=AUDIOSET_STATS)


def _cav_mae(taker: Taker) -> ForeignModel:
    """Each encoder is its own blocks, then the shared ones under its own norms: what CAV-MAE contrasts by.

    Spectrograms enter CAV-MAE as (frequency, time), which is turned here; its modality embedding joins the bias.
    """
    audio = _cav_mae_side(taker, "a", "audio")
    kernel = audio.kernel.transpose(2, 3)  # [D, 1, time, frequency]
    rows = 128 // audio.kernel.shape[2]
    position_LD = audio.position_LD.unflatten(0, (rows, -1)).transpose(0, 1).flatten(0, 1)
    turned = ForeignViT("audio", kernel, audio.bias_D, None, position_LD, audio.blocks, audio.norm)
    notes = ["its norms were trained with epsilon 1e-5; here it is 1e-6"]
    return ForeignModel([turned, _cav_mae_side(taker, "v", "image")], audio_stats=CAV_MAE_STATS, notes=notes)


def _cav_mae_side(taker: Taker, side: str, kind: Literal["audio", "image"]) -> ForeignViT:
    blocks = taker.blocks(f"blocks_{side}")
    for i, shared in enumerate(taker.blocks("blocks_u")):
        own = {
            f"norm{n}.{k}": taker.take(f"blocks_u.{i}.norm{n}_{side}.{k}") for n in (1, 2) for k in ("weight", "bias")
        }
        blocks.append({**shared, **own})
    kernel = taker.take(f"patch_embed_{side}.proj.weight")
    check_shapes(taker, kernel, taker.take(f"pos_embed_{side}"), None, blocks)
    bias_D = taker.take(f"patch_embed_{side}.proj.bias") + taker.take(f"modality_{side}").flatten()[: len(kernel)]
    position_LD = taker.take(f"pos_embed_{side}")[0]
    norm = taker.take_all(f"norm_{side}.")
    return ForeignViT(kind, kernel, bias_D, None, position_LD, blocks, norm)


READERS: dict[str, Callable[[Taker], ForeignModel]] = {
    "mae": _mae,
    "timm": _timm,
    "audiomae": _audiomae,
    "cav-mae": _cav_mae,
    "mavil": _mavil,
    "dasheng": _dasheng,
}
"""Format to the function that takes a checkpoint of it apart; see also `huggingface_vits.READERS`."""
