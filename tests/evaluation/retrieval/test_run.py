import json
from pathlib import Path

import numpy as np
import pytest
import torch

from avpretrain.cli.main import run
from avpretrain.core.errors import UserError
from avpretrain.evaluation.retrieval.run import RetrievalConfig, ranks, run_retrieval, scores
from avpretrain.evaluation.setup import random_encoder
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny


def naive_ranks(query_ND: np.ndarray, gallery_ND: np.ndarray) -> np.ndarray:
    query_ND, gallery_ND = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query_ND, gallery_ND))
    similarity_NN = query_ND @ gallery_ND.T
    return 1 + (similarity_NN > np.diag(similarity_NN)[:, None]).sum(axis=1)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunked_ranks_equal_the_plain_ones(chunk: int) -> None:
    rng = np.random.default_rng(0)
    audio_ND = rng.normal(size=(150, 8))
    video_ND = audio_ND + rng.normal(size=(150, 8))
    found = ranks(torch.from_numpy(audio_ND), torch.from_numpy(video_ND), chunk)
    np.testing.assert_array_equal(found, naive_ranks(audio_ND, video_ND))


def test_a_collapsed_encoder_gets_chance() -> None:
    same_ND = torch.ones(99, 16) + 1e-8 * torch.randn(99, 16)
    assert (ranks(same_ND, same_ND) == 50).all()


def test_scores_of_known_ranks() -> None:
    rank_N = np.array([1.0, 1.0, 3.0, 6.0, 40.0])
    once = np.ones((1, 5))
    found = {name: float(score(once)[0]) for name, score in scores(rank_N, gallery=50).items()}
    assert found == {"recall_at_1": 0.4, "recall_at_5": 0.6, "recall_at_10": 0.8, "median_rank": 3.0}
    assert set(scores(rank_N, gallery=8)) == {"recall_at_1", "recall_at_5", "median_rank"}


def test_median_follows_weights() -> None:
    weight_RN = np.array([[0.0, 0.0, 0.0, 0.0, 5.0], [3.0, 0.0, 1.0, 1.0, 0.0]])
    assert scores(np.array([1.0, 2.0, 3.0, 6.0, 40.0]), 50)["median_rank"](weight_RN).tolist() == [40.0, 1.0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    specs = [Spec(seconds=1.0, split="test", size=(32, 32), sound=i != 3) for i in range(12)]
    return str(make_dataset(tmp_path_factory.mktemp("data") / "set", [*specs, Spec(split="val", picture=False)]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_encoder(tiny(), seed=3).save_pretrained(folder)
    return folder


def test_verb_writes_both_directions_beside_chance(
    data: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    run("retrieve", [str(checkpoint), data, "--json", "--num-workers", "0", "--out", str(out)])
    result = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == result
    assert (result["gallery"], result["left_out"]) == (11, 1)
    assert result["baselines"]["chance"]["recall_at_1"] == 1 / 11
    both = [result[direction]["recall_at_1"] for direction in ("audio_to_video", "video_to_audio")]
    assert result["recall_at_1"] == pytest.approx(sum(both) / 2)


def test_too_few_clips_is_an_error(data: str, checkpoint: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"at least 2 clips whose audio and video could be read; of the 1 clips of split 'val' there are 0",
    ):
        run_retrieval(checkpoint, (data,), RetrievalConfig(split="val", num_workers=0))
