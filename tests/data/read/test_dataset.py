from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avpretrain.config.model import InputConfig
from avpretrain.config.schedules import Step
from avpretrain.config.train import DataConfig
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.batch import RawBatch
from avpretrain.data.manifest import write_manifest
from avpretrain.data.place import MANIFEST_NAME
from avpretrain.data.read import dataset, decoded
from avpretrain.data.read.clips import ClipSet, Encoded, Sample, window_starts
from avpretrain.data.read.dataset import check_bad_share, eval_loader, process_context, train_loader
from tests.support.tiny_datasets import FPS, Spec, make_dataset, picture, tone

INPUT = InputConfig(audio_frames=96, mels=32, video_frames=4, video_fps=4.0, video_size=32)
SIZES = (4, 8, 12, 8, 16, 4, 8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", [Spec(label="ab"[i % 2]) for i in range(22)])


def plan(sizes: Iterable[int] = SIZES, seen: int = 0) -> list[Step]:
    steps = []
    for size in sizes:
        steps.append(Step(len(steps), seen, size, 1e-3))
        seen += size
    return steps


def config(root: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"shards": (str(root),), "num_workers": 0, "shuffle_window": 2, **changes})


def clip_hashes(batches: Iterable[RawBatch]) -> list[list[tuple[int, int, int]]]:
    """Row, seed and contents of each clip of each batch."""
    return [
        [
            (int(batch.index_B[b]), int(batch.seed_B[b]), hash((wave.tobytes(), frames.tobytes())))
            for b, (wave, frames) in enumerate(zip(batch.waveform_BS.numpy(), batch.frames_BTHWC.numpy(), strict=True))
        ]
        for batch in batches
    ]


