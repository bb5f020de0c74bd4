"""Synthetic scenes: real files, the same bytes for the same seed, and classes known by their pattern in time alone."""

from __future__ import annotations

import collections
import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.choices import Limits
from avpretrain.data.features import log_mel
from avpretrain.data.media import Source
from avpretrain.data.scenes.make import make_scenes, write_mp4
from avpretrain.data.scenes.scene import (
    CLASSES,
    SAMPLE_RATE,
    SceneSettings,
    class_and_split,
    describe,
    scene_frames,
    scene_sound,
)

SMALL = SceneSettings(seconds=1.0, size=32, fps=8)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_are_h264_and_aac_of_the_asked_form(scenes: Path) -> None:
    with (scenes / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == set(CLASSES)
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    for row in rows[:6]:
        with av.open(str(scenes / row["file"])) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, video.pix_fmt, video.width, video.height) == ("h264", "yuv420p", 64, 64)
            assert (audio.codec_context.name, audio.rate, audio.layout.name) == ("aac", SAMPLE_RATE, "mono")
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
            container.seek(0)
            samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio)])
        assert len(frames) == 16
        assert 2.0 * SAMPLE_RATE <= len(samples) <= 2.2 * SAMPLE_RATE
        assert 0.01 < np.abs(samples).max() <= 1.1
        assert max(np.abs(a.astype(int) - b).max() for a, b in itertools.pairwise(frames)) > 40  # it moves


def test_audio_stands_where_it_was_rendered(tmp_path: Path) -> None:
    """The codec's own delay is no part of the recording: a click at 0.5 s is decoded at 0.5 s."""
    wave_S = np.zeros(SAMPLE_RATE, np.float32)
    wave_S[SAMPLE_RATE // 2 :][:32] = 0.9
    write_mp4(tmp_path / "a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 10, 10, wave_S, SAMPLE_RATE)
    heard = Source(tmp_path / "a.mp4", None, Limits()).sound(SAMPLE_RATE)
    assert heard is not None
    assert abs(int(np.abs(heard.astype(float)).argmax()) - SAMPLE_RATE // 2) < 160


def test_picture_and_sound_tell_of_the_same_impact() -> None:
    settings = SceneSettings(seconds=2.0, size=64, fps=60)
    index = next(i for i in range(100) if (s := describe(settings, i)).name == "dribble" and s.material == "stone")
    scene = describe(settings, index)
    sound, body = scene_sound(settings, scene), scene.motion.bodies[0]
    height_K = body.path_K3[:, 1]
    lows = [k / 240 for k in range(24, len(height_K) - 24) if height_K[k] == height_K[k - 24 : k + 25].min()]
    assert len(lows) >= 6
    power = sound**2
    for low in lows:
        at = round(low * SAMPLE_RATE)
        assert power[at : at + 480].mean() > 3 * power[at - 480 : at - 80].mean()


def test_bytes_depend_on_the_seed_alone(tmp_path: Path) -> None:
    make_scenes(tmp_path / "one", 9, SMALL)
    make_scenes(tmp_path / "two", 9, SMALL, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    make_scenes(tmp_path / "grown", 4, SMALL)
    make_scenes(tmp_path / "grown", 9, SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "grown")
    make_scenes(tmp_path / "other", 2, SceneSettings(seed=1, seconds=1.0, size=32, fps=8))
    clip = "clips/000000.mp4"
    assert contents(tmp_path / "one")[clip] != contents(tmp_path / "other")[clip]


def test_goes_on_after_an_interruption(tmp_path: Path) -> None:
    def stop() -> None:
        if len(list((tmp_path / "cut/clips").glob("*.mp4"))) == 3:
            raise KeyboardInterrupt

    make_scenes(tmp_path / "whole", 6, SMALL)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "cut", 6, SMALL, on_clip=stop)
    assert not (tmp_path / "cut/labels.csv").exists()
    left = tmp_path / "cut/clips/.000004.mp4.x.tmp"
    left.mkdir()
    (left / "000004.mp4").write_bytes(b"half")
    kept = (tmp_path / "cut/clips/000001.mp4").stat().st_mtime_ns
    make_scenes(tmp_path / "cut", 6, SMALL)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert (tmp_path / "cut/clips/000001.mp4").stat().st_mtime_ns == kept


def test_every_class_is_split_alike() -> None:
    pairs = [class_and_split(SceneSettings(), index) for index in range(100 * len(CLASSES))]
    counts = collections.Counter(pairs)
    for name in CLASSES:
        assert sum(counts[name, split] for split in ("train", "val", "test")) == 100
        assert abs(counts[name, "val"] - 10) <= 2
        assert abs(counts[name, "test"] - 10) <= 2
    few = collections.Counter(split for _, split in pairs[: 2 * len(CLASSES)])
    assert few["val"] >= 1
    assert few["test"] >= 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out: (out / "synth.json").unlink(), "not empty"),
        (lambda out: make_scenes(out, 2, SceneSettings(seed=7, seconds=1.0, size=32, fps=8)), "other settings"),
        (lambda out: make_scenes(out, 1, SMALL), "already holds 2 clips"),
    ],
)
def test_refuses_a_folder_that_is_not_its_own(tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    make_scenes(tmp_path, 2, SMALL)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=said):
        change(tmp_path)
        make_scenes(tmp_path, 2, SMALL)
    assert all(before[name] == data for name, data in contents(tmp_path).items())


