"""Pictures of results as PNG: confusion matrix, bars by class, map of embeddings, examples of retrieval.

N clips, C classes, D features, F spectrogram frames, M mel bins, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from avpretrain.core.files import atomic_path
from avpretrain.core.terminal import plain
from avpretrain.data.features import IMAGENET_MEAN, IMAGENET_STD
from avpretrain.evaluation.extract import Reading, clip_batches
from avpretrain.evaluation.frozen import ClipBatch, input_for
from avpretrain.evaluation.predictions import Predictions, class_values
from avpretrain.evaluation.retrieval.run import Retrieved
from avpretrain.measures.spectrograms import draw_spectrogram

INK, BAR, FAINT = "#22262e", "#3b6ea8", "#d5dae1"
GOOD, BAD = "#2f8f5b", "#b9bec7"
MARKERS = "o^sDPXv*<>"
MOST_NAMED = 54
"""Classes of a map up to which there is a legend."""
MOST_POINTS = 3000
"""Clips in a map; of more, every k-th is drawn."""


def save(figure: Figure, path: Path) -> None:
    """Writes a figure whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight", facecolor="white")


@rc_context({"text.parse_math": False})  # names may hold dollar signs
def draw_results(predictions: Predictions, features_ND: Tensor | None, title: str, stem: Path) -> list[Path]:
    """Writes STEM-confusion.png (single-label tasks), STEM-classes.png and STEM-map.png.

    Args:
        features_ND: of the test clips, in the order of `predictions`; none = no map.
    """
    drawn: dict[str, Figure] = {"classes": class_bars(predictions, title)}
    if predictions.target.ndim == 1:
        drawn["confusion"] = confusion_matrix(predictions, title)
    if predictions.target.ndim == 1 and features_ND is not None:
        drawn["map"] = embedding_map(features_ND, predictions.target.astype(np.int64), predictions.classes, title)
    paths = [stem.with_name(f"{stem.name}-{name}.png") for name in drawn]
    for figure, path in zip(drawn.values(), paths, strict=True):
        save(figure, path)
    return paths


def confusion_matrix(predictions: Predictions, title: str) -> Figure:
    """Share of each class's clips (row) that was taken for each class (column)."""
    classes = len(predictions.classes)
    said_N = predictions.scores_NC.argmax(axis=1)
    count_CC = np.zeros((classes, classes))
    np.add.at(count_CC, (predictions.target.astype(np.int64), said_N), 1)
    share_CC = count_CC / np.maximum(count_CC.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.42 * classes)
    figure = Figure(figsize=(side, side))
    axis = figure.add_subplot()
    axis.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    if classes <= 25:
        for row, column in zip(*np.nonzero(count_CC), strict=True):
            share = share_CC[row, column]
            colour = "white" if share > 0.55 else INK
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    size = max(3.0, min(9.0, 260 / classes))
    axis.set_xticks(range(classes), predictions.classes, rotation=90, fontsize=size)
    n_C = count_CC.sum(axis=1).astype(int)
    names = [f"{name} (n={n})" for name, n in zip(predictions.classes, n_C, strict=True)]
    axis.set_yticks(range(classes), names, fontsize=size)
    axis.set(xlabel="taken for", ylabel="is")
    accuracy = np.trace(count_CC) / max(1, count_CC.sum())
    subtitle = f"accuracy {accuracy:.1%}, n = {n_C.sum()}; cells: % of each class's clips"
    axis.set_title(f"{title}\n{subtitle}", fontsize=10, color=INK)
    axis.tick_params(length=0)
    axis.spines[:].set_color(FAINT)
    return figure


