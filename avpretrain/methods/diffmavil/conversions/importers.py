"""Foreign ViTs into our encoders: patch embeddings and positions adapted, everything accounted for.

D width, C colours, L patches, P values a patch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from avpretrain.core.errors import UsageError, UserError
from avpretrain.methods.diffmavil.config import ModelConfig
from avpretrain.methods.diffmavil.conversions import foreign as files
from avpretrain.methods.diffmavil.conversions import huggingface_vits as folders
from avpretrain.methods.diffmavil.conversions.choices import Format, Into
from avpretrain.methods.diffmavil.conversions.foreign import ForeignModel, ForeignViT, Taker, read_weights
from avpretrain.methods.diffmavil.model import SIDES, DiffMAViL, Side
from avpretrain.nn.patches import Grid, positions, resize_positions

SAME = 1e-4
"""Positions that differ from our fixed ones by less count as them."""


@dataclass
class ImportReport:
    """What became of every tensor."""

    format: str
    loaded: dict[str, int] = field(default_factory=dict)
    """Part of our model -> parameters that came from the checkpoint."""
    missing: list[str] = field(default_factory=list)
    """Our parameters, within those parts, that the checkpoint lacks; they stay freshly initialised."""
    unused: list[str] = field(default_factory=list)
    """Tensors of the checkpoint that have no place here (decoders, heads)."""
    adapted: list[str] = field(default_factory=list)
    """What was changed on the way, in words."""
    warnings: list[str] = field(default_factory=list)
    """What the model can't do yet, in words."""


def import_checkpoint(
    path: Path, format: Format, base: ModelConfig, into: Into = "both", heads: int | None = None
) -> tuple[DiffMAViL, ImportReport]:
    """A model of `base` whose encoders hold a foreign checkpoint's weights; what it lacks is freshly initialised.

    Width, depth, patch size, class token and positions follow the checkpoint; input sizes and decoders follow `base`.

    Args:
        into: which encoder an image ViT goes to; layouts with two encoders fill both, or the one named.
        heads: attention heads, which weights do not tell; default: what the checkpoint's config says, or 64 values a
            head.

    Raises:
        UserError: the file is unreadable or not of that format.
        UsageError: the checkpoint can't become such a model.
    """
    taker = folders.open_folder(path) if format in folders.READERS else Taker(read_weights(path), str(path))
    try:
        return _imported(taker, format, base, into, heads)
    except UserError as error:
        message = str(error)
        raise type(error)(message if message.startswith(str(path)) else f"{path}: {message}") from None
    except (RuntimeError, IndexError, ZeroDivisionError) as error:  # arithmetic on tensors of unfitting shapes
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} is no checkpoint of format {format}: {reason}; is --format right?") from None


def _imported(
    taker: Taker, format: Format, base: ModelConfig, into: Into, heads: int | None
) -> tuple[DiffMAViL, ImportReport]:
    foreign = (files.READERS | folders.READERS)[format](taker)
    if None not in (heads, foreign.heads) and heads != foreign.heads:
        raise UsageError(f"the checkpoint's config says {foreign.heads} heads, --heads {heads}; leave --heads out")
    heads = heads or foreign.heads
    chosen = _chosen(foreign, into, format)
    cfg = _config(foreign, chosen, base, heads)
    report = ImportReport(format, unused=sorted(taker.unused), adapted=list(foreign.notes))
    model = DiffMAViL(cfg)
    for side, vit in chosen.items():
        weights = _encoder_weights(vit, side, cfg, report)
        _load(model, f"{side}_encoder", weights, report)
    report.warnings += [
        f"nothing of the checkpoint went into the {side} encoder, whose weights are random" for side in SIDES
        if side not in chosen
    ]  # fmt: skip
    report.warnings += foreign.warnings
    if "audio" in chosen and cfg.input.audio_std is None:
        report.warnings.append(
            f"a checkpoint of format {format} says nothing of log-mel statistics, so the model can't hear before it is "
            "trained; for use as it is, import with --audio-stats MEAN STD"
        )
    if foreign.fusion and set(chosen) == {"audio", "video"}:
        layers = {f"blocks.{i}.{key}": value for i, block in enumerate(foreign.fusion) for key, value in block.items()}
        _load(model, "fusion", layers, report)
    return model, report


