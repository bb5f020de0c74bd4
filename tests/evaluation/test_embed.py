from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from avpretrain.cli.main import run
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.container import DecodeError
from avpretrain.data.read.clips import ClipSet
from avpretrain.evaluation.extract import Reading, extract
from avpretrain.evaluation.frozen import FrozenEncoder, Pooling, input_for
from avpretrain.evaluation.longform import embed_file
from avpretrain.evaluation.setup import random_encoder
from avpretrain.methods.diffmavil.model import DiffMAViL
from tests.support.tiny_datasets import FPS, SAMPLE_RATE, Spec, make_dataset, mp4, picture, tone
from tests.support.tiny_models import tiny


@pytest.fixture(scope="module")
def model() -> DiffMAViL:
    return random_encoder(tiny(), seed=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for seconds in (0.3, 1.0, 30.0):
        soundfile.write(folder / f"{seconds}.flac", tone(3, seconds), SAMPLE_RATE)
    (folder / "silent.mp4").write_bytes(mp4(picture(2, 6.0, (48, 64))))
    (folder / "broken.mp4").write_bytes(b"not a video")
    return folder


@pytest.mark.parametrize("seconds", [0.3, 1.0, 30.0])
def test_any_length_gives_one_vector(model: DiffMAViL, files: Path, seconds: float) -> None:
    (row,) = embed_file(model, files / f"{seconds}.flac", "audio", "file")
    assert (row.modality, row.start, row.end) == ("audio", 0.0, pytest.approx(seconds, abs=1e-3))
    assert row.embedding_D.shape == (48,) and np.isfinite(row.embedding_D).all()


def test_file_is_the_mean_of_its_steps_and_windows_cover_it(model: DiffMAViL, files: Path) -> None:
    path = files / "30.0.flac"
    steps, parts = (embed_file(model, path, "audio", per) for per in ("step", "window"))
    (whole,) = embed_file(model, path, "audio", "file")
    np.testing.assert_allclose(np.mean([r.embedding_D for r in steps], axis=0), whole.embedding_D, atol=1e-5)
    assert len(steps) == 187  # 2998 frames of 10 ms in steps of 16
    assert len(parts) == 47  # of at most 4 steps
    for rows in (steps, parts):
        assert all(a.end == b.start for a, b in pairwise(rows))
        assert rows[-1].end == pytest.approx(30.0)


def test_equal_to_what_the_probe_sees(model: DiffMAViL, tmp_path: Path) -> None:
    """The same second of sound and picture, as a file and as a clip of a shard."""
    data = ClipSet([str(make_dataset(tmp_path / "set", [Spec(seconds=3.0, size=(32, 32))]))], "all")
    encoder = FrozenEncoder(model, "both", Pooling())
    clip = extract({"x": encoder}, data, [0], Reading(input_for(model, 3.0), num_workers=0)).features["x"][0]
    (tmp_path / "a.mp4").write_bytes(data.encoded(0).media.video)
    (tmp_path / "a.flac").write_bytes(data.encoded(0).media.audio)
    (sound,) = embed_file(model, tmp_path / "a.flac", "audio", "file")
    (video,) = embed_file(model, tmp_path / "a.mp4", "video", "file")
    np.testing.assert_allclose(sound.embedding_D, clip[:48], atol=1e-4)
    np.testing.assert_allclose(video.embedding_D, clip[48:], atol=1e-4)


def test_video_steps_follow_the_clock(model: DiffMAViL, files: Path) -> None:
    rows = embed_file(model, files / "silent.mp4", "both", "step")
    assert {row.modality for row in rows} == {"video"}
    assert [row.start for row in rows] == [float(i) for i in range(6)]  # tubelets of 2 frames at 2 a second
    assert rows[-1].end == pytest.approx(6.0)
    assert len(picture(2, 6.0, (48, 64))) == FPS * 6


def test_missing_modality_is_said(model: DiffMAViL, files: Path) -> None:
    with pytest.raises(DecodeError, match="has no sound"):
        embed_file(model, files / "silent.mp4", "audio", "file")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_table_holds_what_could_be_read(
    model: DiffMAViL, files: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / f"x{suffix}"
    names = ["1.0.flac", "broken.mp4", "silent.mp4"]
    run("embed", [str(tmp_path / "model"), *(str(files / name) for name in names), "--out", str(out)])
    said = capsys.readouterr().err
    assert "broken.mp4" in said and "2 embeddings of 2 files" in said
    if suffix == ".npz":
        table = dict(np.load(out))
        embedding = table["embedding"]
    else:
        columns = pq.read_table(out).to_pydict()
        table = {name: np.array(values) for name, values in columns.items()}
        embedding = np.array(columns["embedding"], dtype=np.float32)
    assert table["modality"].tolist() == ["audio", "video"]
    assert [Path(name).name for name in table["path"].tolist()] == ["1.0.flac", "silent.mp4"]
    (row,) = embed_file(model, files / "1.0.flac", "audio", "file")
    np.testing.assert_allclose(embedding[0], row.embedding_D, atol=1e-6)


def test_wrong_use_is_one_line(model: DiffMAViL, files: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=r"\.npz or \.parquet"):
        run("embed", [str(tmp_path / "model"), str(files / "1.0.flac"), "--out", str(tmp_path / "x.csv")])
    with pytest.raises(UserError, match="none of the 1 files"):
        run("embed", [str(tmp_path / "model"), str(files / "broken.mp4"), "--out", str(tmp_path / "x.npz")])
    assert not (tmp_path / "x.npz").exists()


def test_a_sound_shorter_than_one_frame_still_has_a_vector(model: DiffMAViL, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", torch.zeros(100).numpy(), SAMPLE_RATE)
    (row,) = embed_file(model, tmp_path / "short.wav", "audio", "file")
    assert np.isfinite(row.embedding_D).all()
