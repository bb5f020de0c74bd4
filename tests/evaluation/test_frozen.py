"""Features of clips of any length: what they may depend on, and what not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from avpretrain.config.model import AudioTowerConfig, DecoderConfig, InputConfig, VideoTowerConfig
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.whole import clip_steps
from avpretrain.evaluation.extract import Extracted, Reading, clip_batches, extract
from avpretrain.evaluation.frozen import FrozenEncoder, Pooling, encode_steps, input_for, windows
from avpretrain.evaluation.setup import random_encoder
from avpretrain.methods.diffmavil.config import ModelConfig
from avpretrain.methods.diffmavil.model import DiffMAViL
from tests.support.tiny_datasets import Spec, make_dataset

DECODER = DecoderConfig(width=32, depth=1, heads=2)
CONFIG = ModelConfig(
    input=InputConfig(
        audio_frames=64, mels=32, video_frames=4, video_fps=2.0, video_size=32, audio_mean=-8.0, audio_std=4.0
    ),
    width=48,
    heads=3,
    audio=AudioTowerConfig(depth=2, decoder=DECODER),
    video=VideoTowerConfig(depth=2, decoder=DECODER),
)
LENGTHS = (0.3, 0.6, 1.0, 2.0, 3.1)


@pytest.fixture(scope="module")
def model() -> DiffMAViL:
    return random_encoder(CONFIG, seed=0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    specs = [Spec(seconds=LENGTHS[i % 5], sound=i != 6, picture=i != 7) for i in range(10)]
    return ClipSet([str(make_dataset(tmp_path_factory.mktemp("clips") / "set", specs))], "all")


def features(model: DiffMAViL, clips: ClipSet, rows: list[int], batch_size: int, seconds: float = 4.0) -> Extracted:
    encoder = FrozenEncoder(model, "both", Pooling("mean_cls", layers=2))
    reading = Reading(input_for(model, seconds), batch_size=batch_size, num_workers=0)
    return extract({"x": encoder}, clips, rows, reading)


def test_features_depend_on_no_neighbour_no_order_and_no_batch_size(model: DiffMAViL, clips: ClipSet) -> None:
    rows = list(range(10))
    together = features(model, clips, rows, batch_size=10)
    alone = features(model, clips, rows, batch_size=1)
    shuffled = [3, 9, 0, 7, 1, 8, 2, 6, 4, 5]
    other = features(model, clips, shuffled, batch_size=3)
    torch.testing.assert_close(together.features["x"], alone.features["x"], atol=1e-5, rtol=0)
    torch.testing.assert_close(other.features["x"], together.features["x"][shuffled], atol=1e-5, rtol=0)
    assert other.has_audio_N.tolist() == together.has_audio_N[shuffled].tolist()


def test_missing_modalities_are_said(model: DiffMAViL, clips: ClipSet) -> None:
    found = features(model, clips, list(range(10)), batch_size=4)
    assert np.flatnonzero(~found.has_audio_N).tolist() == [6]
    assert np.flatnonzero(~found.has_video_N).tolist() == [7]
    assert found.usable_N("both").sum() == 8


def test_room_for_longer_clips_changes_nothing(model: DiffMAViL, clips: ClipSet) -> None:
    """A clip's features are those of its own patches, however much padding the longest clip of the set brings."""
    rows = [0, 1, 2]
    snug, roomy = (features(model, clips, rows, 3, seconds) for seconds in (1.0, 8.0))
    torch.testing.assert_close(snug.features["x"], roomy.features["x"], atol=1e-5, rtol=0)


def test_whole_clips_of_trained_length_are_the_models_own_tokens(model: DiffMAViL) -> None:
    torch.manual_seed(0)
    audio_BFM, video_BTCHW = torch.randn(2, 64, 32), torch.randn(2, 4, 3, 32, 32)
    for side, x, steps in (("audio", audio_BFM, 4), ("video", video_BTCHW, 2)):
        whole_BCD = model.encode_audio(x) if side == "audio" else model.encode_video(x)
        tokens, cls = encode_steps(model, side, x, steps)
        assert torch.equal(tokens.flatten(1, 3), whole_BCD[:, 1:])
        assert cls is not None and torch.equal(cls[:, 0], whole_BCD[:, 0])


def test_long_clips_are_cut_into_windows_of_trained_length(model: DiffMAViL) -> None:
    torch.manual_seed(0)
    audio_BFM = torch.randn(1, 192, 32)  # 12 steps of 16 frames, trained on 4
    tokens, _ = encode_steps(model, "audio", audio_BFM, 12)
    parts = [encode_steps(model, "audio", audio_BFM[:, i : i + 64], 4)[0] for i in (0, 64, 128)]
    torch.testing.assert_close(tokens, torch.cat(parts, dim=2), atol=1e-6, rtol=0)


def test_windows_are_few_equal_and_cover_all() -> None:
    for steps in range(1, 60):
        for longest in (1, 4, 7, 64):
            found = windows(steps, longest)
            sizes = [stop - start for start, stop in found]
            assert [i for start, stop in found for i in range(start, stop)] == list(range(steps))
            assert len(found) == -(-steps // longest)
            assert max(sizes) <= longest and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("frames", "steps"), [(1, 1), (7, 1), (23, 1), (24, 2), (98, 6), (1022, 64)])
def test_a_last_patch_counts_when_half_of_it_is_clip(frames: int, steps: int) -> None:
    assert clip_steps(frames, 16) == steps


def test_layers_end_with_the_encoders_output(model: DiffMAViL) -> None:
    x = torch.randn(1, 64, 32)
    one, _ = encode_steps(model, "audio", x, 4, layers=1)
    two, _ = encode_steps(model, "audio", x, 4, layers=2)
    assert two.shape[1] == 2
    assert torch.equal(two[:, 1], one[:, 0])
    assert not torch.allclose(two[:, 0], one[:, 0])


def test_random_encoder_is_a_function_of_its_seed_alone() -> None:
    before = torch.random.get_rng_state()
    a, b, c = (random_encoder(CONFIG, seed).audio_encoder.patch_embed.weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.random.get_rng_state())


def test_lengths_say_where_clips_end(clips: ClipSet, model: DiffMAViL, tmp_path: Path) -> None:
    reading = Reading(input_for(model, 4.0), batch_size=5, num_workers=0)
    _, batch = next(iter(clip_batches(clips, [0, 1, 2, 3, 4], reading)))
    assert batch.audio_frames_B.tolist() == [28, 58, 98, 198, 308]
    assert batch.video_frames_B.tolist() == [1, 1, 2, 4, 6]
