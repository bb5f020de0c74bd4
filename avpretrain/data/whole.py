"""Files of any length as a model's input: whole spectrograms, and frames at the trained rate.

B clips, S waveform samples, F spectrogram frames, M mel bins, T frames, C colours, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from avpretrain.config.model import InputConfig
from avpretrain.core.errors import UserError
from avpretrain.data.batch import RawBatch
from avpretrain.data.choices import Limits
from avpretrain.data.container import DecodeError
from avpretrain.data.decode import resize, upright
from avpretrain.data.features import Features, frame_length, frame_shift, log_mel
from avpretrain.data.media import Source

__all__ = ["ModelInput", "clip_steps", "normalised_frames", "preprocess", "spectrogram"]

FRAMES_AT_ONCE = 6000


def clip_steps(frames: int, patch: int) -> int:
    """Patches along time for `frames`: a last patch counts when at least half of it is clip; 1 at least."""
    return max(1, (2 * frames + patch) // (2 * patch))


def spectrogram(waveform_BS: Tensor, input: InputConfig) -> Tensor:
    """[B, F, M]: normalised log-mel of all whole frames, as `Features` computes it; one frame at least.

    Args:
        waveform_BS: float32 in [-1, 1] at the model's sample rate, all of one length.
    """
    if input.audio_mean is None or input.audio_std is None:
        raise UserError(
            "the model's config has no log-mel statistics (audio_mean, audio_std), so it can't hear; "
            "an imported model gets them by avpretrain import --audio-stats MEAN STD, or by training"
        )
    length, shift = frame_length(input.sample_rate), frame_shift(input.sample_rate)
    waveform_BS = F.pad(waveform_BS, (0, max(0, length - waveform_BS.shape[1])))
    frames = 1 + (waveform_BS.shape[1] - length) // shift
    parts = [
        log_mel(waveform_BS[:, a * shift : (min(a + FRAMES_AT_ONCE, frames) - 1) * shift + length], input.mels,
                input.sample_rate)
        for a in range(0, frames, FRAMES_AT_ONCE)
    ]  # fmt: skip
    return (torch.cat(parts, dim=1) - input.audio_mean) / (2 * input.audio_std)


def filled(x_BFM: Tensor, frames: int) -> Tensor:
    """A spectrogram cut to `frames`, or its last frame repeated up to there, as a probe has it."""
    return F.pad(x_BFM[:, :frames].mT, (0, max(0, frames - x_BFM.shape[1])), mode="replicate").mT


def sampled_frames(source: Source, fps: float, size: int) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """The frame shown at each (i + 1/2) / fps, one at least, and until when it stands for the video."""
    count, before = 0, None
    for time, frame in source.frames():
        last = frame is None
        while before is not None and ((count + 0.5) / fps < time or (last and count == 0)):
            count += 1
            yield min(count / fps, time) if last else count / fps, _small(before, size)
        before = frame


def _small(frame: object, size: int) -> NDArray[np.uint8]:
    rgb_HWC = upright(frame)
    small: NDArray[np.uint8] = resize(rgb_HWC[None], size)[0] if min(rgb_HWC.shape[:2]) > size else rgb_HWC
    return small


def normalised_frames(
    frames: Sequence[NDArray[np.uint8]], count: int, input: InputConfig, device: torch.device
) -> Tensor:
    """[1, T, C, H, W] of `count` frames as the model takes them; the last one is repeated where there are fewer."""
    shown = np.stack([frames[min(i, len(frames) - 1)] for i in range(count)])
    zero_1 = torch.zeros(1, dtype=torch.int64)
    raw = RawBatch(
        waveform_BS=torch.zeros(1, 1, dtype=torch.int16), samples_B=zero_1, frames_BTHWC=torch.from_numpy(shown)[None],
        size_B2=torch.tensor([shown.shape[1:3]]), seed_B=zero_1, index_B=zero_1,
    )  # fmt: skip
    return Features(input).to(device).video(raw.to(device))


@dataclass(frozen=True)
class ModelInput:
    """A whole file as encoders take it, on the CPU."""

    audio_1FM: Tensor | None
    """Normalised log-mel, in whole patches; none = the file has no audio."""
    video_1TCHW: Tensor | None
    """Normalised frames at the trained rate, in whole tubelets; none = the file has no video."""


def preprocess(path: Path, input: InputConfig, audio_patch: int, video_patch: int) -> ModelInput:
    """Decodes a file, all of it, into what a model takes.

    Args:
        audio_patch: spectrogram frames of a patch, of which there will be a whole number.
        video_patch: frames of one.

    Raises:
        DecodeError: it can't be read, or has neither audio nor video.
        UserError: the config has no log-mel statistics.
    """
    if not path.is_file():
        raise DecodeError(f"{path}: " + ("is no regular file" if path.exists() else "no such file"))
    source = Source(path, None, Limits(max_hours=24.0))
    audio_1FM = video_1TCHW = None
    pcm_S = source.sound(input.sample_rate) if source.has_audio else None
    if pcm_S is not None:
        audio_1FM = spectrogram(torch.from_numpy(pcm_S.astype(np.float32) / 32768)[None], input)
        audio_1FM = filled(audio_1FM, clip_steps(audio_1FM.shape[1], audio_patch) * audio_patch)
    if source.has_video and (
        frames := [frame for _, frame in sampled_frames(source, input.video_fps, input.video_size)]
    ):
        count = clip_steps(len(frames), video_patch) * video_patch
        video_1TCHW = normalised_frames(frames, count, input, torch.device("cpu"))
    if audio_1FM is None and video_1TCHW is None:
        raise DecodeError(f"{path}: has neither audio nor video")
    return ModelInput(audio_1FM, video_1TCHW)