def _chosen(foreign: ForeignModel, into: Into, format: str) -> dict[Side, ForeignViT]:
    """The encoder each of our sides gets."""
    chosen: dict[Side, ForeignViT] = {}
    for vit in foreign.vits:
        places: tuple[Side, ...] = ("audio",) if vit.kind == "audio" else ("video",)
        if vit.kind == "image" and len(foreign.vits) == 1:
            places = ("audio", "video")
        chosen.update({side: vit for side in places if into in ("both", side)})
    if not chosen:
        raise UsageError(f"a checkpoint of format {format} has no {into} encoder")
    return chosen


def _config(foreign: ForeignModel, chosen: dict[Side, ForeignViT], base: ModelConfig, heads: int | None) -> ModelConfig:
    """`base` with the checkpoint's sizes."""
    first = next(iter(chosen.values()))
    width = first.kernel.shape[0]
    if heads is None and width % 64:
        raise UsageError(f"width {width} is no multiple of 64, so the number of heads can't be guessed; give --heads")
    if len({vit.cls_11D is None for vit in chosen.values()}) == 2:
        raise UserError("one encoder of the checkpoint has a class token and the other has none")
    mlp = first.blocks[0]["mlp.fc1.weight"].shape[0]
    audio, video, source = base.audio, base.video, base.input
    if (vit := chosen.get("audio")) is not None:
        p, q = vit.kernel.shape[-2:]
        audio = dataclasses.replace(audio, patch=(p, q), depth=len(vit.blocks), positions="learned")
    if (vit := chosen.get("video")) is not None:
        u = vit.kernel.shape[2] if vit.kernel.ndim == 5 else base.video.patch[0]
        video = dataclasses.replace(
            video, patch=(u, *vit.kernel.shape[-2:]), depth=len(vit.blocks), positions="learned"
        )
    if foreign.mels is not None and "audio" in chosen:
        source = dataclasses.replace(source, mels=foreign.mels)
    if foreign.audio_stats is not None and "audio" in chosen:
        source = dataclasses.replace(source, audio_mean=foreign.audio_stats[0], audio_std=foreign.audio_stats[1])
    fusion = base.fusion
    if foreign.fusion and len(chosen) == 2:
        fusion = dataclasses.replace(fusion, kind="joint", depth=len(foreign.fusion), norm=foreign.norms)
    try:
        cfg = dataclasses.replace(
            base, input=source, width=width, heads=heads or width // 64, mlp_ratio=mlp / width,
            cls_token=first.cls_11D is not None, encoder_norm=foreign.norms, audio=audio, video=video, fusion=fusion,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"the checkpoint does not fit the config: {error}") from None
    return _with_fixed_positions(cfg, chosen)


def _with_fixed_positions(cfg: ModelConfig, chosen: dict[Side, ForeignViT]) -> ModelConfig:
    """Positions that are our sin-cos ones after all need no table."""
    for side, vit in chosen.items():
        grid = cfg.tower(side).grid
        table_LD = _positions(vit, side, grid)
        if (table_LD - positions(grid, cfg.width, grid)).abs().max() < SAME:
            cfg = dataclasses.replace(cfg, **{side: dataclasses.replace(getattr(cfg, side), positions="fixed")})
    return cfg


