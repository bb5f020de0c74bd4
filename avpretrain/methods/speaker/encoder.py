"""Each frame's face and audio to one vector, without a look at frames that the config does not name.

B samples, T frames, N frames with all their neighbours, H height, W width, K frames that one is encoded from, S samples
of a waveform, M mel bins, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from avpretrain.data.features import frame_length, frame_shift, log_mel_of_windows
from avpretrain.methods.speaker.config import FRAME_SAMPLES, SAMPLE_RATE, EncoderConfig

GREY_MEAN, GREY_STD = 0.4161, 0.1688
"""Of a face crop in [0, 1]; fixed, as in Light-ASD."""
WINDOWS = 4
"""Log-mel windows of a frame."""


class FaceEncoder(nn.Module):
    """A frame's face crop, and those of the neighbours that are named, to a vector: 2D convolutions over channels.

    Norms are of one frame's own values, so that nothing passes between frames.
    """

    def __init__(self, cfg: EncoderConfig, width: int) -> None:
        super().__init__()
        before, layers = cfg.face_past + 1 + cfg.look_ahead, list[nn.Module]()
        for channels in cfg.channels:
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), nn.GroupNorm(1, channels), nn.GELU()]
            before = channels
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Linear(4 * before, width)

    def forward(self, faces_NKHW: Tensor) -> Tensor:
        """[N, D] of grey values in [0, 255]."""
        x_NCHW = self.layers((faces_NKHW / 255 - GREY_MEAN) / GREY_STD)
        return self.proj(torch.cat([half for rows in _halves(x_NCHW, 2) for half in _halves(rows, 2)], dim=1))


def _halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Means over the first and the second half of an axis, which share the middle of an odd one.

    As adaptive pooling does, whose gradient on GPUs is not the same from run to run.
    """
    size = x.shape[dim]
    return x.narrow(dim, 0, (size + 1) // 2).mean(dim), x.narrow(dim, size // 2, (size + 1) // 2).mean(dim)


class FrameEncoder(nn.Module):
    """z_t = W_v v_t + W_a a_t: the sum of a visual and an audio vector of each frame.

    A frame at the border of a clip has zeros in place of neighbours that are not there.
    """

    def __init__(self, cfg: EncoderConfig, width: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.face = FaceEncoder(cfg, width)
        values = WINDOWS * cfg.mels * (cfg.audio_past + 1 + cfg.look_ahead)
        self.audio = nn.Sequential(nn.Linear(values, cfg.audio_hidden), nn.GELU(), nn.Linear(cfg.audio_hidden, width))
        self.lead = frame_length(SAMPLE_RATE) - frame_shift(SAMPLE_RATE) if cfg.audio_reach == "causal" else 0
        """Waveform samples before the frames that are given."""

    def forward(
        self, faces_BTHW: Float[Tensor, "b t h w"], waveform_BS: Float[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
        """Visual and audio vectors of each frame of whole clips, to be added.

        Args:
            faces_BTHW: grey values in [0, 255].
            waveform_BS: in [-1, 1], 640 samples a frame.
        """
        cfg, samples = self.cfg, FRAME_SAMPLES
        faces_BTHW = F.pad(faces_BTHW, (0, 0, 0, 0, cfg.face_past, cfg.look_ahead))
        waveform_BS = F.pad(waveform_BS, (cfg.audio_past * samples + self.lead, cfg.look_ahead * samples))
        return self.see(faces_BTHW), self.hear(waveform_BS)

    def see(self, faces_BTHW: Tensor) -> Tensor:
        """[B, N, D] of the frames that have all their neighbours among those given."""
        size = self.cfg.face_past + 1 + self.cfg.look_ahead
        faces_BNHWK = faces_BTHW.unfold(1, size, 1)
        flat = faces_BNHWK.permute(0, 1, 4, 2, 3).flatten(0, 1)
        return self.face(flat).unflatten(0, faces_BNHWK.shape[:2])

    def hear(self, waveform_BS: Tensor) -> Tensor:
        """[B, N, D] of the frames that have all their neighbours, and `lead`, among the samples given."""
        cfg, length = self.cfg, frame_length(SAMPLE_RATE)
        if cfg.audio_reach == "causal":
            windows = waveform_BS.unfold(1, length, frame_shift(SAMPLE_RATE))
        else:
            hop = (FRAME_SAMPLES - length) // (WINDOWS - 1)
            windows = waveform_BS.unflatten(1, (-1, FRAME_SAMPLES)).unfold(2, length, hop).flatten(1, 2)
        mel_BFM = (log_mel_of_windows(windows, cfg.mels, SAMPLE_RATE) - cfg.audio_mean) / cfg.audio_std
        mel_BTV = mel_BFM.unflatten(1, (-1, WINDOWS)).flatten(2)
        mel_BNVK = mel_BTV.unfold(1, cfg.audio_past + 1 + cfg.look_ahead, 1)
        return self.audio(mel_BNVK.flatten(2))

    def stream(self) -> EncoderStream:
        """An empty state for frames that come one by one, where the weights are."""
        return EncoderStream(self)


class EncoderStream:
    """The encoder on a stream: keeps the neighbours that later frames need, and answers `look_ahead` frames late."""

    def __init__(self, encoder: FrameEncoder) -> None:
        self.encoder = encoder
        cfg, weight = encoder.cfg, encoder.face.proj.weight
        self._faces = weight.new_zeros(1, cfg.face_past, cfg.face_size, cfg.face_size)
        self._waveform = weight.new_zeros(1, cfg.audio_past * FRAME_SAMPLES + encoder.lead)

    @property
    def bytes(self) -> int:
        """Memory of the faces and samples that are kept."""
        return sum(x.numel() * x.element_size() for x in (self._faces, self._waveform))

    def push(self, faces_1THW: Tensor, waveform_1S: Tensor) -> Tensor:
        """Vectors [1, N, D] of the frames that are complete with these."""
        cfg = self.encoder.cfg
        faces = torch.cat([self._faces, faces_1THW], dim=1)
        waveform = torch.cat([self._waveform, waveform_1S], dim=1)
        kept = cfg.face_past + cfg.look_ahead
        self._faces = faces[:, max(0, faces.shape[1] - kept) :].clone()
        kept_samples = (cfg.audio_past + cfg.look_ahead) * FRAME_SAMPLES + self.encoder.lead
        self._waveform = waveform[:, max(0, waveform.shape[1] - kept_samples) :].clone()
        if faces.shape[1] <= kept:
            return faces.new_zeros(1, 0, self.encoder.face.proj.out_features)
        return self.encoder.see(faces) + self.encoder.hear(waveform)

    def finish(self) -> Tensor:
        """Vectors of the frames that still waited: zeros come in place of their neighbours."""
        size, ahead = self._faces.shape[2:], self.encoder.cfg.look_ahead
        return self.push(self._faces.new_zeros(1, ahead, *size), self._waveform.new_zeros(1, ahead * FRAME_SAMPLES))