def class_bars(predictions: Predictions, title: str) -> Figure:
    """Accuracy of each class's clips (or its average precision), best first, with the number of clips."""
    names = np.array(predictions.classes)
    value_C, count_C = class_values(predictions)
    what = "accuracy" if predictions.target.ndim == 1 else "average precision"
    shown = [c for c in np.argsort(-np.nan_to_num(value_C), kind="stable") if count_C[c]]
    figure = Figure(figsize=(7, 1.0 + 0.24 * len(shown)))
    axis = figure.add_subplot()
    axis.barh(range(len(shown)), value_C[shown], color=BAR, height=0.7)
    for row, c in enumerate(shown):
        axis.text(value_C[c] + 0.01, row, f"{value_C[c]:.0%} of {count_C[c]}", va="center", fontsize=7, color=INK)
    axis.set_yticks(range(len(shown)), names[shown], fontsize=8)
    axis.set(xlim=(0, 1.16), ylim=(len(shown) - 0.4, -0.6), xticks=[0, 0.25, 0.5, 0.75, 1])
    axis.set_xticklabels(["0", "25%", "50%", "75%", "100%"], fontsize=8)
    axis.set_title(f"{title}: {what} by class", fontsize=10, color=INK)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(length=0)
    return figure


def embedding_map(x_ND: Tensor, target_N: NDArray[np.int64], classes: tuple[str, ...], title: str) -> Figure:
    """Standardised features in two dimensions, by PCA and by t-SNE, coloured by class."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    step = -(-len(x_ND) // MOST_POINTS)
    z_ND = x_ND.double().numpy()[::step]
    target_N = target_N[::step]
    z_ND = (z_ND - z_ND.mean(axis=0)) / np.maximum(z_ND.std(axis=0), 1e-9)
    few_ND = PCA(min(50, *z_ND.shape), random_state=0).fit_transform(z_ND)
    perplexity = max(2.0, min(30.0, (len(z_ND) - 1) / 3))
    maps = {"PCA": few_ND[:, :2], "t-SNE": TSNE(2, perplexity=perplexity, random_state=0).fit_transform(few_ND)}
    styles = palette(len(classes))
    columns = -(-len(classes) // 18) if len(classes) <= MOST_NAMED else 0
    figure = Figure(figsize=(11, 5))
    for place, (name, xy_N2) in enumerate(maps.items(), start=1):
        axis = figure.add_subplot(1, 2, place)
        for c, label in enumerate(classes):
            mine = xy_N2[target_N == c]
            colour, marker = styles[c]
            axis.scatter(mine[:, 0], mine[:, 1], s=16, color=[colour], marker=marker, label=label, alpha=0.85, lw=0)
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=9, color=INK)
        axis.spines[:].set_color(FAINT)
    if columns:
        figure.legend(*axis.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(0.91, 0.5), fontsize=8,
                      frameon=False, ncols=columns)  # fmt: skip
    figure.suptitle(f"{title}: frozen features of test clips", fontsize=10, color=INK)
    return figure


def palette(classes: int) -> list[tuple[tuple[float, float, float], str]]:
    """Colour (RGB) and marker of each class, all different: ten colours, then the same with another marker, and darker.

    More than ten hues can't be told apart.
    """
    styles = []
    for c in range(classes):
        turn, shade = c // 10, 0.85 ** (c // (10 * len(MARKERS)))
        r, g, b, _ = colormaps["tab10"](c % 10)
        styles.append(((r * shade, g * shade, b * shade), MARKERS[turn % len(MARKERS)]))
    return styles


def retrieval_strips(retrieved: Retrieved, path: Path) -> None:
    """Writes `retrieval_figure`."""
    save(retrieval_figure(retrieved), path)


@rc_context({"text.parse_math": False})  # names may hold dollar signs
def retrieval_figure(retrieved: Retrieved, queries: int = 4, shown: int = 5) -> Figure:
    """Both directions, a row a query: the query with its class, then what it found first, with rank and class.

    The query's own counterpart has a thick green frame; if it is not among the first, it stands last with its rank.
    """
    count = len(retrieved.rows)
    picked = [int(i) for i in np.linspace(0, count - 1, min(queries, count))]
    audio_ND, video_ND = (F.normalize(x.float(), dim=1) for x in (retrieved.audio_ND, retrieved.video_ND))
    ways = (
        ("audio", audio_ND, video_ND, retrieved.predictions.audio_to_video_N),
        ("video", video_ND, audio_ND, retrieved.predictions.video_to_audio_N),
    )
    hits = {
        way: (query_ND[picked] @ gallery_ND.T).topk(min(shown, count), dim=1).indices.tolist()
        for way, query_ND, gallery_ND, _ in ways
    }
    media = _thumbnails(retrieved, sorted({*picked, *(j for rows in hits.values() for row in rows for j in row)}))
    label = _classes(retrieved)
    columns, rows = 2 + min(shown, count), 2 * len(picked)
    figure = Figure(figsize=(1.5 * columns, 1.5 * rows + 0.7))
    grid = figure.add_gridspec(rows, columns, wspace=0.08, hspace=0.4)
    figure.subplots_adjust(top=1 - 0.75 / figure.get_figheight(), bottom=0.02, left=0.03, right=0.98)
    sample_rate = retrieved.model.cfg.input.sample_rate

    def cell(row: int, column: int, clip: int, audio: bool, words: str, own: bool, query: bool = False) -> None:
        axis = figure.add_subplot(grid[row, column])
        if audio:
            mel_FM = media[clip][0]
            limits = (float(np.quantile(mel_FM, 0.01)), float(np.quantile(mel_FM, 0.995)))
            draw_spectrogram(axis, mel_FM, len(mel_FM), limits, sample_rate, 0.2 if column < 2 else 1.0, size=5.0)
            axis.set_xticks([])
        else:
            axis.imshow(media[clip][1])
            axis.set(xticks=[], yticks=[])
        name = f"{words}{': ' if words and label[clip] else ''}{label[clip]}"
        axis.set_title(name if len(name) <= 24 else f"{name[:23]}\N{HORIZONTAL ELLIPSIS}", fontsize=7, pad=4,
                       color=GOOD if own and not query else INK)  # fmt: skip
        axis.spines[:].set(color=GOOD if own and not query else BAD, linewidth=3.5 if own and not query else 0.8)

    for block, (way, _, _, rank_N) in enumerate(ways):
        for i, query in enumerate(picked):
            row, audio = block * len(picked) + i, way == "video"
            cell(row, 0, query, not audio, f"{way} query", True, query=True)
            for k, hit in enumerate(hits[way][i], start=1):
                cell(row, k, hit, audio, f"{k}", hit == query)
            rank = rank_N[query]
            if query not in hits[way][i]:
                cell(row, columns - 1, query, audio, f"own, rank {rank:g}", True)
    recalls = [f"{way} finds {other}: R@1 {np.mean(rank_N <= 1):.0%}"
               for (way, _, _, rank_N), other in zip(ways, ("video", "audio"), strict=True)]  # fmt: skip
    figure.suptitle(f"among {count} clips; {'; '.join(recalls)}. Green: the query's own", fontsize=10, color=INK)
    return figure


def _classes(retrieved: Retrieved) -> dict[int, str]:
    """Item of the gallery -> its class: the label 'class', else the first that has one text; empty without any."""
    named = {}
    for i, row in enumerate(retrieved.rows):
        labels = retrieved.clips.clip(row).label_dict
        texts = {name: text for name, text in labels.items() if isinstance(text, str)}
        named[i] = plain(texts.get("class") or next(iter(texts.values()), ""))
    return named


def _thumbnails(retrieved: Retrieved, wanted: list[int]) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Spectrogram [F, M] and middle frame [H, W, 3] of gallery items."""
    reading = Reading(input_for(retrieved.model, retrieved.seconds), batch_size=16, num_workers=0)
    pictures: dict[int, tuple[Any, Any]] = {}
    of_row = {retrieved.rows[i]: i for i in wanted}
    for raw, batch in clip_batches(retrieved.clips, list(of_row), reading):
        for b, row in enumerate(raw.index_B.tolist()):
            pictures[of_row[row]] = _thumbnail(batch, b)
    return pictures


def _thumbnail(batch: ClipBatch, b: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    frame_CHW = batch.video_BTCHW[b, int(batch.video_frames_B[b]) // 2].cpu()
    rgb_HWC = frame_CHW.permute(1, 2, 0) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
    return batch.audio_BFM[b, : int(batch.audio_frames_B[b])].cpu().numpy(), rgb_HWC.clamp(0, 1).numpy()
