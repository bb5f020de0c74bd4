from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from avpretrain.cli.main import run
from avpretrain.evaluation.figures import class_bars, confusion_matrix, draw_results, palette, retrieval_figure
from avpretrain.evaluation.predictions import Predictions
from avpretrain.evaluation.retrieval.run import RetrievalConfig, run_retrieval
from avpretrain.evaluation.setup import random_encoder
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny


def predictions(multi_label: bool = False) -> Predictions:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 60)
    scores_NC = np.eye(3)[target] + rng.normal(scale=0.5, size=(60, 3))
    wanted = np.eye(3, dtype=bool)[target] if multi_label else target
    return Predictions(tuple(map(str, range(60))), ("bell", "drum", "rain"), scores_NC, wanted)


def test_confusion_matrix_shows_shares_of_each_class() -> None:
    found = predictions()
    (axis,) = confusion_matrix(found, "t").axes
    shares = axis.images[0].get_array()
    assert shares is not None
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    said = found.scores_NC.argmax(axis=1)
    assert shares[1, 2] == pytest.approx(((found.target == 1) & (said == 2)).sum() / (found.target == 1).sum())


def test_confusion_matrix_says_accuracy_and_n() -> None:
    found = predictions()
    (axis,) = confusion_matrix(found, "t").axes
    right = float((found.scores_NC.argmax(axis=1) == found.target).mean())
    assert f"accuracy {right:.1%}, n = 60" in axis.get_title()
    counts = [f"{name} (n={int((found.target == c).sum())})" for c, name in enumerate(found.classes)]
    assert [label.get_text() for label in axis.get_yticklabels()] == counts


@pytest.mark.parametrize("classes", [3, 12, 40, 200])
def test_every_class_of_a_map_looks_different(classes: int) -> None:
    assert len(set(palette(classes))) == classes


def test_names_are_no_formulas(tmp_path: Path) -> None:
    found = predictions()
    named = Predictions(found.keys, ("$\\frac$", "$_$", "a"), found.scores_NC, found.target)
    draw_results(named, None, "$\\frac$", tmp_path / "probe")


def test_bars_are_sorted_and_hold_each_class() -> None:
    for multi_label in (False, True):
        (axis,) = class_bars(predictions(multi_label), "t").axes
        widths = [bar.get_width() for bar in axis.patches]
        assert widths == sorted(widths, reverse=True) and len(widths) == 3


@pytest.mark.parametrize("multi_label", [False, True])
def test_files_are_pictures(tmp_path: Path, multi_label: bool) -> None:
    features_ND = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    paths = draw_results(predictions(multi_label), features_ND, "bell from audio", tmp_path / "probe")
    names = ["probe-classes.png"] if multi_label else ["probe-classes.png", "probe-confusion.png", "probe-map.png"]
    assert [path.name for path in paths] == names
    for path in paths:
        assert matplotlib.image.imread(path).std() > 0.02


def test_retrieval_strips(tmp_path: Path) -> None:
    kinds = ("bell", "rain")
    specs = [Spec(seconds=1.0, split="test", size=(32, 32), label=kinds[i % 2]) for i in range(8)]
    data = make_dataset(tmp_path / "set", specs)
    random_encoder(tiny(), seed=3).save_pretrained(tmp_path / "model")
    found = run_retrieval(tmp_path / "model", (str(data),), RetrievalConfig(num_workers=0, baselines=False))
    figure = retrieval_figure(found, queries=2, shown=3)
    titles = [axis.get_title() for axis in figure.axes]
    for way, rank_N in (("audio", found.predictions.audio_to_video_N), ("video", found.predictions.video_to_audio_N)):
        queries = [i for i, title in enumerate(titles) if title.startswith(f"{way} query")]
        assert [titles[i] for i in queries] == [f"{way} query: bell", f"{way} query: rain"]  # clips 0 and 7
        for i, query in zip(queries, (0, 7), strict=True):
            assert [title.split(":")[0] for title in titles[i + 1 : i + 4]] == ["1", "2", "3"]
            hits = [a for a in figure.axes[i + 1 : i + 5] if max(s.get_linewidth() for s in a.spines.values()) > 3]
            rank = rank_N[query]
            (own,) = hits[:1]
            expected = f"{rank:g}" if rank <= 3 else f"own, rank {rank:g}"
            assert own.get_title() == f"{expected}: {kinds[query % 2]}"
    out = tmp_path / "r.json"
    run("retrieve", [str(tmp_path / "model"), str(data), "--pictures", "--num-workers", "0", "--out", str(out)])
    assert matplotlib.image.imread(tmp_path / "r-examples.png").shape[0] > 400
