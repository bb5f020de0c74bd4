"""An active speaker detector as a method that the engine trains."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from avpretrain.config.reader import to_dict
from avpretrain.config.schedules import Phase, Step
from avpretrain.core.errors import UsageError
from avpretrain.methods.speaker.chunks import ChunkEncoder, copy_towers, with_towers
from avpretrain.methods.speaker.config import FRAME_SAMPLES, SpeakerConfig, SpeakerModelConfig, with_fusion
from avpretrain.methods.speaker.fusion import default_hidden
from avpretrain.methods.speaker.model import SpeakerModel, TrackBatch
from avpretrain.methods.speaker.samples import Clips, Samples
from avpretrain.training.folders import find_weights
from avpretrain.training.method import Method


class Speaker(Method):
    """Says of each frame of a face track whether the face speaks and is heard."""

    cfg: SpeakerConfig
    config = SpeakerConfig
    measures: ClassVar[Mapping[str, Literal["min", "max"]]] = {"loss": "min"}
    load_encoder: Callable[[str], Any] | None = None
    """Gives the pretrained model of a path, with `tower("audio").encoder`, `tower("video").encoder` and `cfg.input`;
    handed in by whoever knows other methods."""
    _samples: Samples | None = None
    _pretrained: Any = None

    # --- before the first step ---------------------------------------------------------------------------------------

    def open(self) -> Sequence[str]:
        """Opens the tracks."""
        data, size = self.cfg.data, self.cfg.model.encoder.face_size
        clips = self.tracks()
        if len(clips) == 0:
            raise UsageError(f"split '{data.split}' holds no track; name another with --data.split")
        found = clips.read(0, 0, 1).faces.shape[1]
        if found != size:
            raise UsageError(
                f"the tracks' faces have {found} pixels, but model.encoder.face_size is {size}; give "
                f"--model.encoder.face-size {found}, or make the set again"
            )
        self._samples, margin = Samples(clips, data, self.cfg.seed), getattr(clips, "margin", None)
        if margin is not None:  # whoever uses the model must cut faces out alike
            encoder = dataclasses.replace(self.cfg.model.encoder, face_margin=margin)
            self.cfg = dataclasses.replace(self.cfg, model=dataclasses.replace(self.cfg.model, encoder=encoder))
        if self.cfg.pretrained:
            if self.load_encoder is None:
                raise UsageError("pretrained encoders can't be read here; leave pretrained empty")
            self._pretrained = self.load_encoder(self.cfg.pretrained)
            encoder = with_towers(self.cfg.model.encoder, self._pretrained)
            self.cfg = dataclasses.replace(self.cfg, model=dataclasses.replace(self.cfg.model, encoder=encoder))
        return ()

    def tracks(self) -> Clips:
        """The tracks that `data.shards` names. A subclass may bring its own."""
        from avpretrain.methods.speaker.data import TrackClips

        if not self.cfg.data.shards:
            raise UsageError("no data: give --data FOLDER, a data set of face tracks")
        return TrackClips(self.cfg.data.shards, self.cfg.data.split)

    @property
    def data(self) -> Samples:
        """The tracks that `open` opened."""
        assert self._samples is not None
        return self._samples

    # --- training ----------------------------------------------------------------------------------------------------

    def model(self) -> SpeakerModel:
        """A fresh one."""
        model = SpeakerModel(self.model_config, self.cfg.visual_loss)
        if self.cfg.freeze and isinstance(model.encoder, ChunkEncoder):
            model.encoder.towers.requires_grad_(False)
        return model

    def initialise(self, model: nn.Module) -> None:
        """Copies the weights that `pretrained` and `init` name, if any."""
        if self._pretrained is not None:
            copy_towers(cast(SpeakerModel, model).encoder, self._pretrained)
        if not self.cfg.init:
            return
        there = SpeakerModel.from_pretrained(find_weights(self.cfg.init))
        try:
            model.load_state_dict(there.state_dict())
        except RuntimeError:
            here, other = to_dict(self.model_config), to_dict(there.cfg)
            differ = [key for key in here if here[key] != other[key]]
            raise UsageError(
                f"init {self.cfg.init} is another model: {', '.join(f'model.{key}' for key in differ)} differ; give "
                "the run that model's"
            ) from None

    def batches(self, steps: Sequence[Step], rank: int, world: int) -> AbstractContextManager[Iterator[TrackBatch]]:
        """Parts of tracks, read as they are needed."""

        def read() -> Iterator[TrackBatch]:
            for step in steps:
                yield self.data.batch(range(step.seen + rank, step.seen + step.batch_size, world))

        return contextlib.nullcontext(read())

    def example(self, phase: Phase, batch_size: int, device: torch.device) -> TrackBatch:
        """Tracks of noise."""
        frames, size = self.cfg.data.frames, self.cfg.model.encoder.face_size
        return TrackBatch(
            faces_BTHW=torch.randint(256, (batch_size, frames, size, size), device=device, dtype=torch.uint8),
            waveform_BS=0.1 * torch.randn(batch_size, frames * FRAME_SAMPLES, device=device),
            labels_BT=torch.randint(2, (batch_size, frames), device=device, dtype=torch.int8),
            frames_B=torch.full((batch_size,), frames, device=device),
        )

    @property
    def model_config(self) -> SpeakerModelConfig:
        """The model's section, with the hidden width that the fusion has."""
        model = self.cfg.model
        return with_fusion(model, hidden=model.fusion.hidden or default_hidden(model.fusion, model.width))
