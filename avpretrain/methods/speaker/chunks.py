"""Encoders that were pretrained on clips (DiffMAViL's), on chunks of a stream that do not overlap.

Within a chunk they see both ways, as they were trained to; so a frame waits for its chunk to end, and all of the chunk
but itself counts as its future and its past. They were trained on colour at a few frames a second: here each of three
colours is the grey crop, and frames follow at 25 a second.

B samples, T frames, N chunks, C frames of a chunk, H height, W width, S waveform samples, M mel bins, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from avpretrain.config.model import SIDES, Side
from avpretrain.config.scaling import LayerSizes
from avpretrain.core.errors import UsageError
from avpretrain.data.features import IMAGENET_MEAN, IMAGENET_STD, frame_length, frame_shift, log_mel_of_windows
from avpretrain.methods.speaker.config import FRAME_SAMPLES, SAMPLE_RATE, EncoderConfig, TowerShape
from avpretrain.methods.speaker.encoder import WINDOWS
from avpretrain.nn.encoder import Encoder
from avpretrain.nn.patches import PATCHES, positions


def with_towers(cfg: EncoderConfig, pretrained: Any) -> EncoderConfig:
    """A config with the sizes of a pretrained model's encoders, and its statistics of the log-mel.

    Raises:
        UsageError: chunks or faces do not fit its patches, or it was trained on other audio.
    """
    shapes = {side: _shape(pretrained.tower(side).encoder) for side in SIDES}
    given = pretrained.cfg.input
    (steps, high, wide), windows = shapes["video"].patch, WINDOWS * cfg.chunk
    heard = windows // shapes["audio"].patch[0]
    whole = windows % shapes["audio"].patch[0] == 0 and (heard % cfg.chunk == 0 or cfg.chunk % heard == 0)
    if cfg.chunk % steps or not whole:
        raise UsageError(
            f"model.encoder.chunk {cfg.chunk} does not fit the pretrained patches: it must be a multiple of {steps} "
            f"frames, and {WINDOWS} x chunk one of {shapes['audio'].patch[0]} spectrogram frames"
        )
    if cfg.face_size % high or cfg.face_size % wide:
        raise UsageError(
            f"model.encoder.face_size {cfg.face_size} must be a multiple of the pretrained patches' {high} x {wide}"
        )
    if given.sample_rate != SAMPLE_RATE or given.audio_mean is None or given.audio_std is None:
        raise UsageError(f"the pretrained model must have heard audio at {SAMPLE_RATE} Hz, with known statistics")
    return dataclasses.replace(
        cfg,
        audio_tower=shapes["audio"],
        video_tower=shapes["video"],
        mels=given.mels,
        audio_mean=given.audio_mean,
        audio_std=2 * given.audio_std,
    )


def _shape(encoder: Encoder) -> TowerShape:
    blocks = [cast(Any, block) for block in encoder.blocks]
    return TowerShape(
        width=encoder.width,
        head_width=blocks[0].attn.proj.in_features // blocks[0].attn.heads,
        patch=encoder.patches.size,
        grid=encoder.grid,
        heads=tuple(block.attn.heads for block in blocks),
        hidden=tuple(block.mlp.fc1.out_features for block in blocks),
        cls_token=encoder.cls_token is not None,
        learned_positions=encoder.position_table is not None,
        final_norm=isinstance(encoder.norm, nn.LayerNorm),
    )


def copy_towers(encoder: nn.Module, pretrained: Any) -> None:
    """Copies a pretrained model's encoders into a `ChunkEncoder` of their sizes."""
    assert isinstance(encoder, ChunkEncoder)
    for side in SIDES:
        encoder.tower(side).load_state_dict(pretrained.tower(side).encoder.state_dict())