def damage(root: Path, row: int) -> str:
    """Flips a bit of a clip's picture; the shard's name."""
    clips = ClipSet([str(root)], "all")
    clip, shard = clips.clip(row), clips.shard_of(row)[1].name
    with (root / shard).open("r+b") as file:
        file.seek(clip.video_offset + clip.video_length // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))
    return shard


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_are_the_same_for_any_ranks_and_workers(root: Path) -> None:
    """The sequence of global batches, clip by clip, bytes included, while the batch size changes."""
    expected = clip_hashes(train_loader(config(root), INPUT, 7, plan()))
    assert [len(batch) for batch in expected] == list(SIZES)
    for world in (1, 2, 4):
        for workers in (0, 1, 3):
            cfg = config(root, num_workers=workers)
            shares = [clip_hashes(train_loader(cfg, INPUT, 7, plan(), rank, world)) for rank in range(world)]
            for number, batch in enumerate(expected):
                merged = [clip for group in zip(*(s[number] for s in shares), strict=True) for clip in group]
                assert merged == batch, f"{world} ranks, {workers} workers, batch {number}"


def test_resume_at_any_sample_is_exact(root: Path) -> None:
    whole = [clip for batch in clip_hashes(train_loader(config(root), INPUT, 7, plan([60]))) for clip in batch]
    for seen in (1, 21, 22, 23, 57):
        rest = clip_hashes(train_loader(config(root), INPUT, 7, plan([60 - seen], seen)))[0]
        assert rest == whole[seen:]


def test_samples_hold_the_clip_they_name(root: Path) -> None:
    batch = next(iter(train_loader(config(root), INPUT, 0, plan())))
    for b, row in enumerate(batch.index_B.tolist()):
        wave, samples = batch.waveform_BS[b].numpy(), int(batch.samples_B[b])
        assert samples == round(INPUT.audio_seconds * 16_000)
        spectrum = np.abs(np.fft.rfft(wave[:samples].astype(float)))
        assert np.argmax(spectrum) * 16_000 / samples == pytest.approx(200 + 10 * row, abs=2)
        height, width = batch.size_B2[b].tolist()
        assert min(height, width) == 37, "8/7 of the training size"
        grey = np.median(batch.frames_BTHWC[b, :, :height, :width].numpy())
        assert grey == pytest.approx(20 + (row * 7) % 120, abs=4)


def test_random_windows_cover_the_clip_and_frames_lie_inside_the_sound(root: Path) -> None:
    cfg = InputConfig(audio_frames=96, mels=32, video_frames=2, video_fps=4.0, video_size=32)
    starts = np.array([window_starts(2.0, cfg, (i / 50, j / 50)) for i in range(50) for j in range(50)])
    room = 2.0 - cfg.audio_seconds
    assert starts[:, 0].min() == 0 and starts[:, 0].max() == pytest.approx(room * 49 / 50)
    assert (starts[:, 1] >= starts[:, 0] - 1e-9).all()
    assert (starts[:, 1] + cfg.video_seconds <= starts[:, 0] + cfg.audio_seconds + 1e-9).all()


@pytest.mark.parametrize(
    ("duration", "at"), [(0.2, (0.5, 0.5)), (1.5, (0.0, 0.99)), (30.0, (0.9, 0.1)), (4.0, (1.0, 1.0))]
)
def test_windows_stay_inside_clips_of_any_length(duration: float, at: tuple[float, float]) -> None:
    cfg = InputConfig(audio_frames=96, mels=32, video_frames=8, video_fps=2.0, video_size=32)
    audio, video = window_starts(duration, cfg, at)
    assert 0 <= audio <= max(0, duration - cfg.audio_seconds) + 1e-9
    assert 0 <= video <= max(0, duration - cfg.video_seconds) + 1e-9


def test_evaluation_takes_central_windows_in_order(root: Path) -> None:
    clips = ClipSet([str(root)], "all")
    batches = list(eval_loader(clips, INPUT, [3, 20, 1], batch_size=2))
    assert [batch.index_B.tolist() for batch in batches] == [[3, 20], [1]]
    samples = round(INPUT.audio_seconds * 16_000)
    first = round((2.0 - INPUT.audio_seconds) / 2 * 16_000)
    assert np.array_equal(batches[0].waveform_BS[0].numpy(), tone(3, 2.0)[first : first + samples])
    times = 0.5 + (np.arange(4) + 0.5) / 4
    bars = picture(3, 2.0, (48, 64))[np.rint(times * FPS).astype(int)][:, 24].max(axis=-1).argmax(axis=1)
    small = batches[0].frames_BTHWC[0, :, 16].amax(dim=-1).argmax(dim=1)
    assert torch.allclose(small * 1.5, torch.tensor(bars).float(), atol=4)


def test_evaluation_can_leave_a_modality_out(root: Path) -> None:
    clips = ClipSet([str(root)], "all")
    sound = next(iter(eval_loader(clips, INPUT, [0], 1, modality="audio")))
    assert sound.samples_B.item() > 0 and sound.size_B2.tolist() == [[0, 0]]
    sight = next(iter(eval_loader(clips, INPUT, [0], 1, modality="video")))
    assert sight.samples_B.item() == 0 and min(sight.size_B2.tolist()[0]) == 32


def test_clips_without_sound_or_picture_are_batched(tmp_path: Path) -> None:
    make_dataset(tmp_path, [Spec(), Spec(sound=False), Spec(picture=False), Spec(seconds=0.5), Spec(size=(64, 30))])
    batch = next(iter(eval_loader(ClipSet([str(tmp_path)], "all"), INPUT, range(5), 5)))
    assert (batch.samples_B > 0).tolist() == [True, False, True, True, True]
    assert (batch.size_B2.amin(dim=1) > 0).tolist() == [True, True, False, True, True]
    assert batch.samples_B[3] == 8000 and not batch.waveform_BS[3, 8000:].any()
    assert batch.size_B2[4].tolist() == [64, 30], "frames are never enlarged"
    assert not batch.frames_BTHWC[0, :, :, 44:].any(), "padding is zero"


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_clip_is_replaced_counted_and_named(tmp_path: Path, workers: int) -> None:
    make_dataset(tmp_path, [Spec() for _ in range(12)])
    healthy = [clip for batch in clip_hashes(train_loader(config(tmp_path), INPUT, 0, plan([12]))) for clip in batch]
    shard = damage(tmp_path, 5)
    batches = list(train_loader(config(tmp_path, num_workers=workers), INPUT, 0, plan([4, 8])))
    rows = [row for batch in batches for row in batch.index_B.tolist()]
    place = [row for row, _, _ in healthy].index(5)
    assert rows[:place] + rows[place + 1 :] == [row for row, _, _ in healthy if row != 5]
    assert rows[place] != 5
    assert sum(batch.failed for batch in batches) == 1
    (reason,) = (reason for batch in batches for reason in batch.reasons)
    assert shard in reason and "clip00005" in reason


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    make_dataset(tmp_path, [Spec() for _ in range(8)])
    path = tmp_path / "train-000001.tar"
    os.truncate(path, path.stat().st_size // 2)
    (batch,) = train_loader(config(tmp_path), INPUT, 0, plan([8]))
    assert batch.failed and all("train-000001.tar is cut short" in reason for reason in batch.reasons)


@pytest.mark.slow
def test_two_hundred_kinds_of_damage_cost_exactly_the_damaged_clips(tmp_path: Path) -> None:
    make_dataset(tmp_path, [Spec(seconds=0.5, size=(16, 16)) for _ in range(4)])
    clips = ClipSet([str(tmp_path)], "all")
    path = tmp_path / "train-000000.tar"
    whole = path.read_bytes()
    spans = [(c.video_offset, c.audio_offset + c.audio_length) for c in map(clips.clip, range(4))]
    members = [(c.video_offset, c.video_length, c.audio_offset, c.audio_length) for c in map(clips.clip, range(4))]
    rng = np.random.default_rng(0)
    for round in range(200):
        place = int(rng.integers(spans[0][0], spans[-1][1]))
        if round % 4 == 0:
            path.write_bytes(whole[:place])
            hit = [end > place for _, end in spans]
        else:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << round % 8)]) + whole[place + 1 :])
            hit = [v <= place < v + vn or a <= place < a + an for v, vn, a, an in members]
        (batch,) = eval_loader(ClipSet([str(tmp_path)], "all"), INPUT, range(4), 4)
        assert (batch.samples_B == 0).tolist() == hit
        assert batch.failed == sum(hit) and all("train-000000.tar" in reason for reason in batch.reasons)


