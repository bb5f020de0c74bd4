from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from avpretrain.cli.main import run
from avpretrain.evaluation.figures import class_bars, confusion_matrix, draw_results
from avpretrain.evaluation.predictions import Predictions
from avpretrain.evaluation.probe.run import random_encoder
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
    data = make_dataset(tmp_path / "set", [Spec(seconds=1.0, split="test", size=(32, 32)) for _ in range(8)])
    random_encoder(tiny(), seed=3).save_pretrained(tmp_path / "model")
    out = tmp_path / "r.json"
    run("retrieve", [str(tmp_path / "model"), str(data), "--pictures", "--num-workers", "0", "--out", str(out)])
    assert matplotlib.image.imread(tmp_path / "r-examples.png").shape[0] > 400
