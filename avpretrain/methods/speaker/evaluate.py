"""What a trained detector makes of whole tracks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from avpretrain.methods.speaker.config import FRAME_SAMPLES
from avpretrain.methods.speaker.model import SpeakerModel
from avpretrain.methods.speaker.samples import TrackClip
from avpretrain.methods.speaker.streaming import Stream

LONG = 4096
"""Frames from which on a track goes through a stream, where the model can: attention over the whole would take the
square of its length in memory."""
PIECE, PUSHED = 256, 1024
"""Frames that attention takes at once then, and frames that are pushed at once."""


@torch.no_grad()
def track_scores(model: SpeakerModel, clip: TrackClip) -> NDArray[np.float32]:
    """[T]: probabilities that the face speaks, of each frame of a whole track, as a stream gives them.

    Args:
        model: where it is, in evaluation mode.
    """
    device, frames = model.head.weight.device, len(clip.faces)
    waveform = np.zeros(frames * FRAME_SAMPLES, np.float32)
    waveform[: len(clip.waveform)] = clip.waveform[: len(waveform)]
    faces = torch.from_numpy(np.ascontiguousarray(clip.faces)).to(device)
    if frames > LONG and model.cfg.delay_frames is not None:
        stream, found = Stream(model, PIECE), list[float]()
        for start in range(0, frames, PUSHED):
            heard = waveform[start * FRAME_SAMPLES : (start + PUSHED) * FRAME_SAMPLES]
            found += stream.push(faces[start : start + PUSHED], torch.from_numpy(heard))
        return np.array(found + stream.flush(), np.float32)
    logits_1T = model.logits(faces[None], torch.from_numpy(waveform).to(device)[None])
    scores: NDArray[np.float32] = logits_1T[0].sigmoid().cpu().numpy()
    return scores


def labelled_scores(
    model: SpeakerModel, clips: Iterable[TrackClip]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[int]]:
    """Scores and whether they should be high, of all labelled frames; and the number of such frames of each track."""
    model.eval()
    scores, positive, counts = [], [], []
    for clip in clips:
        known = clip.labels >= 0
        scores.append(track_scores(model, clip)[known])
        positive.append(clip.labels[known] == 1)
        counts.append(int(known.sum()))
    if not scores:
        return np.zeros(0, np.float32), np.zeros(0, np.bool_), []
    return np.concatenate(scores), np.concatenate(positive), counts
