"""What can be configured of an active speaker detector, and how far it then sees. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Suppress

from avpretrain.config.model import require
from avpretrain.config.train import MECHANICS, EngineConfig, LengthConfig, OptimConfig, RunConfig, mechanics

FPS = 25
"""Frames of a face a second; clips at other rates are resampled before they come here."""
SAMPLE_RATE = 16_000
FRAME_SAMPLES = SAMPLE_RATE // FPS
"""Waveform samples of a frame."""
MARGIN = 0.1
"""Share of the longer side of a face's box that is added at each side before it is cut out, where nothing is said."""
FusionKind = Literal["banded", "gru", "bigru", "frame", "tcn"]
ALL = -1
"""In place of a number of frames: all that there are."""
TCN_KERNEL = 3


@dataclass(frozen=True, slots=True)
class Window:
    """The frames that an output depends on: from `past` before its own to `future` after it; none = all."""

    past: int | None
    future: int | None

    def __add__(self, other: Window) -> Window:
        """Of one thing that reads the outputs of another."""
        return Window(_sum(self.past, other.past), _sum(self.future, other.future))


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _frames(value: int) -> int | None:
    return None if value == ALL else value


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerShape:
    """Sizes of the encoder of one modality that was pretrained elsewhere; read from its weights, not set by hand."""

    width: int = 0
    """Of a token; 0 = there is no such encoder."""
    head_width: int = 0
    patch: tuple[int, ...] = ()
    """Along the axes of the grid: time and frequency, or time, height and width."""
    grid: tuple[int, ...] = ()
    """Patches of a clip that it was trained on."""
    heads: tuple[int, ...] = ()
    """Of each block."""
    hidden: tuple[int, ...] = ()
    """Width of the MLP in each block."""
    cls_token: bool = True
    learned_positions: bool = False
    final_norm: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.width <= 65_536, f"width must lie in [0, 65536], got {self.width}")
        require(len(self.heads) == len(self.hidden) <= 128, "heads and hidden need one entry a block, 128 at most")
        require(len(self.patch) == len(self.grid), "patch and grid need one entry an axis")
        numbers = (*self.patch, *self.grid, *self.heads, *self.hidden)
        require(all(1 <= n <= 1 << 20 for n in numbers), "patch, grid, heads and hidden must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Each frame's face and audio to a vector each; no layer mixes frames but those that are named here."""

    face_size: int = 64
    """Pixels of the side of a face crop; grey."""
    channels: tuple[int, ...] = (8, 16, 32, 64)
    """Of the convolutions over a face, each with stride 2."""
    face_past: int = 0
    """Face crops before its own that a frame's visual encoder sees, as further channels; 0 = strictly its own."""
    mels: int = 40
    """Mel bins."""
    audio_hidden: int = 128
    """Width of the hidden layer of the audio encoder."""
    audio_past: int = 0
    """Frames of audio before its own that a frame's audio encoder sees."""
    audio_reach: Literal["causal", "inside"] = "causal"
    """The four log-mel windows (25 ms) of a frame (40 ms). causal: every 10 ms; each ends within the frame, and the
    first begins 15 ms before it, in the frame before. inside: every 5 ms, all of them within the frame."""
    look_ahead: int = 0
    """Frames after its own that both encoders see; they count as future, and delay the output."""
    audio_mean: float = -6.0
    """Of the log-mel, subtracted; fixed numbers, since a clip's own mean would see its future."""
    audio_std: float = 4.0
    """Of the log-mel, by which it is divided."""
    face_margin: Annotated[float, Suppress] = MARGIN
    """Share of a box's longer side that was added at each side of the faces that were trained on; filled in from the
    tracks, and what `avpretrain speakers` adds where it is told nothing else."""
    chunk: int = 4
    """Frames that a pretrained encoder takes at once, where there is one (`pretrained`): it sees both ways within them,
    so that all but one count as future, and as past. Nothing else above but face_size matters then."""
    audio_tower: Annotated[TowerShape, Suppress] = field(default_factory=TowerShape)
    """Filled in from `pretrained`."""
    video_tower: Annotated[TowerShape, Suppress] = field(default_factory=TowerShape)
    """Filled in from `pretrained`."""

    def __post_init__(self) -> None:
        require(1 <= self.chunk <= 1024, f"chunk must lie in [1, 1024], got {self.chunk}")
        require(8 <= self.face_size <= 1024, f"face_size must lie in [8, 1024], got {self.face_size}")
        require(0 <= self.face_margin <= 2, f"face_margin must lie in [0, 2], got {self.face_margin}")
        require(1 <= len(self.channels) <= 8, f"channels needs 1 to 8 entries, got {len(self.channels)}")
        require(all(1 <= c <= 4096 for c in self.channels), f"channels must lie in [1, 4096], got {self.channels}")
        for name in ("face_past", "audio_past", "look_ahead"):
            require(0 <= getattr(self, name) <= 64, f"{name} must lie in [0, 64], got {getattr(self, name)}")
        require(4 <= self.mels <= 128, f"mels must lie in [4, 128], got {self.mels}")
        require(1 <= self.audio_hidden <= 65_536, f"audio_hidden must lie in [1, 65536], got {self.audio_hidden}")
        require(1e-3 <= self.audio_std <= 1e4, f"audio_std must lie in [0.001, 10000], got {self.audio_std}")
        require(abs(self.audio_mean) <= 1e4, f"audio_mean must lie in [-10000, 10000], got {self.audio_mean}")

    @property
    def chunked(self) -> bool:
        """Whether a pretrained encoder takes chunks, in place of one that takes frames."""
        return self.video_tower.width > 0

    @property
    def face_window(self) -> Window:
        """Frames of the face that the vector of a frame depends on, at most."""
        if self.chunked:
            return Window(self.chunk - 1, self.chunk - 1)
        return Window(self.face_past, self.look_ahead)

    @property
    def audio_window(self) -> Window:
        """Frames of the waveform that the vector of a frame depends on, at most."""
        if self.chunked:
            return Window(self.chunk, self.chunk - 1)
        return Window(self.audio_past + (self.audio_reach == "causal"), self.look_ahead)


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """How the vectors of frames are put together over time."""

    kind: FusionKind = "banded"
    """banded: attention over a bounded past and future; gru, bigru: recurrent, one way and both ways; frame: each frame
    by itself; tcn: causal convolutions of growing stride."""
    past: int = 32
    """banded: frames before its own that a block sees, in each block; -1 = all. tcn: it sees at least depth x past."""
    future: int = 0
    """banded: frames after its own that the first block sees; the others see none. -1 = all, in every block."""
    depth: int = 2
    """banded, frame: blocks."""
    heads: int = 4
    """banded: attention heads."""
    hidden: int = 0
    """Width of the hidden layers (gru: of the state); 0 = twice the width for banded attention, and for the others what
    gives them as many parameters as banded attention of this width, depth and number of heads."""

    def __post_init__(self) -> None:
        for name in ("past", "future"):
            value = getattr(self, name)
            require(value == ALL or 0 <= value <= 100_000, f"{name} must lie in [0, 100000] or be -1, got {value}")
        require(1 <= self.depth <= 64, f"depth must lie in [1, 64], got {self.depth}")
        require(1 <= self.heads <= 1024, f"heads must lie in [1, 1024], got {self.heads}")
        require(0 <= self.hidden <= 1 << 17, f"hidden must lie in [0, {1 << 17}], got {self.hidden}")
        require(self.kind != "tcn" or self.past > 0, f"a tcn's past is bounded and at least 1, got {self.past}")

    @property
    def bands(self) -> tuple[Window, ...]:
        """What each block of banded attention sees."""
        past, future = _frames(self.past), _frames(self.future)
        later = None if future is None else 0
        return tuple(Window(past, later if i else future) for i in range(self.depth))

    @property
    def dilations(self) -> tuple[int, ...]:
        """tcn: the strides of its convolutions, as many as see depth x past frames."""
        count = 0
        while (TCN_KERNEL - 1) * (2**count - 1) < self.depth * self.past:
            count += 1
        return tuple(2**i for i in range(count))

    @property
    def window(self) -> Window:
        """Frames that an output depends on, of the vectors that are fused."""
        match self.kind:
            case "gru":
                return Window(None, 0)
            case "bigru":
                return Window(None, None)
            case "frame":
                return Window(0, 0)
            case "tcn":
                return Window((TCN_KERNEL - 1) * sum(self.dilations), 0)
        return sum(self.bands, Window(0, 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakerModelConfig:
    """The model: encoders of a frame, their sum, fusion over time, a score for each frame."""

    width: int = 128
    """Of the vector of a frame."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        require(2 <= self.width <= 65_536, f"width must lie in [2, 65536], got {self.width}")
        heads = self.fusion.heads
        require(self.width % (2 * heads) == 0, f"width {self.width} must be a multiple of twice the {heads} heads")

    @property
    def face_window(self) -> Window:
        """Frames of the face that a score depends on, end to end."""
        return self.encoder.face_window + self.fusion.window

    @property
    def audio_window(self) -> Window:
        """Frames of the waveform that a score depends on, end to end."""
        return self.encoder.audio_window + self.fusion.window

    @property
    def delay_frames(self) -> int | None:
        """Frames that must follow before a frame's score is known; none = all."""
        return self.face_window.future

    @property
    def past_frame_bytes(self) -> int:
        """banded: bytes that a stream keeps for each frame of `past`, in float32: 2 x depth x width x 4."""
        return 2 * self.fusion.depth * self.width * 4


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackDataConfig:
    """Where the tracks of faces come from, and what of them is a sample."""

    shards: tuple[str, ...] = mechanics(())
    """Data sets of face tracks. What counts is what they hold."""
    split: str = "train"
    """Which split to train on."""
    frames: int = 75
    """Frames of a sample, cut from a track at random; a shorter track is padded, and the padding has no label."""
    flip: float = 0.5
    """Probability that a track's faces are mirrored."""
    gain_db: float = 6.0
    """Waveforms are scaled by a gain uniform in [-gain_db, gain_db]."""
    mix: float = 0.0
    """Probability that the audio of another track is added; labels stay."""
    mix_db: float = 5.0
    """Its level against the track's own is uniform in [-mix_db, mix_db]."""

    def __post_init__(self) -> None:
        require(bool(self.split), "split must name a split")
        require(1 <= self.frames <= 100_000, f"frames must lie in [1, 100000], got {self.frames}")
        for name in ("flip", "mix"):
            require(0 <= getattr(self, name) <= 1, f"{name} is a probability, got {getattr(self, name)}")
        for name in ("gain_db", "mix_db"):
            require(0 <= getattr(self, name) <= 100, f"{name} must lie in [0, 100], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakerConfig(EngineConfig):
    """Everything a training run of an active speaker detector is made of."""

    method: str = "speaker"
    init: str = ""
    """Run folder, checkpoint or saved model of this method whose weights a fresh run starts from; empty = afresh."""
    pretrained: str = ""
    """Run folder, checkpoint or saved model of DiffMAViL (or MAViL) whose encoders take the place of the small ones, in
    chunks of model.encoder.chunk frames; empty = none. They see a chunk both ways: it counts as future."""
    freeze: bool = False
    """Leave the pretrained encoders as they are; false = train them, too."""
    visual_loss: float = 0.0
    """Weight of the loss of a second score that sees the faces alone (Light-ASD: 0.5)."""
    schedule: LengthConfig = field(default_factory=LengthConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: TrackDataConfig = field(default_factory=TrackDataConfig)
    model: SpeakerModelConfig = field(default_factory=SpeakerModelConfig)
    run: RunConfig = field(default_factory=RunConfig, metadata={MECHANICS: True})

    def __post_init__(self) -> None:
        require(0 <= self.visual_loss <= 100, f"visual_loss must lie in [0, 100], got {self.visual_loss}")


def with_fusion(cfg: SpeakerModelConfig, **changes: object) -> SpeakerModelConfig:
    """A config whose fusion differs in the fields that are named."""
    return dataclasses.replace(cfg, fusion=dataclasses.replace(cfg.fusion, **changes))  # type: ignore[arg-type]
