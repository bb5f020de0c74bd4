"""Vectors along time for sound and video of any length, and the table `avpretrain embed` writes.

B clips, S waveform samples (in `waveform_BS`) or steps (elsewhere), F spectrogram frames, M mel bins, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avpretrain.core.files import atomic_path
from avpretrain.data.choices import Limits
from avpretrain.data.container import DecodeError
from avpretrain.data.media import Source
from avpretrain.data.whole import clip_steps, filled, normalised_frames, sampled_frames, spectrogram
from avpretrain.evaluation.frozen import encode_steps, windows
from avpretrain.evaluation.settings import Modality, Per, Side
from avpretrain.methods.diffmavil.model import DiffMAViL

WINDOWS_AT_ONCE = 16


@torch.no_grad()
def step_vectors(model: DiffMAViL, side: Side, x: Tensor, steps: int) -> Tensor:
    """[B, S, D]: the mean over places at each step, encoded in windows of trained length, many at a time.

    Args:
        x: [B, F, M] or [B, T, C, H, W], at least `steps` patches long.
    """
    encoder = model.tower(side).encoder
    patch = encoder.patches.size[0]
    out_BSD = x.new_zeros(len(x), steps, model.cfg.width)
    jobs = [(b, start, stop) for b in range(len(x)) for start, stop in windows(steps, encoder.grid[0])]
    for size in sorted({stop - start for _, start, stop in jobs}):
        same = [job for job in jobs if job[2] - job[1] == size]
        for i in range(0, len(same), WINDOWS_AT_ONCE):
            chunk = same[i : i + WINDOWS_AT_ONCE]
            part = torch.stack([x[b, start * patch : stop * patch] for b, start, stop in chunk])
            tokens, _ = encode_steps(model, side, part, size)
            for (b, start, stop), vectors_SD in zip(chunk, tokens[:, 0].mean(dim=2), strict=True):
                out_BSD[b, start:stop] = vectors_SD
    return out_BSD


@dataclass(frozen=True)
class Row:
    """One embedding."""

    path: str
    modality: Side
    start: float
    """Seconds into the file."""
    end: float
    embedding_D: NDArray[np.float32]


def embed_file(
    model: DiffMAViL, path: Path, modality: Modality, per: Per, dropped: dict[str, float] | None = None
) -> list[Row]:
    """Embeddings of a file's sound, picture or both: one, one a window of trained length, or one a step in time.

    Args:
        dropped: takes up what was left out or filled in: amounts by description, in the unit with which it begins.

    Raises:
        DecodeError: it can't be read, or has nothing of the modality asked for.
    """
    try:
        return _embed_file(model, path, modality, per, dropped)
    except Exception as error:
        error.add_note(f"while embedding {path}")
        raise


def _embed_file(
    model: DiffMAViL, path: Path, modality: Modality, per: Per, dropped: dict[str, float] | None
) -> list[Row]:
    if not path.is_file():
        raise DecodeError("is no regular file" if path.exists() else "no such file")
    source = Source(path, None, Limits(max_hours=24.0))
    rows: list[Row] = []
    if modality != "video" and source.has_audio:
        rows += _sound_rows(model, source, per)
    if modality != "audio" and source.has_video:
        rows += _picture_rows(model, source, per)
    if not rows:
        raise DecodeError(_lacking(source, modality))
    source.tell(dropped)
    return rows


def _lacking(source: Source, modality: Modality) -> str:
    """Why a file gave no vector."""
    if modality != "video" and source.has_audio:
        return "has an audio stream without samples"
    if modality != "audio" and source.has_video:
        return "has a video stream without frames"
    return {"audio": "has no sound", "video": "has no picture", "both": "has neither sound nor picture"}[modality]


def _sound_rows(model: DiffMAViL, source: Source, per: Per) -> list[Row]:
    input, device = model.cfg.input, next(model.parameters()).device
    pcm_S = source.sound(input.sample_rate)
    if pcm_S is None:
        return []
    x_1FM = spectrogram(torch.from_numpy(pcm_S.astype(np.float32) / 32768)[None].to(device), input)
    patch = model.cfg.audio.patch[0]
    steps = clip_steps(x_1FM.shape[1], patch)
    vectors_SD = step_vectors(model, "audio", filled(x_1FM, steps * patch), steps)[0]
    spans = windows(steps, model.audio_encoder.grid[0])
    return _rows(source.path, "audio", vectors_SD, spans, patch * 0.01, len(pcm_S) / input.sample_rate, per)


def _picture_rows(model: DiffMAViL, source: Source, per: Per) -> list[Row]:
    """Frames at the centres of equal intervals, as in training; read once, held a batch of windows at a time."""
    fps, patch, longest = model.cfg.input.video_fps, model.cfg.video.patch[0], model.video_encoder.grid[0]
    block = longest * patch * WINDOWS_AT_ONCE
    vectors: list[Tensor] = []
    frames: list[NDArray[np.uint8]] = []
    end = 0.0
    for until, frame_HWC in sampled_frames(source, fps, model.cfg.input.video_size):
        end = until
        frames.append(frame_HWC)
        if len(frames) == block:
            vectors.append(_picture_vectors(model, frames))
            frames = []
    if frames:
        vectors.append(_picture_vectors(model, frames))
    if not vectors:
        return []
    vectors_SD = torch.cat(vectors)
    spans = windows(len(vectors_SD), longest)
    return _rows(source.path, "video", vectors_SD, spans, patch / fps, end, per)


def _picture_vectors(model: DiffMAViL, frames: list[NDArray[np.uint8]]) -> Tensor:
    """[S, D] of consecutive frames; a last tubelet, filled with its last frame, counts when half of it is there."""
    device, patch = next(model.parameters()).device, model.tower("video").patches.size[0]
    steps = clip_steps(len(frames), patch)
    x_1TCHW = normalised_frames(frames, steps * patch, model.cfg.input, device)
    return step_vectors(model, "video", x_1TCHW, steps)[0]


def _rows(
    path: Path, side: Side, vectors_SD: Tensor, spans: list[tuple[int, int]], seconds: float, end: float, per: Per
) -> list[Row]:
    steps = len(vectors_SD)
    chosen = {"file": [(0, steps)], "window": spans, "step": [(i, i + 1) for i in range(steps)]}[per]
    values_SD = vectors_SD.float().cpu()
    return [
        Row(str(path), side, a * seconds, end if b == steps else b * seconds, values_SD[a:b].mean(dim=0).numpy())
        for a, b in chosen
    ]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes the table as .npz (arrays path, modality, start, end, embedding) or .parquet (the same columns).

    Raises:
        UserError: the name ends in neither.
    """
    embedding_RD = np.stack([row.embedding_D for row in rows])
    columns: dict[str, Any] = {
        "path": np.array([row.path for row in rows]),
        "modality": np.array([row.modality for row in rows]),
        "start": np.array([row.start for row in rows], dtype=np.float32),
        "end": np.array([row.end for row in rows], dtype=np.float32),
    }
    with atomic_path(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez_compressed(file, embedding=embedding_RD, **columns)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            flat = pa.array(embedding_RD.ravel())
            table = pa.table({**columns, "embedding": pa.FixedSizeListArray.from_arrays(flat, embedding_RD.shape[1])})
            pq.write_table(table, str(temporary))