def test_refuses_what_cannot_be_rendered(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        make_scenes(tmp_path / "file", 1, SMALL)
    for wrong in ({"size": 33}, {"seconds": 0.2}, {"fps": 0}, {"seed": -1}, {"val_share": 0.6, "test_share": 0.5}):
        with pytest.raises(UsageError):
            SceneSettings(**wrong)
    with pytest.raises(UsageError):
        make_scenes(tmp_path / "none", 0, SMALL)
    assert not (tmp_path / "none").exists()


def test_command_prints_json_and_one_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--clips", "3", "--seconds", "1", "--size", "32", "--fps", "8", "--workers", "1"]
    main(["synth", str(tmp_path / "out"), *options, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["clips"] == sum(answer["splits"].values()) == sum(answer["classes"].values()) == 3
    with pytest.raises(SystemExit) as stop:
        main(["synth", str(tmp_path / "out"), *options, "--seed", "1"])
    assert stop.value.code == 1
    with pytest.raises(SystemExit) as stop:
        main(["synth", str(tmp_path / "new"), "--size", "31"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert not (tmp_path / "new").exists()


# --- what gives a class away -----------------------------------------------------------------------------------------


def accuracy(features_ND: np.ndarray, labels_N: list[str]) -> float:
    """Of logistic regression, over four folds."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=300))
    return float(cross_val_score(model, features_ND, labels_N, cv=4).mean())


def rhythm_and_melody(mel_FM: np.ndarray) -> np.ndarray:
    """How a spectrogram resembles itself later and at another pitch, and whether loud onsets come before soft ones."""
    mel = mel_FM - mel_FM.mean(axis=0)
    mel /= np.sqrt(np.mean(mel**2))
    similar = np.fft.irfft2(np.abs(np.fft.rfft2(mel, (1024, 128))) ** 2) / mel.size
    similar = np.roll(similar, 16, axis=1)[:75:3, :33]
    onset = np.maximum(np.diff(mel, axis=0), 0).mean(axis=1)
    onset = (onset - onset.mean()) / onset.std()
    plain, squared = np.fft.rfft(onset, 1024), np.fft.rfft(onset**2, 1024)
    order = np.fft.irfft(plain * squared.conj()) / len(onset)
    again = np.fft.irfft(np.abs(plain) ** 2) / len(onset)
    return np.concatenate([similar.ravel(), order[:75], order[-75:], again[:75]])


@pytest.mark.slow
def test_classes_are_patterns_in_time_not_colours_or_spectra() -> None:
    settings = SceneSettings(size=32, fps=1)
    scenes = [describe(settings, index) for index in range(40 * len(CLASSES))]
    labels = [scene.name for scene in scenes]
    waves = torch.from_numpy(np.stack([scene_sound(settings, scene) for scene in scenes]))
    mels = log_mel(waves - waves.mean(dim=1, keepdim=True), 64, SAMPLE_RATE).numpy()
    colours = np.array([np.mean(list(scene_frames(settings, scene)), axis=(0, 1, 2)) for scene in scenes])
    assert accuracy(colours, labels) < 0.25
    assert accuracy(mels.mean(axis=1), labels) < 0.4
    assert accuracy(np.array([rhythm_and_melody(mel) for mel in mels]), labels) > 0.85
