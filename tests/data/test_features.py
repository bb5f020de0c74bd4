from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from avpretrain.config.model import InputConfig
from avpretrain.config.train import AugmentConfig
from avpretrain.core.draws import sample_seed
from avpretrain.core.errors import UsageError
from avpretrain.data import augment
from avpretrain.data.batch import RawBatch
from avpretrain.data.features import IMAGENET_MEAN, IMAGENET_STD, Features, centred, frame_counts, log_mel
from tests.support.real_data import REAL_DATA, needs_real_data

INPUT = InputConfig(
    audio_frames=64, mels=128, video_frames=3, video_fps=2.0, video_size=24, audio_mean=-7.0, audio_std=4.0
)
SAMPLES = round(INPUT.audio_seconds * 16_000)
STRONG = AugmentConfig(crop_scale=(0.2, 1.0), gain_db=6.0, time_shift=0.3)


def kaldi(waveform_S: Tensor, mels: int = 128) -> Tensor:
    return torchaudio.compliance.kaldi.fbank(
        waveform_S[None],
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=mels,
        dither=0.0,
        frame_length=25,
        frame_shift=10,
    )


def real_sounds() -> list[Path]:
    sounds = [path for name in ("esc10", "fsdd") for path in sorted((REAL_DATA / name).rglob("*.flac"))[::60]]
    assert sounds, f"no sound in {REAL_DATA}"
    return sounds


def assert_equal_to_kaldi(wave_S: Tensor, mels: int = 128) -> None:
    """Within 1e-4 of the value; near 0, where the logarithm changes sign, within 1e-5."""
    torch.testing.assert_close(log_mel(wave_S[None], mels)[0], kaldi(wave_S, mels), rtol=1e-4, atol=1e-5)


def raw_batch(sizes: list[tuple[int, int]], samples: list[int], seed: int = 0) -> RawBatch:
    """Clips of noise, padded to the largest; padding holds garbage where a real batch has zeros."""
    rng = np.random.default_rng(seed)
    height, width = (max(1, *(size[axis] for size in sizes)) for axis in (0, 1))
    frames = np.zeros((len(sizes), INPUT.video_frames, height, width, 3), np.uint8)
    waveform = np.zeros((len(sizes), SAMPLES), np.int16)
    for b, (h, w) in enumerate(sizes):
        own = np.random.default_rng(seed + b)
        frames[b, :, :h, :w] = own.integers(0, 256, (INPUT.video_frames, h, w, 3))
        waveform[b, : samples[b]] = own.normal(300, 3000, samples[b]).astype(np.int16)
        frames[b, :, h:] = frames[b, :, :, w:] = rng.integers(0, 256)
    return RawBatch(
        waveform_BS=torch.from_numpy(waveform),
        samples_B=torch.tensor(samples),
        frames_BTHWC=torch.from_numpy(frames),
        size_B2=torch.tensor(sizes),
        seed_B=torch.tensor([sample_seed(seed, 0, b) for b in range(len(sizes))]),
        index_B=torch.arange(len(sizes)),
    )


def row(raw: RawBatch, b: int) -> RawBatch:
    """One clip as a batch of its own, without the padding its neighbours caused."""
    one = replace(
        raw, **{f.name: getattr(raw, f.name)[b : b + 1] for f in fields(raw) if f.name[-1].isupper() or "_" in f.name}
    )
    height, width = (max(1, int(x)) for x in raw.size_B2[b])
    return replace(one, frames_BTHWC=one.frames_BTHWC[:, :, :height, :width])


MIXED = raw_batch([(30, 40), (24, 24), (64, 26), (0, 0), (25, 90)], [SAMPLES, 5000, SAMPLES, 399, 0])


# --- sound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mels", [40, 64, 128])
def test_log_mel_equals_kaldi_on_noise_and_tones(mels: int) -> None:
    t = torch.arange(20_000) / 16_000
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    for wave in (0.1 * noise, 0.5 * torch.sin(2 * torch.pi * 440 * t) + 1e-3 * noise, 1e-4 * noise):
        assert_equal_to_kaldi(wave - wave.mean(), mels)


@needs_real_data
def test_log_mel_equals_kaldi_on_real_recordings() -> None:
    for path in real_sounds():
        wave, rate = soundfile.read(path, dtype="float32")
        wave_S = torch.from_numpy(wave)
        assert rate in (8_000, 16_000)
        assert_equal_to_kaldi(wave_S - wave_S.mean())


