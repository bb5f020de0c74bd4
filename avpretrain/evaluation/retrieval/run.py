"""Retrieval between sound and picture without training: does a clip's sound find its own picture among all others?

N queries, M gallery clips, D features, R weightings. Embeddings are what the contrastive loss compares: the mean over
patches of either encoder, by cosine similarity.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from avpretrain.config.train import mechanics
from avpretrain.core.errors import UserError
from avpretrain.data.read.clips import ClipSet
from avpretrain.evaluation.extract import Reading, extract, longest_clip
from avpretrain.evaluation.frozen import Embedder, FrozenEncoder, input_for
from avpretrain.evaluation.predictions import Ranks, difference
from avpretrain.evaluation.results import origin
from avpretrain.evaluation.settings import Pooling, Side
from avpretrain.evaluation.setup import random_encoder
from avpretrain.measures import intervals
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model

CUTOFFS = (1, 5, 10)
TIE = 1e-6
"""Similarities closer than this count as equal: what is left between them is rounding."""


def ranks(query_ND: Tensor, gallery_ND: Tensor, chunk: int = 4096) -> NDArray[np.float64]:
    """[N] rank of each query's own gallery item (the same row), 1 = first; of equals, the mean of their ranks.

    So an encoder that maps everything to one point gets chance, not a perfect score. Memory is chunk x chunk for any N.
    """
    query_ND, gallery_ND = (F.normalize(x.float(), dim=1) for x in (query_ND, gallery_ND))
    better_N = torch.zeros(len(query_ND), dtype=torch.float64)
    for start in range(0, len(query_ND), chunk):
        rows = slice(start, min(start + chunk, len(query_ND)))
        own_N = (query_ND[rows] * gallery_ND[rows]).sum(dim=1, keepdim=True)
        for part_MD in gallery_ND.split(chunk):
            ahead_NM = query_ND[rows] @ part_MD.T - own_N
            better_N[rows] += ((ahead_NM > TIE).sum(dim=1) + (ahead_NM.abs() <= TIE).sum(dim=1) / 2).cpu()
    return (better_N + 0.5).numpy()  # a query ties with its own item: half a place was counted for that


def scores(rank_N: NDArray[np.float64], gallery: int) -> dict[str, intervals.Statistic]:
    """Recall at 1, 5, 10 (as far as the gallery reaches) and the median rank, as functions of the queries' weights."""

    def recall(cutoff: int) -> intervals.Statistic:
        return lambda weight_RN: (weight_RN @ (rank_N <= cutoff)) / weight_RN.sum(axis=1)

    recalls = {f"recall_at_{k}": recall(k) for k in CUTOFFS if k < gallery}
    return {**recalls, "median_rank": lambda weight_RN: _weighted_median(rank_N, weight_RN)}


