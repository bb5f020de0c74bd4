"""What the model makes of held-out clips while it trains: reconstructions as a picture, retrieval R@1 as a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path, write_json
from avpretrain.data.batch import AVBatch
from avpretrain.data.features import IMAGENET_MEAN, IMAGENET_STD, Features, frame_counts
from avpretrain.data.read.dataset import ClipSet, eval_loader
from avpretrain.data.splits import split_text
from avpretrain.measures.spectrograms import SECONDS, draw_spectrogram
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.model import SIDES, DiffMAViL
from avpretrain.nn.reconstruction import Reconstruction
from avpretrain.training.method import Preview

SHOWN = 4
"""Clips in a picture."""
COLLAPSED, ENOUGH = 2.0, 8
"""Effective rank of embeddings below which a warning is due, and clips that it takes to say so."""


class Previewer:
    """A fixed batch: of the split 'val' where there is one, else of training clips, which the picture then says."""

    def __init__(self, cfg: TrainConfig) -> None:
        self.cfg = cfg
        try:
            self.clips, self.split = ClipSet(cfg.data.shards, "val", request_timeout=cfg.data.request_timeout), "val"
        except UserError:
            self.clips, self.split = ClipSet(cfg.data.shards, cfg.data.split), split_text(cfg.data.split)
        self._features = Features(cfg.model.input, None)
        self._batch: AVBatch | None = None
        self._frames_B = torch.zeros(0, dtype=torch.int64)

    def batch(self, device: torch.device) -> AVBatch:
        """The clips as the model sees them, decoded once."""
        if self._batch is None:
            count = min(self.cfg.run.preview_clips, len(self.clips))
            rows = list(range(0, len(self.clips), max(1, len(self.clips) // count)))[:count]
            with eval_loader(self.clips, self.cfg.model.input, rows, batch_size=count, num_workers=0) as loader:
                raw = next(loader)
            self._frames_B = frame_counts(raw.samples_B, self.cfg.model.input.sample_rate)
            self._batch = self._features.to(device)(raw.to(device))
        return self._batch

    def show(self, model: DiffMAViL, ratios: MaskRatios, seen: int) -> Preview:
        """Writes `reconstructions/NNNNNNNNNNNN.png`, and measures R@1; numbers are written next to it as JSON.

        Args:
            seen: clips seen.
        """
        batch = self.batch(next(model.parameters()).device)
        picture = model.reconstruct(batch, ratios.audio, ratios.video)
        towers = {side: model.tower(side) for side in SIDES}
        audio_BD, video_BD = (tower.encoder.pool(tower.encode(batch.clips[side])) for side, tower in towers.items())
        path = self.cfg.run_dir / "reconstructions" / f"{seen:012d}.png"
        hidden = f"{ratios.audio:.0%}/{ratios.video:.0%} hidden"
        title = f"{self.cfg.name}, {seen} clips seen, {self.split} clips, {hidden}"
        draw_reconstruction(batch, picture, path, title, self._frames_B, self.cfg.model.input.sample_rate)
        recall = recall_at_1(audio_BD, video_BD)
        line = f"preview at {seen}: R@1 {recall:.2f} of {len(batch)} clips, {path}"
        ranks = {"audio": effective_rank(audio_BD), "video": effective_rank(video_BD)}
        low = [f"{side} {rank:.1f}" for side, rank in ranks.items() if len(batch) >= ENOUGH and rank < COLLAPSED]
        if low:
            line += (
                f"; warning: embeddings have collapsed (effective rank of {len(batch)} clips: {', '.join(low)}), all "
                "clips look nearly alike: raise the batch, or lower optim.lr or the masking ratio"
            )
        measures = {"recall": recall, **{f"effective_rank_{side}": rank for side, rank in ranks.items()}}
        write_json(path.with_suffix(".json"), {"seen": seen, **measures})
        return Preview(line, measures, path)


def effective_rank(x_BD: Tensor) -> float:
    """How many directions the embeddings of a batch spread over: the exponential of the entropy of their normalised
    singular values, about their mean (Roy & Vetterli 2007); from 1, at most B - 1. One point has 0.
    """
    centred_BD = x_BD.double() - x_BD.double().mean(dim=0)
    scale = x_BD.double().square().mean().sqrt()
    values = torch.linalg.svdvals(centred_BD)
    if values.sum() <= 1e-4 * scale * len(x_BD) ** 0.5:  # no spread beyond rounding
        return 0.0
    share = values / values.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


def recall_at_1(audio_BD: Tensor, video_BD: Tensor) -> float:
    """Share of clips whose sound finds its own picture first among the batch, by cosine similarity."""
    similarity_BB = torch.nn.functional.cosine_similarity(audio_BD[:, None].float(), video_BD[None].float(), dim=-1)
    own_B = torch.arange(len(audio_BD), device=audio_BD.device)
    return float((similarity_BB.argmax(dim=1) == own_B).float().mean())


def draw_reconstruction(
    batch: AVBatch, made: Reconstruction, path: Path, title: str, frames_B: Tensor, sample_rate: int
) -> None:
    """A row a clip: spectrogram, what is visible of it, its reconstruction; then the same of three frames.

    Args:
        frames_B: spectrogram frames of each clip; what follows is padding and is hatched.
        sample_rate: Hz, for the axis of frequencies.
    """
    from matplotlib.figure import Figure

    count = min(SHOWN, len(batch))
    figure = Figure(figsize=(15, 1.15 * count + 0.6), dpi=110)
    axes = figure.subplots(count, 6, squeeze=False, gridspec_kw={"width_ratios": [1.2] * 3 + [3] * 3})
    for i, row in enumerate(axes):
        original = batch.audio_BFM[i].float()
        shown = torch.where(made.audio_mask_BFM[i] > 0, torch.nan, original)
        length = int(frames_B[i])
        low, high = (float(original[: max(1, length)].quantile(q)) for q in (0.01, 0.99))
        for column, image in enumerate((original, shown, made.audio_BFM[i].float())):
            apart = 0.2 if column == 0 else 1.0
            draw_spectrogram(row[column], image.cpu().numpy(), length, (low, high), sample_rate, apart, 6.0)
            row[column].set_xticks([])
        frames = batch.video_BTCHW[i].float()
        hidden = torch.where(made.video_mask_BTCHW[i] > 0, torch.nan, frames)
        for axis, clip in zip(row[3:], (frames, hidden, made.video_BTCHW[i].float()), strict=True):
            axis.imshow(_strip(clip))
    names = ("spectrogram", "visible", "reconstruction", "frames", "visible", "reconstruction")
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    for axis in axes[:, 3:].flat:
        axis.set(xticks=[], yticks=[])
    for axis in axes.flat:
        axis.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("Hz", fontsize=7)
    end = float(batch.audio_BFM.shape[1] * SECONDS)
    axes[-1, 0].set_xticks([0, end], ["0", f"{end:g} s"], fontsize=6)
    figure.suptitle(title, fontsize=9, y=0.995, parse_math=False)
    figure.tight_layout(pad=0.4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _strip(frames_TCHW: Tensor, shown: int = 3) -> np.ndarray:
    """[H, n W, 3] in [0, 1]: frames spread over the clip, side by side; hidden places are grey."""
    chosen = torch.linspace(0, len(frames_TCHW) - 1, min(shown, len(frames_TCHW))).round().long()
    mean, std = (torch.tensor(v, device=frames_TCHW.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    rgb = (frames_TCHW[chosen.to(frames_TCHW.device)] * std + mean).clamp(0, 1).nan_to_num(0.5)
    return torch.cat(list(rgb), dim=-1).permute(1, 2, 0).cpu().numpy()
