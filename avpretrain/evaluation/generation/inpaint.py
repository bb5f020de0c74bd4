"""`avpretrain inpaint`, as a function: clips in, pictures, sounds and error figures out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path, write_json
from avpretrain.data.batch import AVBatch
from avpretrain.data.features import Features, frame_counts
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.read.dataset import eval_loader
from avpretrain.evaluation.generation.figures import draw_spectrograms, draw_strips
from avpretrain.evaluation.generation.filling import METHODS, Filled, inpaint, present
from avpretrain.evaluation.generation.vocoder import to_waveform
from avpretrain.evaluation.results import origin
from avpretrain.evaluation.settings import InpaintConfig, InpaintRun
from avpretrain.measures.intervals import Floats, estimate
from avpretrain.measures.results import Estimate
from avpretrain.measures.studies import Inpainting
from avpretrain.methods.diffmavil.model import SIDES, Side
from avpretrain.methods.load import load_model

ERRORS = "errors.json"


def run_inpaint(checkpoint: Path, shards: Sequence[str], out: Path, how: InpaintConfig, run: InpaintRun) -> Inpainting:
    """Writes `KEY-audio.png`, `KEY-video.png`, `KEY-original.wav`, `KEY-filled.wav`, `errors.json`; returns the last.

    Both wavs are rebuilt from log-mel spectrograms, so that what differs between them is the filling alone.

    Raises:
        UserError: there are no weights or no clips.
        UsageError: the model can't be used this way.
    """
    model = load_model(checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    clips = ClipSet(tuple(shards), run.split)
    count = min(run.clips, len(clips))
    rows = [round(i * len(clips) / count) for i in range(count)]
    features = Features(model.cfg.input).to(device)
    parts: list[dict[str, dict[str, Tensor]]] = []
    written: list[str] = []
    with eval_loader(clips, model.cfg.input, rows, run.batch_size, run.num_workers) as loader:
        for raw in loader:
            batch = features(raw.to(device))
            filled = inpaint(model, batch, how)
            frames_B = frame_counts(raw.samples_B, model.cfg.input.sample_rate)
            there = present(batch)
            parts.append({side: {n: e[there[side]].cpu() for n, e in filled.errors[side].items()} for side in SIDES})
            for i in range(min(len(batch), run.shown - len(written))):
                key = clips.clip(int(raw.index_B[i])).key
                _write_files(batch, filled, i, out / key, model.cfg.input, how, int(frames_B[i]))
                written.append(key)
    result = Inpainting(
        clips=count,
        split=run.split,
        settings={**dataclasses.asdict(how), **({} if model.cfg.loss.norm_pix_loss else {"statistics": None})},
        shown=tuple(written),
        mse=_summary(parts, run.seed),
        **origin(checkpoint, model, clips, tuple(shards), run.seed),
    )
    write_json(out / ERRORS, result.to_json())
    return result


def _summary(parts: Sequence[dict[str, dict[str, Tensor]]], seed: int) -> dict[str, dict[str, Estimate]]:
    """Side -> method -> mean squared error over clips, with its interval; methods a side does not have are left out."""
    summary: dict[str, dict[str, Estimate]] = {side: {} for side in SIDES}
    for side in SIDES:
        for method in METHODS:
            errors = [part[side][method] for part in parts if method in part[side]]
            if errors and sum(map(len, errors)):
                error_N = torch.cat(errors).double().numpy()
                summary[side][method] = estimate(_mean_of(error_N), len(error_N), seed)
    if not any(summary.values()):
        raise UserError("none of the clips could be decoded; check them with: avpretrain inspect --verify")
    return summary


def _mean_of(error_N: Floats) -> Any:
    return lambda weight_RN: weight_RN @ error_N / weight_RN.sum(axis=1)


def _write_files(
    batch: AVBatch, filled: Filled, i: int, stem: Path, input: Any, how: InpaintConfig, frames: int
) -> None:
    """Pictures and sounds of one clip of a batch, whose audio has so many frames before padding begins."""
    there = present(batch)
    wholes: dict[Side, Tensor] = {"audio": batch.audio_BFM, "video": batch.video_BTCHW}
    for side, whole in wholes.items():
        if not there[side][i]:
            continue
        original, hidden = whole[i], filled.masks[side][i] > 0
        made = {name: picture[i] for name, picture in filled.pictures[side].items() if name in ("one_step", "sampled")}
        rows = {"original": original, "visible": original.masked_fill(hidden, torch.nan)}
        rows |= {name.replace("_", " "): picture for name, picture in made.items()}
        ratio = how.audio_ratio if side == "audio" else how.video_ratio
        title = f"{stem.name}: {ratio:.0%} of the patches hidden"
        path = stem.with_name(f"{stem.name}-{side}.png")
        if side == "video":
            draw_strips(rows, path, title)
        else:
            draw_spectrograms(rows, path, title, input.sample_rate, frames)
            last = made.get("sampled", made["one_step"])
            for name, audio_FM in (("original", original), ("filled", last)):
                _write_wav(stem.with_name(f"{stem.name}-{name}.wav"), to_waveform(audio_FM, input), input.sample_rate)


def _write_wav(path: Path, wave_S: Tensor, sample_rate: int) -> None:
    with atomic_path(path) as temporary:
        soundfile.write(temporary, (wave_S.numpy() * 32767).astype(np.int16), sample_rate, subtype="PCM_16")
