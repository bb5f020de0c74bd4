"""Features of the clips of a data set, by any number of ranks, each clip decoded once for all feature sets.

B clips of a batch, N clips in all, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from avpretrain.config.model import InputConfig
from avpretrain.core.terminal import Console
from avpretrain.data.batch import RawBatch
from avpretrain.data.features import Features, frame_counts
from avpretrain.data.read.dataset import ClipSet, Loader, eval_loader
from avpretrain.evaluation.frozen import ClipBatch, Embedder
from avpretrain.evaluation.settings import Modality


@dataclass(frozen=True)
class Extracted:
    """Features of `rows_N`, in their order."""

    features: dict[str, Tensor]
    """Name of the feature set -> float32 [N, D] on the CPU."""
    has_audio_N: NDArray[np.bool_]
    has_video_N: NDArray[np.bool_]
    """Whether the clip has the modality and it could be decoded."""

    def usable_N(self, modality: Modality) -> NDArray[np.bool_]:
        """Clips that have all that `modality` asks for."""
        return {"audio": self.has_audio_N, "video": self.has_video_N, "both": self.has_audio_N & self.has_video_N}[
            modality
        ]


@dataclass(frozen=True)
class Reading:
    """How clips are read for evaluation."""

    input: InputConfig
    modality: Modality = "both"
    batch_size: int = 32
    num_workers: int = 2


def longest_clip(clips: ClipSet, rows: Sequence[int], most: float) -> float:
    """Seconds of the longest of the clips, at most `most`."""
    return min(most, max(clips.clip(int(row)).duration for row in rows))


def clip_batches(clips: ClipSet, rows: Sequence[int], reading: Reading) -> Generator[tuple[RawBatch, ClipBatch]]:
    """This rank's clips, on its device, in the order of `rows`; closing it ends the loader."""
    state = PartialState()
    features = Features(reading.input, None).to(state.device)
    mine = [int(row) for row in rows[state.process_index :: state.num_processes]]
    loader = eval_loader(clips, reading.input, mine, reading.batch_size, reading.num_workers, reading.modality)
    with loader:
        yield from _on_device(clips, loader, reading, features, state.device)


def _on_device(
    clips: ClipSet, loader: Loader, reading: Reading, features: Features, device: torch.device
) -> Iterator[tuple[RawBatch, ClipBatch]]:
    for raw in loader:
        audio_frames_B = frame_counts(raw.samples_B, reading.input.sample_rate).clamp(max=reading.input.audio_frames)
        video_frames_B = torch.tensor(
            [
                _video_frames(clips.clip(row).duration, reading.input) if height else 0
                for row, height in zip(raw.index_B.tolist(), raw.size_B2[:, 0].tolist(), strict=True)
            ]
        )
        batch = features(raw.to(device))
        lengths = (audio_frames_B.to(device), video_frames_B.to(device))
        yield raw, ClipBatch(batch.audio_BFM, batch.video_BTCHW, *lengths)


def _video_frames(duration: float, input: InputConfig) -> int:
    """Frames whose time, (i + 1/2) / fps, lies inside the clip; 1 at least."""
    return max(1, min(input.video_frames, int(duration * input.video_fps + 0.5)))


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, on the first rank where there is a terminal; yields the function that advances it."""
    console = Console(stderr=True)
    shown = PartialState().is_main_process and console.is_terminal
    bar = Progress(console=console, transient=True, disable=not shown)
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@torch.no_grad()
def extract(embedders: Mapping[str, Embedder], clips: ClipSet, rows: Sequence[int], reading: Reading) -> Extracted:
    """Runs every embedder over the clips; every rank must call it, and each gets the whole result."""
    state = PartialState()
    for embedder in embedders.values():
        if isinstance(embedder, nn.Module):
            embedder.to(state.device).eval()
    arrays: dict[str, list[NDArray[np.generic]]] = {name: [] for name in (*embedders, "row", "audio", "video")}
    with progress(len(rows), "features") as advance, closing(clip_batches(clips, rows, reading)) as batches:
        for raw, batch in batches:
            for name, embedder in embedders.items():
                arrays[name].append(embedder(batch).float().cpu().numpy())
            arrays["row"].append(raw.index_B.numpy())
            arrays["audio"].append((batch.audio_frames_B > 0).cpu().numpy())
            arrays["video"].append((batch.video_frames_B > 0).cpu().numpy())
            advance(len(raw) * state.num_processes)
    mine = [{name: np.concatenate(parts) for name, parts in arrays.items()}] if arrays["row"] else []
    gathered = gather_object(mine)
    whole = {name: np.concatenate([part[name] for part in gathered]) for name in arrays}
    place = np.argsort(whole["row"])[np.argsort(np.argsort(rows))]
    return Extracted(
        features={name: torch.from_numpy(whole[name][place]) for name in embedders},
        has_audio_N=whole["audio"][place],
        has_video_N=whole["video"][place],
    )
