"""A model of patches and the held-out clips that a study of its reconstructions takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from avpretrain.core.errors import UsageError
from avpretrain.data.read.clips import ClipSet
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model


def open_held_out(
    checkpoint: Path, shards: Sequence[str], split: str, count: int
) -> tuple[DiffMAViL, ClipSet, list[int]]:
    """The model on the GPU, if there is one; the clips of a split; and rows of at most `count`, spread over it evenly.

    Raises:
        UserError: no weights, or no such split.
        UsageError: the model predicts no patches.
    """
    model = load_model(checkpoint)
    if model.cfg.objective == "features":
        raise UsageError(f"{checkpoint} predicts a teacher's features, not patches, so it reconstructs nothing")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    clips = ClipSet(tuple(shards), split)
    taken = min(count, len(clips))
    return model, clips, [round(i * len(clips) / taken) for i in range(taken)]
