"""Vectors of frames put together over time: banded attention, and baselines with as many parameters.

Each kind is a module [B, T, D] -> [B, T, D] with a `stream()` that does the same frame by frame; kinds whose window has
no end after the frame have none. B samples, T frames, D width, H hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avpretrain.core.errors import UsageError
from avpretrain.methods.speaker.config import TCN_KERNEL, FusionConfig
from avpretrain.nn.banded import BandedBlock, precise_tables
from avpretrain.nn.gated_mlp import GatedMlp
from avpretrain.nn.rms_norm import RMSNorm


@runtime_checkable
class FusionStream(Protocol):
    """A fusion on one stream, [1, n, D] at a time."""

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""

    def push(self, x_1LD: Tensor, /) -> Tensor:
        """Takes the next frames and returns those that are complete."""

    def finish(self) -> Tensor:
        """The frames that still waited."""


class Fusion(nn.Module, ABC):
    """What all kinds have in common."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Frames fused, shape unchanged.

        Args:
            valid_BT: which frames are real, the first ones of each sample; none = all.
        """

    def stream(self, piece: int = 1) -> FusionStream:
        """An empty state, where the weights are.

        Args:
            piece: frames that are taken at once where more are pushed.

        Raises:
            UsageError: the kind needs all the future.
        """
        raise UsageError("this model sees all the future of a frame, so it can't run on a stream; score whole files")


class Banded(Fusion):
    """Blocks of attention over a band; the first block has the future, if any, unless that has no end."""

    def __init__(self, cfg: FusionConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            BandedBlock(width, cfg.heads, hidden, window.past, window.future) for window in cfg.bands
        )

    @property
    def _list(self) -> list[BandedBlock]:
        return cast(list[BandedBlock], list(self.blocks))

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        frames, device, known = x_BTD.shape[1], x_BTD.device, dict[tuple[int | None, int | None], Tensor]()
        tables = precise_tables(torch.arange(frames, device=device), self._list[0].head_width)
        for block in self._list:
            limits = (block.past, block.future)
            if limits not in known:
                known[limits] = block.allowed(frames, device, valid_BT)
            x_BTD = block(x_BTD, tables, known[limits])
        return x_BTD

    def stream(self, piece: int = 1) -> FusionStream:
        if any(block.future is None for block in self._list):
            return super().stream()
        return Chain([block.stream(piece) for block in self._list])


class Chain:
    """Streams one after another."""

    def __init__(self, parts: list[FusionStream]) -> None:
        self.parts = parts

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    def push(self, x_1LD: Tensor) -> Tensor:
        for part in self.parts:
            x_1LD = part.push(x_1LD)
        return x_1LD

    def finish(self) -> Tensor:
        left = self.parts[0].finish()
        for part in self.parts[1:]:
            left = torch.cat([part.push(left), part.finish()], dim=1)
        return left


class Recurrent(Fusion):
    """x + projection of a GRU's state; both ways, a second GRU reads each sample from its last real frame back."""

    def __init__(self, cfg: FusionConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.hidden = RMSNorm(width), hidden
        self.ahead = nn.GRU(width, hidden, batch_first=True)
        self.back = nn.GRU(width, hidden, batch_first=True) if cfg.kind == "bigru" else None
        self.proj = nn.Linear(hidden * (1 if self.back is None else 2), width)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        normed = self.norm(x_BTD)
        state = self.ahead(normed)[0]
        if self.back is not None:
            frame_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
            count_B1 = frame_T.new_full((1, 1), len(frame_T)) if valid_BT is None else valid_BT.sum(1, keepdim=True)
            mirror_BT = torch.where(frame_T < count_B1, count_B1 - 1 - frame_T, frame_T).expand(len(x_BTD), -1)

            def mirrored(x: Tensor) -> Tensor:
                return x.gather(1, mirror_BT[:, :, None].expand(-1, -1, x.shape[2]))

            state = torch.cat([state, mirrored(self.back(mirrored(normed))[0])], dim=2)
        return x_BTD + self.proj(state)

    def stream(self, piece: int = 1) -> FusionStream:
        return super().stream() if self.back is not None else RecurrentStream(self)


class RecurrentStream:
    """The state of a GRU."""

    def __init__(self, fusion: Recurrent) -> None:
        self.fusion = fusion
        self._state = fusion.proj.weight.new_zeros(1, 1, fusion.hidden)

    @property
    def bytes(self) -> int:
        return self._state.numel() * self._state.element_size()

    def push(self, x_1LD: Tensor) -> Tensor:
        if x_1LD.shape[1] == 0:
            return x_1LD
        state, self._state = self.fusion.ahead(self.fusion.norm(x_1LD), self._state)
        return x_1LD + self.fusion.proj(state)

    def finish(self) -> Tensor:
        return self._state.new_zeros(1, 0, self.fusion.norm.width)


class PerFrame(Fusion):
    """Blocks x + mlp(norm(x)): no frame sees another."""

    def __init__(self, cfg: FusionConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.blocks = nn.ModuleList(nn.Sequential(RMSNorm(width), GatedMlp(width, hidden)) for _ in range(cfg.depth))

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x_BTD = x_BTD + block(x_BTD)
        return x_BTD

    def stream(self, piece: int = 1) -> FusionStream:
        return PerFrameStream(self)


class PerFrameStream:
    """Keeps nothing."""

    bytes = 0

    def __init__(self, fusion: PerFrame) -> None:
        self.fusion = fusion

    def push(self, x_1LD: Tensor) -> Tensor:
        return self.fusion(x_1LD)

    def finish(self) -> Tensor:
        return next(self.fusion.parameters()).new_zeros(1, 0, self.fusion.width)


class ConvBlock(nn.Module):
    """x + fc(gelu(causal convolution(norm(x)))), the convolution with gaps."""

    def __init__(self, width: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.norm, self.reach = RMSNorm(width), (TCN_KERNEL - 1) * dilation
        self.conv = nn.Conv1d(width, hidden, TCN_KERNEL, dilation=dilation)
        self.fc = nn.Linear(hidden, width)

    def mix(self, normed_BTD: Tensor) -> Tensor:
        """Of the frames that have all `reach` frames before them among those given."""
        return self.fc(F.gelu(self.conv(normed_BTD.transpose(1, 2)).transpose(1, 2)))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.mix(F.pad(self.norm(x_BTD), (0, 0, self.reach, 0)))


class Convolutional(Fusion):
    """A causal TCN: convolutions over three frames at strides 1, 2, 4, ... (after Bai et al. 2018)."""

    def __init__(self, cfg: FusionConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(width, hidden, dilation) for dilation in cfg.dilations)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD

    def stream(self, piece: int = 1) -> FusionStream:
        return Chain([ConvStream(cast(ConvBlock, block)) for block in self.blocks])


class ConvStream:
    """Keeps the frames that a convolution looks back to."""

    def __init__(self, block: ConvBlock) -> None:
        self.block = block
        self._kept = block.fc.weight.new_zeros(1, block.reach, block.norm.width)

    @property
    def bytes(self) -> int:
        return self._kept.numel() * self._kept.element_size()

    def push(self, x_1LD: Tensor) -> Tensor:
        if x_1LD.shape[1] == 0:
            return x_1LD
        normed = torch.cat([self._kept, self.block.norm(x_1LD)], dim=1)
        self._kept = normed[:, normed.shape[1] - self.block.reach :].clone()
        return x_1LD + self.block.mix(normed)

    def finish(self) -> Tensor:
        return self._kept[:, :0]


KINDS: dict[str, Callable[[FusionConfig, int, int], Fusion]] = {
    "banded": Banded,
    "gru": Recurrent,
    "bigru": Recurrent,
    "frame": PerFrame,
    "tcn": Convolutional,
}


def make_fusion(cfg: FusionConfig, width: int) -> Fusion:
    """The fusion of a config, fresh."""
    return KINDS[cfg.kind](cfg, width, cfg.hidden or default_hidden(cfg, width))


def default_hidden(cfg: FusionConfig, width: int) -> int:
    """The hidden width of a kind where the config gives none: see `FusionConfig.hidden`."""
    if cfg.kind == "banded":
        return 2 * width
    target, low, high = _parameters(Banded, cfg, width, 2 * width), 1, 2
    while _parameters(KINDS[cfg.kind], cfg, width, high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _parameters(KINDS[cfg.kind], cfg, width, middle) < target else (low, middle)
    return min((low, high), key=lambda hidden: abs(_parameters(KINDS[cfg.kind], cfg, width, hidden) - target))


def _parameters(kind: Callable[[FusionConfig, int, int], Fusion], cfg: FusionConfig, width: int, hidden: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in kind(cfg, width, hidden).parameters())