def test_batched_log_mel_equals_one_by_one() -> None:
    wave_BS = 0.1 * torch.randn(5, 4_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(log_mel(wave_BS), torch.cat([log_mel(wave_S[None]) for wave_S in wave_BS]))


def test_log_mel_stays_float32_under_autocast() -> None:
    wave_BS = 0.1 * torch.randn(1, 4_000, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_mel(wave_BS), log_mel(wave_BS.clone()))
        inside = log_mel(wave_BS)
    assert inside.dtype == torch.float32 and torch.equal(inside, log_mel(wave_BS))


def test_features_of_a_whole_clip_are_kaldi_normalised() -> None:
    audio_BFM = Features(INPUT)(MIXED).audio_BFM
    wave_S = MIXED.waveform_BS[0].float() / 32768
    expected = (kaldi(wave_S - wave_S.mean()) + 7.0) / 8.0
    assert audio_BFM.shape == (5, 64, 128)
    torch.testing.assert_close(audio_BFM[0], expected, rtol=1e-4, atol=1e-4)


def test_frames_past_the_sound_hold_zero_before_normalisation() -> None:
    audio_BFM = Features(INPUT)(MIXED).audio_BFM
    frames = 1 + (5000 - 400) // 160
    wave_S = MIXED.waveform_BS[1, :5000].float() / 32768
    torch.testing.assert_close(audio_BFM[1, :frames], (kaldi(wave_S - wave_S.mean()) + 7.0) / 8.0, rtol=1e-4, atol=1e-4)
    assert (audio_BFM[1, frames:] == 7.0 / 8.0).all()
    assert (audio_BFM[3:] == 7.0 / 8.0).all()


def test_presence_is_told() -> None:
    batch = Features(INPUT)(MIXED)
    assert batch.has_audio_B.tolist() == [True, True, True, False, False], "under 25 ms there is no frame"
    assert batch.has_video_B.tolist() == [True, True, True, False, True]
    assert (batch.video_BTCHW[3] == 0).all()


def test_frame_counts() -> None:
    assert frame_counts(torch.tensor([0, 399, 400, 559, 560]), 16_000).tolist() == [0, 0, 1, 1, 2]


def test_centred_takes_the_mean_of_the_sound_alone() -> None:
    wave_BS = torch.tensor([[100, 300, 0, 0]], dtype=torch.int16)
    assert (centred(wave_BS, torch.tensor([2])) * 32768).tolist() == [[-100, 100, 0, 0]]


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [None, STRONG], ids=["plain", "augmented"])
def test_features_do_not_depend_on_the_batch(config: AugmentConfig | None) -> None:
    features = Features(INPUT, config)
    together = features(MIXED)
    for b in range(len(MIXED)):
        alone = features(row(MIXED, b))
        assert torch.equal(alone.audio_BFM[0], together.audio_BFM[b])
        assert torch.equal(alone.video_BTCHW[0], together.video_BTCHW[b])


def test_augmentation_follows_the_seed() -> None:
    features = Features(INPUT, STRONG)
    first, again = features(MIXED), features(MIXED)
    other = features(replace(MIXED, seed_B=MIXED.seed_B + 1))
    for name in ("audio_BFM", "video_BTCHW"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name)[0], getattr(other, name)[0])


def test_statistics_must_be_set() -> None:
    with pytest.raises(UsageError, match="audio_mean and audio_std"):
        Features(replace(INPUT, audio_std=None))


# --- picture ---------------------------------------------------------------------------------------------------------


def test_central_square_is_resized_as_torch_does() -> None:
    video_TCHW = Features(INPUT)(MIXED).video_BTCHW[0]
    square = MIXED.frames_BTHWC[0, :, :30, 5:35].permute(0, 3, 1, 2).float() / 255
    resized = F.interpolate(square, (24, 24), mode="bilinear", align_corners=False)
    expected = (resized - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    torch.testing.assert_close(video_TCHW, expected, rtol=1e-4, atol=1e-4)


def test_crop_of_the_whole_frame_at_its_size_is_the_frame() -> None:
    frames = MIXED.frames_BTHWC[1:2, :, :24, :24]
    box = torch.tensor([[0.0, 0.0, 24.0, 24.0]])
    size = torch.tensor([[24, 24]])
    assert torch.equal(augment.crop(frames, size, box, torch.tensor([False]), 24), frames.float())
    assert torch.equal(augment.crop(frames, size, box, torch.tensor([True]), 24), frames.float().flip(3))


def test_random_boxes_fit_and_have_the_asked_areas_and_shapes() -> None:
    seed_B = torch.tensor([sample_seed(0, 0, i) for i in range(2000)])
    size_B2 = torch.tensor([[48, 64]]).expand(2000, 2)
    boxes = augment.random_boxes(seed_B, size_B2, (0.3, 0.5), (0.75, 4 / 3))
    assert (boxes >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 48.001).all() and (boxes[:, 1] + boxes[:, 3] <= 64.001).all()
    area, ratio = boxes[:, 2] * boxes[:, 3] / (48 * 64), boxes[:, 3] / boxes[:, 2]
    assert 0.2999 <= area.min() < 0.305 and 0.495 < area.max() <= 0.5001
    assert ratio.min() > 0.749 and ratio.max() < 1.334
    assert area.mean().item() == pytest.approx(0.4, abs=0.01)


def test_boxes_of_very_long_frames_fall_back_to_the_middle() -> None:
    seed_B = torch.tensor([sample_seed(0, 0, i) for i in range(50)])
    boxes = augment.random_boxes(seed_B, torch.tensor([[10, 400]]).expand(50, 2), (0.9, 1.0), (0.75, 4 / 3))
    expected = torch.tensor([0.0, 200 - 20 / 3, 10.0, 40 / 3])
    torch.testing.assert_close(boxes, expected.expand(50, 4))


def test_flips_and_gains_have_the_asked_distribution() -> None:
    seed_B = torch.tensor([sample_seed(3, 0, i) for i in range(2000)])
    assert augment.flips(seed_B, 0.25).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not augment.flips(seed_B, 0.0).any()
    decibels = 20 * augment.gains(seed_B, 6.0).log10()
    assert -6.001 < decibels.min() < -5.8 and 5.8 < decibels.max() < 6.001


def test_roll_moves_the_sound_in_a_circle() -> None:
    wave_BS = torch.tensor([[1, 2, 3, 0], [1, 2, 3, 4]], dtype=torch.int16)
    rolled = augment.roll(wave_BS, torch.tensor([3, 4]), torch.tensor([1, -1]))
    assert rolled.tolist() == [[3, 1, 2, 0], [2, 3, 4, 1]]
