"""The HEAR interface: what the benchmark's own validator checks, and what it does not."""

from pathlib import Path

import pytest
import torch

from avpretrain import hear
from avpretrain.core.errors import UserError
from avpretrain.evaluation.setup import random_encoder
from tests.support.tiny_models import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_encoder(tiny(), seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> hear.HearModel:
    return hear.load_model(str(folder))


def noise(sounds: int, seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(sounds, int(seconds * 16_000), generator=generator) * 2 - 1


def test_attributes(model: hear.HearModel) -> None:
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in (16_000, 22_050, 32_000, 44_100, 48_000)
    assert isinstance(model.scene_embedding_size, int)
    assert isinstance(model.timestamp_embedding_size, int)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.07, 1.98, 2.74, 30.0])
def test_shapes_and_timestamps(model: hear.HearModel, seconds: float) -> None:
    audio = noise(2, seconds)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (*timestamps.shape, model.timestamp_embedding_size)
    assert embeddings.dtype == torch.float32 and len(embeddings) == 2
    assert torch.equal(timestamps[0], timestamps[1])
    gaps = timestamps.diff(dim=1)
    assert ((gaps - 40).abs() < 1e-2).all()  # regular, at most 50 ms
    assert 0 <= timestamps.min() <= 40
    if seconds > 0.04:
        assert 1000 * seconds - 50 <= timestamps.max() <= 1000 * seconds
    scene = hear.get_scene_embeddings(audio, model)
    assert scene.shape == (2, model.scene_embedding_size)
    assert scene.dtype == torch.float32 and torch.isfinite(scene).all()


def test_embeddings_do_not_depend_on_the_batch(model: hear.HearModel) -> None:
    audio = noise(5, 1.3)
    together, _ = hear.get_timestamp_embeddings(audio, model)
    alone, _ = hear.get_timestamp_embeddings(audio[3:4], model)
    torch.testing.assert_close(together[3:4], alone, atol=1e-5, rtol=0)
    scene = hear.get_scene_embeddings(audio, model)[3:4]
    torch.testing.assert_close(scene, hear.get_scene_embeddings(audio[3:4], model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("at_ms", [200, 517, 840, 1210])
def test_timestamps_are_centred_on_what_they_describe(model: hear.HearModel, at_ms: int) -> None:
    """A click changes most the embedding whose timestamp is nearest to it."""
    quiet = 0.01 * noise(1, 1.6)
    click = quiet.clone()
    middle = at_ms * 16
    click[:, middle - 80 : middle + 80] = noise(1, 0.01, seed=5)
    before, timestamps = hear.get_timestamp_embeddings(quiet, model)
    after, _ = hear.get_timestamp_embeddings(click, model)
    # Only the patch embedding is local; the encoder's attention spreads a click over its window.
    changed_T = (after - before).norm(dim=-1)[0]
    top = timestamps[0, changed_T.topk(4).indices]
    assert (top - at_ms).abs().max() <= 100


def test_timestamps_do_not_drift(model: hear.HearModel) -> None:
    _, timestamps = hear.get_timestamp_embeddings(noise(1, 120.0), model)
    assert timestamps[0, -1] == pytest.approx(7.5 + 40 * (timestamps.shape[1] - 1), abs=1e-2)
    assert timestamps.shape[1] == 3000


def test_checkpoint_by_file_folder_or_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = noise(1, 0.5)
    monkeypatch.setenv("AVPRETRAIN_CHECKPOINT", str(folder))
    models = [hear.load_model(str(folder)), hear.load_model(str(folder / "model.safetensors")), hear.load_model()]
    first, *others = (hear.get_scene_embeddings(audio, m) for m in models)
    assert all(torch.equal(first, other) for other in others)
    monkeypatch.delenv("AVPRETRAIN_CHECKPOINT")
    with pytest.raises(UserError, match="name a checkpoint"):
        hear.load_model()


def test_wrong_shape_is_an_error(model: hear.HearModel) -> None:
    with pytest.raises(ValueError, match=r"\[clips, samples\]"):
        hear.get_scene_embeddings(torch.zeros(16_000), model)