def _weighted_median(value_N: NDArray[np.float64], weight_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R] lower median of the values, each taken as often as its weight says."""
    order_N = np.argsort(value_N, kind="stable")
    share_RN = np.cumsum(weight_RN[:, order_N], axis=1) / weight_RN.sum(axis=1, keepdims=True)
    return value_N[order_N][(share_RN < 0.5 - 1e-12).sum(axis=1)]


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """What to search, and how."""

    split: str = "test"
    limit: int = 0
    """Clips in the gallery, evenly taken from the split; 0 = all."""
    max_seconds: float = 30.0
    baselines: bool = True
    batch_size: int = mechanics(32)
    """Clips at a time on each device."""
    num_workers: int = mechanics(2)
    """Processes that decode, for each rank."""
    seed: int = 0


@dataclass(frozen=True)
class Retrieved:
    """A result, and the embeddings behind it."""

    result: dict[str, Any]
    predictions: Ranks
    model: DiffMAViL
    clips: ClipSet
    rows: list[int]
    """Rows of the gallery."""
    seconds: float
    """Room for the longest clip."""
    audio_ND: Tensor
    video_ND: Tensor


def run_retrieval(checkpoint: Path, shards: tuple[str, ...], cfg: RetrievalConfig) -> Retrieved:
    """Embeds the clips of a split that have both modalities, and lets each modality search the other.

    Raises:
        UserError: no weights, no such split, or fewer than two clips with sound and picture.
    """
    model = load_model(checkpoint)
    clips = ClipSet(shards, cfg.split)
    wanted = list(range(len(clips)))[:: max(1, len(clips) // cfg.limit) if cfg.limit else 1][: cfg.limit or None]
    seconds = longest_clip(clips, wanted, cfg.max_seconds)
    reading = Reading(input_for(model, seconds), "both", cfg.batch_size, cfg.num_workers)
    models = {"encoder": model} | ({"random_encoder": random_encoder(model.cfg, cfg.seed)} if cfg.baselines else {})
    extracted = extract(_both_sides(models), clips, wanted, reading)
    usable = np.flatnonzero(extracted.usable_N("both"))
    if len(usable) < 2:
        raise UserError(
            f"retrieval needs at least 2 clips whose audio and video could be read; of the {len(wanted)} clips of "
            f"split '{cfg.split}' there are {len(usable)}; 'avpretrain inspect DATA --verify' names damaged ones"
        )
    sides = {
        name: (extracted.features[f"{name} audio"][usable], extracted.features[f"{name} video"][usable])
        for name in models
    }
    keys = tuple(clips.clip(wanted[i]).key for i in usable)
    ranked = {name: Ranks(keys, ranks(a_ND, v_ND), ranks(v_ND, a_ND)) for name, (a_ND, v_ND) in sides.items()}
    ours = ranked.pop("encoder")
    baselines = {name: _both_directions(theirs, cfg.seed) | _ahead(ours, theirs, cfg.seed)
                 for name, theirs in ranked.items()}  # fmt: skip
    result = {
        "task": "retrieval",
        "label": cfg.split,
        **_both_directions(ours, cfg.seed),
        "baselines": {**baselines, "chance": _chance(len(usable))},
        "gallery": len(usable),
        "left_out": len(wanted) - len(usable),
        "retrieval": asdict(cfg),
        **origin(checkpoint, model, clips, shards, cfg.seed),
    }
    return Retrieved(result, ours, model, clips, [wanted[i] for i in usable], seconds, *sides["encoder"])


def _both_sides(models: dict[str, DiffMAViL]) -> dict[str, Embedder]:
    """'NAME audio' and 'NAME video' of each model."""
    sides: tuple[Side, Side] = ("audio", "video")
    return {f"{name} {side}": FrozenEncoder(model, side, Pooling()) for name, model in models.items() for side in sides}


def _both_directions(ranked: Ranks, seed: int) -> dict[str, Any]:
    """Scores of either direction, and as the headline recall at 1, averaged over the two."""
    directions: dict[str, Any] = {}
    rank = {"audio_to_video": ranked.audio_to_video_N, "video_to_audio": ranked.video_to_audio_N}
    for direction, rank_N in rank.items():
        estimates = {
            name: intervals.estimate(score, len(rank_N), seed, intervals.wilson if name.startswith("recall") else None)
            for name, score in scores(rank_N, len(rank_N)).items()
        }
        directions[direction] = {
            **{name: estimate.value for name, estimate in estimates.items()},
            "cis": {name: list(estimate.ci) for name, estimate in estimates.items()},
        }
    both = intervals.estimate(ranked.statistic(ranked.metric), len(ranked.keys), seed, intervals.wilson)
    return {"metric": ranked.metric, ranked.metric: both.value, "ci": list(both.ci), **directions}


def _ahead(ours: Ranks, theirs: Ranks, seed: int) -> dict[str, Any]:
    """Headline of ours less theirs, paired by clip."""
    gain = difference(ours, theirs, seed)
    return {"difference": gain.value, "difference_ci": list(gain.ci)}


def _chance(gallery: int) -> dict[str, Any]:
    """What guessing gets."""
    direction = {f"recall_at_{k}": k / gallery for k in CUTOFFS if k < gallery} | {
        "median_rank": math.ceil(gallery / 2)
    }
    return {
        "metric": "recall_at_1",
        "recall_at_1": 1 / gallery,
        **dict.fromkeys(("audio_to_video", "video_to_audio"), direction),
    }
