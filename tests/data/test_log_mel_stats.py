"""Log-mel statistics at the model's own number of bins, and over several sets, against the values themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from avpretrain.cli.main import run
from avpretrain.config.model import InputConfig
from avpretrain.config.reader import to_dict
from avpretrain.config.train import DataConfig
from avpretrain.core.errors import UsageError
from avpretrain.data.decode import decode_audio
from avpretrain.data.features import log_mel
from avpretrain.data.read import log_mel_stats as module
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.read.log_mel_stats import log_mel_stats
from avpretrain.methods.diffmavil.config import ModelConfig, TrainConfig
from avpretrain.methods.diffmavil.method import resolve
from tests.support.tiny_datasets import Spec, make_dataset


def sharded(root: Path, lengths: list[float], tilt: float, seed: int) -> str:
    """Shards of coloured noise, one file for each length in seconds."""
    rng = np.random.default_rng(seed)
    (root / "in").mkdir(parents=True)
    for i, seconds in enumerate(lengths):
        spectrum = np.fft.rfft(rng.normal(size=round(16_000 * seconds)))
        wave = np.fft.irfft(spectrum * np.arange(1, len(spectrum) + 1) ** -(tilt + 0.05 * i))
        soundfile.write(root / "in" / f"{i}.wav", 0.3 * wave / np.abs(wave).max(), 16_000, subtype="PCM_16")
    run("shards", [str(root / "in"), str(root / "out"), "--workers", "1", "--clip-seconds", "0"])
    return str(root / "out")


def values(clips: ClipSet, mels: int, sample_rate: int = 16_000) -> torch.Tensor:
    found = []
    for row in range(len(clips)):
        wave = torch.from_numpy(decode_audio(clips.encoded(row).media.audio, sample_rate).astype(np.float32) / 32768)
        found.append(log_mel((wave - wave.mean())[None], mels, sample_rate).double().flatten())
    return torch.cat(found)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("sets")
    return sharded(root / "a", [1.0, 2.0, 1.5], 0.5, 0), sharded(root / "b", [6.0, 5.0], 1.0, 1)


@pytest.mark.parametrize(("mels", "rate"), [(128, 16_000), (64, 16_000), (80, 16_000), (32, 8_000)])
def test_statistics_are_those_of_the_values_that_the_model_sees(sets: tuple[str, str], mels: int, rate: int) -> None:
    clips = ClipSet(sets[:1], "all")
    expected = values(clips, mels, rate)
    mean, std = log_mel_stats(clips, mels, rate)
    assert mean == pytest.approx(float(expected.mean()), abs=2e-4)
    assert std == pytest.approx(float(expected.std(correction=0)), rel=1e-4)
    if mels == 64:  # what was taken before is off by more than a tenth of the model's unit
        assert abs(clips.log_mel[0] - mean) / (2 * std) > 0.08


def test_several_sets_are_pooled_over_their_values(sets: tuple[str, str]) -> None:
    """Three short clips and two long ones: by clips the mean would be far off."""
    clips = ClipSet(sets, "all")
    for mels in (128, 64):
        expected = values(clips, mels)
        mean, std = log_mel_stats(clips, mels, 16_000)
        assert mean == pytest.approx(float(expected.mean()), abs=5e-3)
        assert std == pytest.approx(float(expected.std(correction=0)), rel=5e-3)
    parts = [values(ClipSet([path], "all"), 128).mean() for path in sets]
    by_clips = float(parts[0] * 3 + parts[1] * 2) / 5
    assert abs(by_clips - clips.log_mel[0]) > 0.1


def test_summaries_without_sums_still_load(sets: tuple[str, str], tmp_path: Path) -> None:
    """They count by their clips, as long as the mean clip of the sets that have sums."""
    plain = make_dataset(tmp_path / "plain", [Spec()] * 4)  # mean -8, std 4
    assert ClipSet([str(plain)]).log_mel == pytest.approx((-8.0, 4.0))
    info = json.loads((Path(sets[0]) / "dataset.json").read_text())["log_mel"]
    assert ClipSet([str(plain), sets[0]], "all").log_mel[0] == pytest.approx((4 * -8.0 + 3 * info["mean"]) / 7)


def test_a_sample_corrects_what_all_clips_measured(sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    clips = ClipSet(sets[:1], "all")
    monkeypatch.setattr(module, "SAMPLED", 1)
    mean, std = log_mel_stats(clips, 64, 16_000)
    expected = values(clips, 64)
    assert mean == pytest.approx(float(expected.mean()), abs=0.05)
    assert std == pytest.approx(float(expected.std(correction=0)), rel=0.05)
    assert log_mel_stats(clips, 64, 16_000) == (mean, std)


def config(shards: str, folder: Path, **inputs: float) -> TrainConfig:
    model = ModelConfig(input=InputConfig(mels=64, **inputs))
    return TrainConfig(output_dir=str(folder), data=DataConfig(shards=(shards,)), model=model)


def test_a_run_resolves_them_and_keeps_those_it_began_with(sets: tuple[str, str], tmp_path: Path) -> None:
    """Runs of older versions began with what was measured at 128 bins; they go on with it."""
    clips = ClipSet(sets[:1], "all")
    cfg = config(sets[0], tmp_path)
    fresh = resolve(cfg, clips)
    assert (fresh.model.input.audio_mean, fresh.model.input.audio_std) == log_mel_stats(clips, 64, 16_000)
    old = dataclasses.replace(cfg.model.input, audio_mean=clips.log_mel[0], audio_std=clips.log_mel[1])
    begun = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, input=old))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(begun)))
    assert resolve(cfg, clips) == begun


def test_what_is_given_is_taken_even_where_there_is_no_audio(tmp_path: Path) -> None:
    silent = str(make_dataset(tmp_path / "silent", [Spec(sound=False)] * 2))
    given = config(silent, tmp_path / "run", audio_mean=-4.0, audio_std=4.5)
    assert resolve(given, ClipSet([silent])) == given
    with pytest.raises(UsageError, match="no clip has audio"):
        resolve(config(silent, tmp_path / "run"), ClipSet([silent]))