def _encoder_weights(vit: ForeignViT, side: Side, cfg: ModelConfig, report: ImportReport) -> dict[str, Tensor]:
    """One encoder's state by our names."""
    weights = {f"blocks.{i}.{key}": value for i, block in enumerate(vit.blocks) for key, value in block.items()}
    weights |= {f"norm.{key}": value for key, value in vit.norm.items()}
    weights["patch_embed.weight"] = _kernel(vit.kernel, side, cfg, report)
    weights["patch_embed.bias"] = vit.bias_D
    if vit.cls_11D is not None:
        weights["cls_token"] = vit.cls_11D
    tower = cfg.tower(side)
    grid = tower.grid
    if tower.learned_positions:
        weights["position_table"] = _positions(vit, side, grid)[None]
        count = len(vit.position_LD)
        report.adapted.append(f"{side} positions: a learned table of {grid}, from {count} positions of the checkpoint")
    return weights


def _kernel(kernel: Tensor, side: Side, cfg: ModelConfig, report: ImportReport) -> Tensor:
    """[D, P]: a convolution's kernel as a linear layer over our patches."""
    if side == "audio":
        if kernel.shape[1] != 1:
            report.adapted.append(f"audio patches: {kernel.shape[1]} colours summed to one channel")
        return rearrange(kernel.sum(dim=1), "d p q -> d (p q)")
    if kernel.ndim == 4:
        u = cfg.video.patch[0]
        report.adapted.append(f"video patches: image kernel inflated to {u} frames, each 1/{u} of it")
        kernel = repeat(kernel / u, "d c p q -> d c u p q", u=u)
    if kernel.shape[1] != 3:
        raise UserError(f"the checkpoint's video patches have {kernel.shape[1]} colours, not 3")
    return rearrange(kernel, "d c u p q -> d (u p q c)")


def _positions(vit: ForeignViT, side: Side, grid: Grid) -> Tensor:
    """[L, D] over our grid: interpolated over space, and repeated over time where the checkpoint knows only images."""
    count = len(vit.position_LD)
    if vit.kind == "image":
        edge = round(count**0.5)
        if edge * edge != count:
            raise UserError(f"{count} positions of an image are no square")
        if vit.resize == "bicubic":
            table_1DHW = vit.position_LD.T.reshape(1, -1, edge, edge)
            resized = F.interpolate(table_1DHW, size=grid[-2:], mode="bicubic", align_corners=False)
            image_LD = vit.position_LD if grid[-2:] == (edge, edge) else resized.flatten(2)[0].T
        else:
            image_LD = resize_positions(vit.position_LD, (1, edge, edge), (1, *grid[-2:]))
        return image_LD if side == "audio" else image_LD.repeat(grid[0], 1)
    trained = vit.grid or _trained_grid(count, grid)
    return resize_positions(vit.position_LD, trained, grid)


def _trained_grid(count: int, grid: Grid) -> Grid:
    """The grid a checkpoint's positions belong to: ours but for time, or for video else a square at as many times.

    Raises:
        UserError: the number of positions fits neither.
    """
    space = torch.Size(grid[1:]).numel()
    if count % space == 0:
        return count // space, *grid[1:]
    if len(grid) == 3 and count % grid[0] == 0 and round((count // grid[0]) ** 0.5) ** 2 == count // grid[0]:
        edge = round((count // grid[0]) ** 0.5)
        return grid[0], edge, edge
    raise UserError(f"the checkpoint's {count} positions do not fit a grid like {grid}; change model.input")


def _load(model: DiffMAViL, part: str, weights: dict[str, Tensor], report: ImportReport) -> None:
    """Copies weights into a part of the model, exactly.

    Raises:
        UserError: a shape differs.
    """
    module = model.parts()[part]
    own = module.state_dict()
    for key, value in weights.items():
        if key not in own or own[key].shape != value.shape:
            ours = tuple(own[key].shape) if key in own else "absent"
            raise UserError(f"{part}.{key}: the checkpoint has shape {tuple(value.shape)}, the model {ours}")
    module.load_state_dict(weights, strict=False)
    report.loaded[part] = sum(value.numel() for value in weights.values())
    report.missing += [f"{part}.{key}" for key in own if key not in weights]