@pytest.mark.parametrize("changes", [{"video_length": 1 << 60}, {"audio_offset": -5}, {"video_offset": 1 << 62}])
def test_manifest_that_points_nowhere_is_damage_not_a_crash(tmp_path: Path, changes: dict[str, int]) -> None:
    make_dataset(tmp_path, [Spec()])
    clip = ClipSet([str(tmp_path)], "all").clip(0)
    write_manifest(tmp_path / MANIFEST_NAME, [replace(clip, **changes)])
    (batch,) = eval_loader(ClipSet([str(tmp_path)], "all"), INPUT, [0], 1)
    assert batch.failed == 1 and "train-000000.tar" in batch.reasons[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_gives_up_when_everything_is_damaged(tmp_path: Path, workers: int) -> None:
    make_dataset(tmp_path, [Spec() for _ in range(4)])
    os.truncate(tmp_path / "train-000000.tar", 0)
    with pytest.raises(UserError, match=r"^16 clips in a row could not be read; the last: .*train-000000.tar"):
        list(train_loader(config(tmp_path, num_workers=workers), INPUT, 0, plan([4])))


def test_evaluation_keeps_the_place_of_a_damaged_clip(tmp_path: Path) -> None:
    make_dataset(tmp_path, [Spec() for _ in range(4)])
    damage(tmp_path, 2)
    (batch,) = eval_loader(ClipSet([str(tmp_path)], "all"), INPUT, range(4), 4)
    assert batch.index_B.tolist() == [0, 1, 2, 3]
    assert batch.failed == 1 and (batch.samples_B > 0).tolist() == [True, True, False, True]


def test_bad_share_stops_a_run_only_past_the_limit() -> None:
    check_bad_share(19, 0, 0.05, "x")
    check_bad_share(20, 380, 0.05, "x")
    with pytest.raises(UserError, match=r"21 of 400 clips .* data.max_bad_share 0.05 .*: wrong checksum"):
        check_bad_share(21, 379, 0.05, "wrong checksum")


def test_several_sets_are_read_as_one(root: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", [Spec(split="val")] * 3 + [Spec()] * 5)
    both = ClipSet([str(root), str(other)], "train")
    assert len(both) == 22 + 5
    assert [both.clip(i).key for i in (0, 21, 22, 26)] == ["clip00000", "clip00021", "clip00003", "clip00007"]
    assert both.shard_of(22)[0].root == str(other)
    assert both.fingerprint == ClipSet([str(other), str(root)], "train").fingerprint != ClipSet([str(root)]).fingerprint
    assert both.log_mel == pytest.approx((-8.0, 4.0))
    with pytest.raises(IndexError):
        both.clip(27)
    with pytest.raises(UserError, match=r"no split 'tset'; it has: val, train"):
        ClipSet([str(other)], "tset")
    with pytest.raises(UsageError, match="no data set"):
        ClipSet([])


def test_only_paths_travel_to_loader_processes(root: Path) -> None:
    clips = ClipSet([str(root)])
    assert len(pickle.dumps(clips)) < 1000
    assert pickle.loads(pickle.dumps(clips)).clip(3) == clips.clip(3)


def test_global_random_state_is_left_alone(root: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(train_loader(config(root), INPUT, 0, plan([4])))
    assert torch.equal(torch.rand(3), expected)


# --- stream mode -----------------------------------------------------------------------------------------------------


def test_stream_covers_an_epoch_and_repeats_exactly(root: Path) -> None:
    cfg = config(root, mode="stream")
    once = clip_hashes(train_loader(cfg, INPUT, 0, plan([11, 11, 22])))
    assert sorted(row for batch in once[:2] for row, _, _ in batch) == list(range(22))
    assert sorted(row for row, _, _ in once[2]) == list(range(22))
    assert clip_hashes(train_loader(cfg, INPUT, 0, plan([11, 11, 22]))) == once


def test_stream_shards_are_dealt_to_ranks_and_workers(root: Path) -> None:
    seen = [
        [row for batch in train_loader(config(root, mode="stream", num_workers=w), INPUT, 0, plan([12]), r, 2)
         for row in batch.index_B.tolist()]
        for w, r in ((0, 0), (0, 1))
    ]  # fmt: skip
    assert not set(seen[0]) & set(seen[1])
    batches = list(train_loader(config(root, mode="stream", num_workers=2), INPUT, 0, plan([4, 8, 4])))
    assert [len(batch) for batch in batches] == [4, 8, 4]


def test_stream_resumes_at_the_start_of_a_shard(root: Path) -> None:
    whole = [row for b in train_loader(config(root, mode="stream"), INPUT, 0, plan([22])) for row in b.index_B.tolist()]
    rest = [
        row
        for b in train_loader(config(root, mode="stream"), INPUT, 0, plan([16], seen=6))
        for row in b.index_B.tolist()
    ]
    assert len(set(rest)) == 16 and set(rest) <= set(whole)
    assert len({row // 4 for row in whole} - {row // 4 for row in rest}) == 1, "one whole shard lies behind"


def test_stream_names_damage_and_refuses_too_many_processes(tmp_path: Path) -> None:
    make_dataset(tmp_path, [Spec() for _ in range(8)])
    shard = damage(tmp_path, 1)
    path = tmp_path / "train-000001.tar"
    os.truncate(path, 700)
    reasons = [r for b in train_loader(config(tmp_path, mode="stream"), INPUT, 0, plan([6])) for r in b.reasons]
    assert any(shard in reason and "wrong checksum" in reason for reason in reasons)
    assert any("train-000001.tar is cut short" in reason for reason in reasons)
    with pytest.raises(UsageError, match=r"2 shards and 3 processes"):
        train_loader(config(tmp_path, mode="stream", num_workers=3), INPUT, 0, plan([6]))


def test_a_memory_cache_changes_nothing_but_the_reading(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that fit the input are decoded once and come out the same in later epochs; longer ones are cut anew."""
    fits = replace(INPUT, audio_frames=400, video_frames=16)
    for input, decodings in ((fits, 22), (INPUT, 60)):
        expected = clip_hashes(train_loader(config(root), input, 7, plan()))
        rows: list[int] = []
        monkeypatch.setattr(dataset, "decode_window", _counted(dataset.decode_window, rows))
        assert clip_hashes(train_loader(config(root, memory_cache_mb=64), input, 7, plan())) == expected
        monkeypatch.undo()
        assert len(rows) == decodings, "60 clips are seen of 22"


def test_decoded_clips_on_disk_change_nothing_but_the_reading(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run decodes nothing but clips longer than the input; a damaged file is decoded and written anew."""
    fits = replace(INPUT, audio_frames=400, video_frames=16)
    keeping = config(root, decoded_dir=str(tmp_path / "kept"))
    for input, first, second in ((fits, 22, 0), (INPUT, 60, 60)):
        expected = clip_hashes(train_loader(config(root), input, 7, plan()))
        rows: list[int] = []
        monkeypatch.setattr(dataset, "decode_window", _counted(dataset.decode_window, rows))
        assert clip_hashes(train_loader(keeping, input, 7, plan())) == expected
        assert len(rows) == first
        rows.clear()
        assert clip_hashes(train_loader(keeping, input, 7, plan())) == expected
        assert len(rows) == second
        monkeypatch.undo()
    files = sorted(path for path in (tmp_path / "kept").rglob("*") if path.is_file())
    assert len(files) == 22
    data = files[0].read_bytes()
    swapped = data[:24] + data[32:40] + data[24:32] + data[40:]  # height and width
    for damaged in (data[:20], data[:-1], data[:-1] + bytes([data[-1] ^ 1]), swapped, b""):
        files[0].write_bytes(damaged)
        expected = clip_hashes(train_loader(config(root), fits, 7, plan()))
        assert clip_hashes(train_loader(keeping, fits, 7, plan())) == expected
        assert files[0].read_bytes() == data
    other = replace(fits, video_size=fits.video_size * 2)
    expected = clip_hashes(train_loader(config(root), other, 7, plan()))
    assert clip_hashes(train_loader(keeping, other, 7, plan())) == expected


def test_a_folder_for_decoded_clips_that_can_t_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("no folder")
    with pytest.raises(UserError, match=r"can't keep decoded clips in .*kept: .*data\.decoded_dir"):
        train_loader(config(root, decoded_dir=str(tmp_path / "kept")), INPUT, 7, plan())


def test_a_full_disk_costs_a_line_and_no_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    fits = replace(INPUT, audio_frames=400, video_frames=16)
    expected = clip_hashes(train_loader(config(root), fits, 7, plan()))
    monkeypatch.setattr(decoded, "atomic_path", full)
    assert clip_hashes(train_loader(config(root, decoded_dir=str(tmp_path / "kept")), fits, 7, plan())) == expected
    assert capsys.readouterr().err.count("No space left on device; clips are decoded each time from here on") == 1


def _counted(decode: Callable[..., Sample], rows: list[int]) -> Callable[..., Sample]:
    def counting(encoded: Encoded, *args: Any) -> Sample:
        rows.append(encoded.index)
        return decode(encoded, *args)

    return counting


def test_loader_processes_ignore_sigterm_and_can_be_ended(root: Path) -> None:
    """A signal to the whole job must not take the loaders away from a loop that is waiting for them."""
    before = set(multiprocessing.active_children())
    batches = train_loader(config(root, num_workers=2, prefetch=1), INPUT, 0, plan([4] * 40))
    for _ in range(2):
        next(batches)
    loaders = set(multiprocessing.active_children()) - before
    assert len(loaders) == 2
    for loader in loaders:
        os.kill(loader.pid or 0, signal.SIGTERM)
    assert len(list(batches)) == 38
    for loader in loaders:
        loader.join(timeout=60)
        assert loader.exitcode == 0

    process = process_context().Process(target=_sleep_without_heed)
    process.start()
    process.terminate()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL


def _sleep_without_heed() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
