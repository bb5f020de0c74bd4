"""Classes for `transformers`; exported as source (see `bundle`) not imported here, where transformers may be absent.

B clips, S waveform samples, F spectrogram frames, M mel bins, T video frames, C colours, H height, W width, N steps in
time (patches), D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import FeatureExtractionMixin, PretrainedConfig, PreTrainedModel
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import ModelOutput

from avpretrain.config.model import InputConfig
from avpretrain.config.scaling import LayerSizes
from avpretrain.data.augment import central_squares, crop
from avpretrain.data.features import IMAGENET_MEAN, IMAGENET_STD
from avpretrain.data.whole import clip_steps, filled, spectrogram
from avpretrain.evaluation.frozen import encode_steps
from avpretrain.nn.encoder import Encoder
from avpretrain.nn.patches import PATCHES, positions


class AVPretrainConfig(PretrainedConfig):
    """Sizes of the two encoders, and the input that they were trained on."""

    model_type = "avpretrain"

    def __init__(self, width=0, input=None, encoders=None, **kwargs):  # type: ignore[no-untyped-def]
        self.width, self.input, self.encoders = width, input or {}, encoders or {}
        super().__init__(**kwargs)


@dataclass
class AVPretrainOutput(ModelOutput):
    """What `AVPretrainModel` returns; none where the modality was not given."""

    audio_embeds: Any = None
    """[B, D]: mean over patches; 0 where a clip has no audio."""
    video_embeds: Any = None
    """[B, D]"""
    audio_steps: Any = None
    """[B, N, D]: mean over the patches of each step in time; 0 after the end of a clip."""
    video_steps: Any = None
    """[B, N, D]"""


class AVPretrainModel(PreTrainedModel):
    """Waveforms and frames to embeddings: log-mel, patches, encoder, mean."""

    config_class = AVPretrainConfig
    main_input_name = "input_values"

    def __init__(self, config: AVPretrainConfig) -> None:
        super().__init__(config)
        self.cfg = SimpleNamespace(width=config.width, input=InputConfig(**config.input))
        self.towers = nn.ModuleDict()
        for side, size in config.encoders.items():
            encoder = Encoder(
                PATCHES[side](tuple(size["patch"]), tuple(size["grid"])),
                width=config.width,
                layers=LayerSizes(heads=tuple(size["heads"]), hidden=tuple(size["hidden"])),
                head_width=size["head_width"],
                cls_token=size["cls_token"],
                learned_positions=size["learned_positions"],
                final_norm=size["final_norm"],
            )
            self.towers[side] = nn.ModuleDict({"encoder": encoder})
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Reads the folder or repository; fixed positions are computed afterwards, since weights do not hold them."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tower in model.towers.values():
            encoder = tower["encoder"]
            table_LD = positions(encoder.grid, encoder.width, encoder.grid)
            parameter = next(encoder.parameters())
            encoder.position_LD = table_LD.to(parameter.device, parameter.dtype, copy=True)
        return loaded

    def _init_weights(self, module: Any) -> None:
        pass

    def tower(self, side: str) -> Any:
        """Encoder of one modality."""
        towers: Any = self.towers
        return SimpleNamespace(encoder=towers[side]["encoder"])

    def forward(
        self,
        input_values: Tensor | None = None,
        pixel_values: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        video_lengths: Tensor | None = None,
        **kwargs: Any,
    ) -> AVPretrainOutput:
        """Embeddings of each modality that is given, of clips of any length.

        Args:
            input_values: [B, S] waveforms in [-1, 1] at the trained sample rate.
            pixel_values: [B, T, C, H, W] frames as the feature extractor normalises them.
            audio_lengths: [B] samples before padding; none = all.
            video_lengths: [B] frames before padding; none = all.
        """
        out = AVPretrainOutput()
        if input_values is not None:
            out["audio_embeds"], out["audio_steps"] = self._encode("audio", input_values, audio_lengths)
        if pixel_values is not None:
            out["video_embeds"], out["video_steps"] = self._encode("video", pixel_values, video_lengths)
        return out

    def _encode(self, side: Any, x: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
        encoder = self.tower(side).encoder
        patch, kind = encoder.patches.size[0], next(encoder.parameters()).dtype
        lengths = [x.shape[1]] * len(x) if lengths_B is None else lengths_B.tolist()
        rows: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            if length:
                rows.setdefault(length, []).append(row)
        steps_by_row: list[Tensor] = [x.new_zeros(0, self.cfg.width, dtype=kind)] * len(x)
        for length, same in rows.items():  # one length at a time: no clip sees another's padding
            part = x[same, :length]
            if side == "audio":
                part = spectrogram(part.float(), self.cfg.input)
            steps = clip_steps(part.shape[1], patch)
            flat = filled(part.flatten(2), steps * patch)
            tokens_BESGD, _ = encode_steps(self, side, flat.unflatten(2, part.shape[2:]).to(kind), steps)
            for row, vectors_ND in zip(same, tokens_BESGD[:, 0].mean(dim=2), strict=True):
                steps_by_row[row] = vectors_ND
        means = [s.mean(dim=0) if len(s) else s.new_zeros(self.cfg.width) for s in steps_by_row]
        return torch.stack(means), nn.utils.rnn.pad_sequence(steps_by_row, batch_first=True)


class AVPretrainFeatureExtractor(FeatureExtractionMixin):
    """Waveforms and frames of clips, one by one, to batches for `AVPretrainModel`."""

    model_input_names = ["input_values", "pixel_values"]  # noqa: RUF012

    def __init__(self, sampling_rate=16_000, video_fps=2.0, video_size=224, **kwargs):  # type: ignore[no-untyped-def]
        self.sampling_rate, self.video_fps, self.video_size = sampling_rate, video_fps, video_size
        super().__init__(**kwargs)

    def __call__(self, audio=None, videos=None, sampling_rate=None, return_tensors="pt"):  # type: ignore[no-untyped-def]
        """A batch with what is given of `input_values`, `audio_lengths`, `pixel_values`, `video_lengths`.

        Args:
            audio: a waveform [S] in [-1, 1], or a list of them, mono, at `self.sampling_rate`.
            videos: uint8 RGB frames [T, H, W, C], or a list of them, `self.video_fps` a second.
            sampling_rate: of `audio`, to be checked.

        Raises:
            ValueError: there is neither, the sampling rate is another, or a shape is none of those.
        """
        if audio is None and videos is None:
            raise ValueError("give audio, videos or both")
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"the model takes audio at {self.sampling_rate} Hz, got {sampling_rate}; resample it")
        batch = {}
        if audio is not None:
            many = audio if isinstance(audio, (list, tuple)) and np.ndim(audio[0]) else [audio]
            waves = [torch.as_tensor(np.asarray(wave), dtype=torch.float32) for wave in many]
            if any(wave.ndim != 1 for wave in waves):
                raise ValueError(f"audio must be mono waveforms [samples], got {[tuple(w.shape) for w in waves]}")
            batch["input_values"] = nn.utils.rnn.pad_sequence(waves, batch_first=True)
            batch["audio_lengths"] = torch.tensor([len(wave) for wave in waves])
        if videos is not None:
            clips = [torch.as_tensor(np.asarray(clip)) for clip in (videos if np.ndim(videos[0]) == 4 else [videos])]
            if any(clip.ndim != 4 or clip.shape[3] != 3 or clip.dtype != torch.uint8 for clip in clips):
                raise ValueError("videos must be uint8 frames [frames, height, width, 3]")
            frames = [self._normal(clip) for clip in clips]
            batch["pixel_values"] = nn.utils.rnn.pad_sequence(frames, batch_first=True)
            batch["video_lengths"] = torch.tensor([len(clip) for clip in clips])
        return BatchFeature(batch, tensor_type=return_tensors)

    def _normal(self, clip_THWC: Tensor) -> Tensor:
        """[T, C, H, W]: large frames averaged down to the trained size, the central square, ImageNet's colours."""
        short = min(clip_THWC.shape[1:3])
        if short > self.video_size:
            size = [max(self.video_size, round(side * self.video_size / short)) for side in clip_THWC.shape[1:3]]
            small = F.interpolate(clip_THWC.permute(0, 3, 1, 2).float(), size=size, mode="area")
            clip_THWC = small.round().permute(0, 2, 3, 1)
        size_12 = torch.tensor([clip_THWC.shape[1:3]])
        no_flip = torch.zeros(1, dtype=torch.bool)
        square_1THWC = crop(clip_THWC[None], size_12, central_squares(size_12), no_flip, self.video_size)
        mean_C, std_C = torch.tensor(IMAGENET_MEAN) * 255, torch.tensor(IMAGENET_STD) * 255
        return ((square_1THWC[0] - mean_C) / std_C).permute(0, 3, 1, 2)