class ChunkEncoder(nn.Module):
    """z_t = W_v v_t + W_a a_t, where v_t and a_t are means over the tokens of a frame's time in its chunk.

    The last chunk of a clip is filled up with zeros.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, cfg: EncoderConfig, width: int) -> None:
        super().__init__()
        self.cfg, self.lead = cfg, frame_length(SAMPLE_RATE) - frame_shift(SAMPLE_RATE)
        shapes: dict[Side, TowerShape] = {"audio": cfg.audio_tower, "video": cfg.video_tower}
        self.towers = nn.ModuleDict({side: _tower(side, shape, cfg) for side, shape in shapes.items()})
        self.face_proj = nn.Linear(cfg.video_tower.width, width)
        self.audio_proj = nn.Linear(cfg.audio_tower.width, width)
        self.register_buffer("mean_C", torch.tensor(IMAGENET_MEAN) * 255, persistent=False)
        self.register_buffer("std_C", torch.tensor(IMAGENET_STD) * 255, persistent=False)

    def tower(self, side: Side) -> Encoder:
        """The encoder of one modality."""
        return cast(Encoder, self.towers[side])

    def forward(
        self, faces_BTHW: Float[Tensor, "b t h w"], waveform_BS: Float[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
        """Visual and audio vectors of each frame of whole clips; see `FrameEncoder.forward`."""
        frames = faces_BTHW.shape[1]
        missing = -frames % self.cfg.chunk
        faces_BTHW = F.pad(faces_BTHW, (0, 0, 0, 0, 0, missing))
        waveform_BS = F.pad(waveform_BS, (self.lead, missing * FRAME_SAMPLES))
        return self.see(faces_BTHW)[:, :frames], self.hear(waveform_BS)[:, :frames]

    def see(self, faces_BTHW: Tensor) -> Tensor:
        """[B, T, D] of whole chunks."""
        tower, size = self.tower("video"), self.cfg.chunk
        chunks = faces_BTHW.unflatten(1, (-1, size)).flatten(0, 1)[:, :, None]
        colour = (chunks - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        return self.face_proj(self._by_frame(tower.encode(colour), tower, faces_BTHW.shape[0]))

    def hear(self, waveform_BS: Tensor) -> Tensor:
        """[B, T, D] of whole chunks, with `lead` samples before them."""
        tower, cfg = self.tower("audio"), self.cfg
        windows = waveform_BS.unfold(1, frame_length(SAMPLE_RATE), frame_shift(SAMPLE_RATE))
        mel_BFM = (log_mel_of_windows(windows, cfg.mels, SAMPLE_RATE) - cfg.audio_mean) / cfg.audio_std
        chunks = mel_BFM.unflatten(1, (-1, WINDOWS * cfg.chunk)).flatten(0, 1)
        return self.audio_proj(self._by_frame(tower.encode(chunks), tower, len(waveform_BS)))

    def _by_frame(self, tokens: Tensor, tower: Encoder, batch: int) -> Tensor:
        """[B, T, D]: the mean over all patches of a time step, for each frame that the step lasts, or over the steps of
        a frame.
        """
        steps = self.cfg.chunk * (WINDOWS if len(tower.grid) == 2 else 1) // tower.patches.size[0]
        by_step = tokens[:, tower.prefix :].unflatten(1, (steps, -1)).mean(dim=2)
        if steps >= self.cfg.chunk:
            by_frame = by_step.unflatten(1, (self.cfg.chunk, -1)).mean(dim=2)
        else:
            by_frame = by_step.repeat_interleave(self.cfg.chunk // steps, dim=1)
        return by_frame.unflatten(0, (batch, -1)).flatten(1, 2)

    def stream(self) -> ChunkStream:
        """An empty state, where the weights are."""
        return ChunkStream(self)


def _tower(side: Side, shape: TowerShape, cfg: EncoderConfig) -> Encoder:
    encoder = Encoder(
        PATCHES[side](shape.patch, shape.grid),
        width=shape.width,
        layers=LayerSizes(shape.heads, shape.hidden),
        head_width=shape.head_width,
        cls_token=shape.cls_token,
        learned_positions=shape.learned_positions,
        final_norm=shape.final_norm,
    )
    if not shape.learned_positions:  # made once for the chunk's grid, so that no step copies them to the device
        sizes = (WINDOWS * cfg.chunk, cfg.mels) if side == "audio" else (cfg.chunk, cfg.face_size, cfg.face_size)
        grid = tuple(size // patch for size, patch in zip(sizes, shape.patch, strict=True))
        encoder.position_LD, encoder.grid = positions(grid, shape.width, shape.grid).clone(), grid
    return encoder


class ChunkStream:
    """The encoder on a stream: answers whenever a chunk is complete."""

    def __init__(self, encoder: ChunkEncoder) -> None:
        self.encoder = encoder
        size, weight = encoder.cfg.face_size, encoder.face_proj.weight
        self._faces, self._waveform = weight.new_zeros(1, 0, size, size), weight.new_zeros(1, encoder.lead)

    @property
    def bytes(self) -> int:
        """Memory of the faces and samples that wait."""
        return sum(x.numel() * x.element_size() for x in (self._faces, self._waveform))

    def push(self, faces_1THW: Tensor, waveform_1S: Tensor) -> Tensor:
        """Vectors [1, N, D] of the chunks that are complete with these."""
        encoder, samples = self.encoder, FRAME_SAMPLES
        faces, waveform = torch.cat([self._faces, faces_1THW], 1), torch.cat([self._waveform, waveform_1S], 1)
        ready = faces.shape[1] - faces.shape[1] % encoder.cfg.chunk
        self._faces, self._waveform = faces[:, ready:].clone(), waveform[:, ready * samples :].clone()
        if ready == 0:
            return faces.new_zeros(1, 0, encoder.face_proj.out_features)
        return encoder.see(faces[:, :ready]) + encoder.hear(waveform[:, : encoder.lead + ready * samples])

    def finish(self) -> Tensor:
        """Vectors of the frames whose chunk is not complete: zeros fill it up."""
        waiting = self._faces.shape[1]
        missing = -waiting % self.encoder.cfg.chunk
        more = self._faces.new_zeros(1, missing, *self._faces.shape[2:])
        return self.push(more, self._waveform.new_zeros(1, missing * FRAME_SAMPLES))[:, :waiting]
