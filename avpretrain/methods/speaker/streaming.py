"""Scores of a face track while it comes in: state of bounded size, output a stated number of frames late."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avpretrain.methods.speaker.config import FRAME_SAMPLES
from avpretrain.methods.speaker.model import SpeakerModel


class Stream:
    """One face track; what it gives out equals the model's scores of the whole track.

    Args:
        model: in evaluation mode; its weights are not copied.
        piece: frames that attention takes at once where more are pushed: larger ones cost less time a frame and so many
            more rows of memory.

    Raises:
        UsageError: the model needs all the future.
    """

    def __init__(self, model: SpeakerModel, piece: int = 1) -> None:
        if piece < 1:
            raise ValueError(f"piece must be at least 1, got {piece}")
        self.model = model
        self.fusion = model.fusion.stream(piece)
        self.encoder = model.encoder.stream()
        self.received = 0
        """Frames that were pushed."""
        self.answered = 0
        """Frames whose scores were given out."""
        self._ended = False

    @property
    def delay_frames(self) -> int:
        """Frames by which scores come late: a frame's score is given out once so many frames have followed it."""
        delay = self.model.cfg.delay_frames
        assert delay is not None
        return delay

    @property
    def state_bytes(self) -> int:
        """Bytes that are kept between pushes."""
        return self.fusion.bytes + self.encoder.bytes

    @torch.no_grad()
    def push(self, faces: NDArray[np.uint8] | Tensor, waveform: NDArray[np.float32] | Tensor) -> list[float]:
        """Takes the next frames and returns the scores that are ready, in order: probabilities of speaking.

        Args:
            faces: grey crops [n, H, W] in [0, 255], n from 0 on.
            waveform: [n * 640] in [-1, 1], the audio of these frames.

        Raises:
            ValueError: the shapes do not fit the model or each other, or the stream has ended.
        """
        faces_1THW, waveform_1S = torch.as_tensor(faces)[None], torch.as_tensor(waveform)[None]
        size, frames = self.model.cfg.encoder.face_size, faces_1THW.shape[1]
        if self._ended:
            raise ValueError("the stream has been flushed; begin another for more frames")
        if faces_1THW.shape[2:] != (size, size):
            raise ValueError(f"faces are {list(faces_1THW.shape[1:])}; the model takes [n, {size}, {size}]")
        if waveform_1S.shape != (1, frames * FRAME_SAMPLES):
            raise ValueError(f"{frames} frames need {frames * FRAME_SAMPLES} samples, got {waveform_1S.shape[1:]}")
        self.received += frames
        if frames == 0:
            return []
        weight = self.model.head.weight
        z_1ND = self.encoder.push(faces_1THW.to(weight), waveform_1S.to(weight))
        return self._scores(self.fusion.push(z_1ND))

    @torch.no_grad()
    def flush(self) -> list[float]:
        """Ends the stream, and returns the scores of the frames that waited for others to follow."""
        if self._ended:
            return []
        self._ended = True
        z_1ND = self.encoder.finish()
        return self._scores(torch.cat([self.fusion.push(z_1ND), self.fusion.finish()], dim=1))

    def _scores(self, fused_1ND: Tensor) -> list[float]:
        self.answered += fused_1ND.shape[1]
        if fused_1ND.shape[1] == 0:
            return []
        scores: list[float] = self.model.score(fused_1ND)[0].sigmoid().tolist()
        return scores
