"""Face tracks: from a table and a video by timestamps, synthetic ones, mixtures, and sets on disk that are damaged."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import tarfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.signal import correlate

from avpretrain.cli.main import run
from avpretrain.core.errors import UsageError, UserError
from avpretrain.methods.speaker.data import FRAME_SAMPLES, TrackClips
from avpretrain.methods.speaker.tracks import heads, make, write
from avpretrain.methods.speaker.tracks.config import TracksConfig
from avpretrain.methods.speaker.tracks.crops import GridFrame, at_grid, crop_face
from avpretrain.methods.speaker.tracks.heads import make_scene, scene_frames, scene_rows
from tests.support.real_data import REAL_DATA, needs_real_data


def quiet(done: int, total: int) -> None: ...


def level(time: float) -> int:
    return 40 + round(60 * time)


def write_film(path: Path, times: list[float], seconds: float) -> None:
    """Frames at any times: two faces whose brightness tells when; audio whose loudness does."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=30, options={"crf": "1", "bf": "0", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 128, 64, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        sound = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for time in times:
            image = np.full((64, 128, 3), 20, np.uint8)
            image[8:40, 8:40], image[16:48, 88:120] = level(time), 250 - level(time)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        at = np.arange(round(16_000 * seconds)) / 16_000
        wave = (32767 * 0.2 * (1 + np.floor(at * 25) % 4) * np.sign(np.sin(2 * np.pi * 400 * at))).astype(np.int16)
        samples = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = 16_000, 0, Fraction(1, 16_000)
        out.mux(sound.encode(samples))
        out.mux(sound.encode())


LEFT, RIGHT = "0.0625,0.125,0.3125,0.625", "0.6875,0.25,0.9375,0.75"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As AVA: a table and a folder of films; frames at 30 a second, some missing."""
    root = tmp_path_factory.mktemp("ava")
    (root / "trainval").mkdir()
    times = [i / 30 for i in range(96) if not 60 <= i < 66]
    write_film(root / "trainval" / "film.mkv", times, 3.3)
    rows = []
    for i in range(96):
        time = i / 30
        if not 0.5 < time < 0.9:  # a gap without boxes
            rows.append(f"film,{time:.3f},{LEFT},{'SPEAKING_AUDIBLE' if time < 1.5 else 'NOT_SPEAKING'},film_0:1")
        if time < 0.8 or time > 2.2:  # another, so long that a second track begins
            rows.append(f"film,{time:.3f},{RIGHT},SPEAKING_NOT_AUDIBLE,film_0:2")
    rows += [f"gone,{i / 25},{LEFT},NOT_SPEAKING,gone:1" for i in range(9)]
    (root / "val").mkdir()
    (root / "val" / "film-activespeaker.csv").write_text("\n".join(rows) + "\n")
    return root


def test_a_table_and_a_film_become_tracks_by_time(films: Path, tmp_path: Path) -> None:
    cfg = TracksConfig(face_size=16, margin=0.0, workers=1)
    report = make.make_tracks(str(films), tmp_path / "set", cfg, quiet)
    assert report.missing == ["gone"] and list(report.index.splits) == ["val"]
    clips = TrackClips([tmp_path / "set"], "val")
    first, second, third = (clips[i] for i in range(3))
    assert [(c.track, c.start) for c in (first, second, third)] == [
        ("film_0:1", 0),
        ("film_0:2", 0),
        ("film_0:2", 2.24),
    ]

    shown_T = np.arange(len(first)) / 25
    film_T = np.array([round(i / 30, 3) for i in range(96) if not 60 <= i < 66])
    newest_T = film_T[np.searchsorted(film_T, shown_T + 1e-6, side="right") - 1]
    bright_T = first.faces[:, 4:-4, 4:-4].mean(axis=(1, 2))
    assert np.abs(bright_T - [level(t) for t in newest_T]).max() < 4  # a frame off would be 2 and grow to 200
    assert np.abs(bright_T - [level(t) for t in shown_T]).mean() < 4
    expected = np.where(shown_T < 1.5 - 1e-6, 1, 0)
    expected[(shown_T > 0.52) & (shown_T < 0.88)] = -1
    assert np.array_equal(first.labels, expected)
    assert set(second.labels) == {0}  # speaking that is not heard does not count
    loud_T = np.abs(first.waveform).reshape(-1, FRAME_SAMPLES).mean(axis=1)
    assert np.abs(loud_T - 0.2 * (1 + np.arange(len(first)) % 4)).max() < 0.02
    loud_T = np.abs(third.waveform).reshape(-1, FRAME_SAMPLES).mean(axis=1)
    assert np.abs(loud_T - 0.2 * (1 + (56 + np.arange(len(third))) % 4)).max() < 0.02


def test_the_grid_has_the_frame_nearest_in_time() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        times = np.sort(rng.uniform(0, 2, 40)).round(3)
        end = times[-1] + 0.1
        found = list(at_grid(iter([*zip(times, times, strict=True), (end, None)]), 0, causal=False))
        numbers = [at.number for at in found]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) and numbers[0] == np.ceil(times[0] * 25 - 0.5)
        assert end - 0.04 - 1e-6 <= numbers[-1] / 25 < end
        for at in found:
            assert abs(at.frame - at.number / 25) == pytest.approx(np.abs(times - at.number / 25).min())
    exact: Iterator[tuple[float, int | None]] = iter([(0.0, 0), (0.04, 1), (0.08, 2), (0.12, None)])
    assert list(at_grid(exact, causal=False)) == [GridFrame(0, 0), GridFrame(1, 1), GridFrame(2, 2)]


def test_a_causal_grid_shows_nothing_that_is_later() -> None:
    rng = np.random.default_rng(0)
    for count in (8, 40, 200):
        times = np.sort(rng.uniform(0, 2, count)).round(3)
        end = times[-1] + 0.1
        found = list(at_grid(iter([*zip(times, times, strict=True), (end, None)]), causal=True))
        numbers = [at.number for at in found]
        assert numbers == list(range(int(np.ceil((times[0] - 1e-6) * 25)), numbers[-1] + 1))
        assert end - 0.04 - 1e-6 <= numbers[-1] / 25 < end
        for at in found:
            assert at.frame == times[times <= at.number / 25 + 1e-6].max()
    slow = [(0.2 * i, i) for i in range(3)]  # 5 a second: the nearest would be up to 80 ms ahead
    shown = [at.frame for at in at_grid(iter([*slow, (0.6, None)]), causal=True)]
    assert shown == [0] * 5 + [1] * 5 + [2] * 5


def test_sets_of_different_margins_are_refused(synthetic: Path, tmp_path: Path) -> None:
    other = copy_of(synthetic, tmp_path / "other")
    values = json.loads((other / "tracks.json").read_text())
    (other / "tracks.json").write_text(json.dumps({**values, "margin": 0.3}))
    with pytest.raises(UsageError, match=r"margins of 0.1 and 0.3; make one of them again with the other's --margin"):
        TrackClips([synthetic, other], "train")
    assert TrackClips([other], "train").describe()["margin"] == 0.3


def test_a_crop_is_the_square_around_the_box_and_goes_on_over_the_border() -> None:
    ramp_HW = np.tile(np.arange(100, dtype=np.uint8), (50, 1))
    face = crop_face(ramp_HW, (0.2, 0.2, 0.4, 0.6), 20, 0.0)  # x 20 to 40, y 10 to 30
    assert np.abs(face.astype(int) - np.arange(20, 40)).max() <= 1
    wider = crop_face(ramp_HW, (0.2, 0.2, 0.4, 0.6), 40, 0.5)  # x 10 to 50
    assert np.abs(wider.astype(int) - np.arange(10, 50)).max() <= 1
    tall = crop_face(ramp_HW, (0.29, 0.2, 0.31, 0.6), 20, 0.0)  # the longer side counts
    assert np.abs(tall.astype(int) - np.arange(20, 40)).max() <= 1
    over = crop_face(ramp_HW, (-0.1, 0.2, 0.1, 0.6), 20, 0.0)
    assert np.abs(over.astype(int) - np.clip(np.arange(-10, 10), 0, None)).max() <= 1
    squeezed = crop_face(ramp_HW, (0.2, 0.2, 0.3, 0.6), 20, 0.0, aspect=2.0)  # pixels twice as wide as high
    assert np.abs(squeezed.astype(int) - np.repeat(np.arange(20, 30), 2)).max() <= 1
    for box in ((1.2, 1.2, 1.4, 1.4), (-0.4, -0.4, -0.2, -0.2)):
        assert crop_face(ramp_HW, box, 8, 0.1).shape == (8, 8)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    run("tracks", ["synthetic", str(out), "--scenes", "4", "--face-size", "16", "--seconds", "1.6", "--workers", "1"])
    return out


def test_synthetic_tracks_are_read_as_they_were_made(synthetic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = TrackClips([synthetic], "all")
    made = {clip.track: clip for i in range(4) for clip in make_scene(i, seconds=1.6, face_size=16).clips()}
    assert sorted(clip.track for clip in clips) == sorted(made)
    for clip in clips:
        assert np.array_equal(clip.faces, made[clip.track].faces) and np.array_equal(
            clip.labels, made[clip.track].labels
        )
        assert np.abs(clip.waveform - made[clip.track].waveform).max() <= 0.5001 / 32768
        assert clip.waveform.shape == (len(clip) * FRAME_SAMPLES,) and clip.waveform.dtype == np.float32
    part = clips.read(0, 5, 7)
    assert np.array_equal(part.faces, clips[0].faces[5:12]) and part.start == 0.2
    assert np.array_equal(part.waveform, clips[0].waveform[5 * FRAME_SAMPLES : 12 * FRAME_SAMPLES])
    with pytest.raises(IndexError):
        clips.read(0, 30, 20)
    before = (synthetic / "tracks.json").stat().st_mtime_ns
    run("tracks", ["synthetic", str(synthetic), "--scenes", "4", "--face-size", "16", "--seconds", "1.6", "--json"])
    assert (synthetic / "tracks.json").stat().st_mtime_ns == before
    facts = json.loads(capsys.readouterr().out)
    assert facts["fingerprint"] == clips.fingerprint
    assert sum(split["frames"] for split in facts["splits"].values()) == sum(clips.frames)


def test_a_shard_is_a_plain_tar_of_named_arrays(synthetic: Path) -> None:
    clips, names = TrackClips([synthetic], "all"), []
    for path in sorted(synthetic.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        for stem in dict.fromkeys(name.split(".")[0] for name in members):
            about = json.loads(members[f"{stem}.json"])
            names.append(about["track"])
            clip = next(c for c in clips if c.track == about["track"])
            assert np.array_equal(np.load(io.BytesIO(members[f"{stem}.faces.npy"])), clip.faces)
            assert np.array_equal(np.load(io.BytesIO(members[f"{stem}.labels.npy"])), clip.labels)
            assert np.array_equal(np.load(io.BytesIO(members[f"{stem}.waveform.npy"])) / 32768, clip.waveform)
    assert len(names) == len(clips)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the layout of GRID's pack: videos, metadata.csv with splits, a table of boxes and labels."""
    root = tmp_path_factory.mktemp("grid") / "pack"
    cfg = TracksConfig(scenes=6, face_size=32, seconds=1.6, max_faces=1, val_share=0, test_share=0)
    make.write_scenes(root, cfg, quiet)
    with (root / "metadata.csv").open("w") as file:
        splits = ["train"] * 4 + ["test"] * 2
        file.write("file,split\n" + "".join(f"train/scene-{i:06d}.mp4,{split}\n" for i, split in enumerate(splits)))
    return root


def test_scenes_as_videos_give_the_tracks_again(grid: Path, tmp_path: Path) -> None:
    cfg = TracksConfig(face_size=32, source="ava", workers=1)
    make.make_tracks(str(grid), tmp_path / "set", cfg, quiet)
    clips = TrackClips([tmp_path / "set"], "train")
    for i in range(len(clips)):
        made = make_scene(i, seconds=1.6, face_size=32, max_faces=1).clips()[0]
        assert (clips[i].track, len(clips[i])) == (made.track, len(made))
        assert np.array_equal(clips[i].labels, made.labels)
        assert np.abs(clips[i].faces.astype(float) - made.faces).mean() < 6  # H.264, and the crop's rounding
        ours_T, theirs_T = (
            np.square(w).reshape(-1, FRAME_SAMPLES).mean(axis=1) for w in (clips[i].waveform, made.waveform)
        )
        assert np.corrcoef(ours_T, theirs_T)[0, 1] > 0.98  # AAC
        heard = correlate(clips[i].waveform, made.waveform, "full")
        assert abs(int(heard.argmax()) - (len(made.waveform) - 1)) <= 1  # in time to the sample


def test_hard_negatives_have_others_audio_of_their_split_and_right_labels(grid: Path, tmp_path: Path) -> None:
    cfg = TracksConfig(face_size=32, workers=1)
    report = make.make_tracks(str(grid), tmp_path / "set", cfg, quiet)
    assert {name: len(split.mixtures) for name, split in report.index.splits.items()} == {"train": 12, "test": 6}
    for name, first in (("train", 0), ("test", 4)):
        clips = TrackClips([tmp_path / "set"], name)
        stored = {clips[i].track: clips[i] for i in range(len(clips)) if clips.kind(i) == "stored"}
        assert set(stored) == {f"scene-{i:06d}:0" for i in range(first, first + len(stored))}
        for i in range(len(clips)):
            clip, face = clips[i], clips.place(i)[1]
            assert np.array_equal(clip.faces, stored[face].faces)
            heard, own = clip.waveform, stored[face].waveform
            if clips.kind(i) == "swapped":
                spectra = {t: np.abs(np.fft.rfft(c.waveform)) for t, c in stored.items()}  # a shift goes round
                near = {t: np.corrcoef(s, np.abs(np.fft.rfft(heard)))[0, 1] for t, s in spectra.items()}
                assert max(near, key=near.__getitem__) != face and max(near.values()) > 0.99
                assert not clip.labels.any()
            if clips.kind(i) == "shifted":
                shift = int(clip.track.rpartition("+")[2]) * FRAME_SAMPLES
                assert np.array_equal(heard, np.roll(own, -shift)) and not clip.labels.any()
            if clips.kind(i) == "mixed":
                assert np.array_equal(clip.labels, stored[face].labels)
                assert np.corrcoef(heard - 0.7 * own, own)[0, 1] < 0.3 < np.corrcoef(heard, own)[0, 1]
            part = clips.read(i, 3, 20)
            assert np.array_equal(part.waveform, heard[3 * FRAME_SAMPLES : 23 * FRAME_SAMPLES])
            assert np.array_equal(part.labels, clip.labels[3:23])
        labels = np.concatenate([clips[i].labels for i in range(len(clips))])
        assert (clips.labelled, clips.speaking) == ((labels >= 0).sum(), (labels == 1).sum())
    again = make.make_tracks(str(grid), tmp_path / "again", cfg, quiet)
    assert again.index.fingerprint == report.index.fingerprint
    other = make.make_tracks(str(grid), tmp_path / "other", TracksConfig(face_size=32, workers=1, seed=1), quiet)
    assert other.index.fingerprint != report.index.fingerprint


def test_a_stopped_run_goes_on_with_what_it_had(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, out, clips, made = TracksConfig(face_size=32, workers=1), tmp_path / "set", make._clips, []

    def stop_at_third(job: make.Job, cfg: TracksConfig) -> object:
        made.append(job.video)
        if len(made) == 3:
            raise KeyboardInterrupt
        return clips(job, cfg)

    monkeypatch.setattr(make, "_clips", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        make.make_tracks(str(grid), out, cfg, quiet)
    assert not out.exists()
    report = make.make_tracks(str(grid), out, cfg, quiet)
    assert sorted(made[:2] + made[3:]) == sorted(set(made)) and len(set(made)) == 6  # the two were not made again
    assert not out.with_name("set.parts").exists() and len(TrackClips([out], "all")) == 24
    with pytest.raises(UserError, match="made from something else or otherwise"):
        make.make_tracks(str(grid), out, TracksConfig(face_size=16, workers=1), quiet)
    assert TrackClips([out], "all").fingerprint == report.index.fingerprint


# --- synthetic heads ------------------------------------------------------------------------------------------------


def test_scenes_are_functions_of_their_arguments_and_reversing_turns_all_of_them() -> None:
    one, two = (make_scene(5, seconds=2, face_size=24) for _ in range(2))
    assert np.array_equal(one.faces_FTHW, two.faces_FTHW) and np.array_equal(one.waveform_S, two.waveform_S)
    assert not np.array_equal(one.waveform_S, make_scene(5, seed=1, seconds=2, face_size=24).waveform_S)
    turned = make_scene(5, seconds=2, face_size=24, time_reversed=True)
    assert np.array_equal(turned.faces_FTHW, one.faces_FTHW[:, ::-1])
    assert np.array_equal(turned.waveform_S, one.waveform_S[::-1])
    assert np.array_equal(turned.labels_FT, one.labels_FT[:, ::-1])
    assert len(list(scene_frames(one))) == 50 and len(list(scene_rows(one))) == one.labels_FT.size


def _skew(x_T: np.ndarray) -> float:
    """Of increments: its expectation is zero if the sequence is as likely backwards."""
    d_T = x_T[2:] - x_T[:-2]
    return float((d_T**3).mean())


def test_the_declared_symmetry_in_time_holds_and_onset_breaks_it() -> None:
    rng, opened, covers = np.random.default_rng(0), [], []
    for _ in range(400):
        bouts = heads._bouts(4.0, rng, heads.KINDS, heads.SHARES)
        opened.append(heads._aperture(bouts, 100, rng))
        moves = np.any(
            [(np.arange(100) / 25 >= b.start) & (np.arange(100) / 25 < b.end) for b in bouts] or [[False]], 0
        )
        free = moves & ~heads._covered(bouts, 100)
        covered = moves & ~free
        covers.append((covered[10:] & free[:-10]).mean() - (covered[:-10] & free[10:]).mean())
    skews = np.array([_skew(x) for x in opened])
    assert abs(skews.mean()) < 3 * skews.std() / np.sqrt(len(skews))
    late = np.array([_skew(np.convolve(x, 0.8 ** np.arange(12))) for x in opened])  # slow decay: the test would see it
    assert abs(late.mean()) > 5 * late.std() / np.sqrt(len(late))
    assert np.mean(covers) > 10 * np.std(covers) / np.sqrt(len(covers))
    begins = np.array([np.diff(np.concatenate([[0], x > 0.2]).astype(int)).sum() for x in opened])
    assert abs(begins.mean() - np.mean([x[-1] > 0.2 for x in opened])) < 1e-9
    assert abs(np.mean([x[0] for x in opened]) - np.mean([x[-1] for x in opened])) < 0.06


def test_speaking_mouths_go_with_the_audio_and_others_do_not() -> None:
    """The information is in how mouth and loudness go together; a mouth alone does not tell who is heard."""
    together: dict[str, list[float]] = {kind: [] for kind in heads.KINDS}
    spread: dict[str, list[float]] = {kind: [] for kind in heads.KINDS}
    rng = np.random.default_rng(1)
    for kind in heads.KINDS:
        for _ in range(12):
            bouts = heads._bouts(3.0, rng, (kind,), (1.0,))
            mouth_T = heads._aperture(bouts, 75, rng)
            own = bouts if kind == "speaks" else heads._bouts(3.0, rng, ("speaks",), (1.0,))
            loud_T = np.sqrt(np.square(heads._voice(own, 75, rng)).reshape(75, -1).mean(axis=1))
            together[kind].append(float(np.corrcoef(mouth_T, loud_T)[0, 1]))
            spread[kind].append(float(mouth_T.mean()))
    assert np.mean(together["speaks"]) > 0.6
    assert max(abs(np.mean(together[kind])) for kind in ("mouths", "chews")) < 0.3
    assert abs(np.mean(spread["speaks"]) - np.mean(spread["mouths"])) < 0.1


# --- what is wrong --------------------------------------------------------------------------------------------------


def copy_of(folder: Path, out: Path) -> Path:
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def test_damaged_sets_are_said_in_a_line(synthetic: Path, tmp_path: Path) -> None:
    whole = TrackClips([synthetic], "all")
    name = next(iter(sorted(p.name for p in synthetic.glob("train*.tar"))))

    def read_all(folder: Path) -> None:
        clips = TrackClips([folder], "all")
        for i in range(len(clips)):
            clips[i]

    flipped = copy_of(synthetic, tmp_path / "flipped")
    data = bytearray((flipped / name).read_bytes())
    data[whole.sets[0].splits["train"].tracks[0].places[0] + 7] ^= 1
    (flipped / name).write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged; make the set again"):
        read_all(flipped)
    short = copy_of(synthetic, tmp_path / "short")
    last = whole.sets[0].splits["train"].tracks[-1].places[0]
    (short / name).write_bytes((synthetic / name).read_bytes()[: last + 100])
    with pytest.raises(UserError, match="is cut short"):
        read_all(short)
    (short / name).unlink()
    with pytest.raises(UserError, match="is missing"):
        read_all(short)
    for key, value in (("splits", {"train": {}}), ("face_size", 0), ("format", 9)):
        values = json.loads((synthetic / "tracks.json").read_text())
        (short / "tracks.json").write_text(json.dumps({**values, key: value}))
        with pytest.raises(UserError, match=r"is damaged|has track format 9"):
            TrackClips([short], "all")
    with pytest.raises(UserError, match="has no split 'dev'; it has: "):
        TrackClips([synthetic], "dev")
    with pytest.raises(UserError, match="holds no face tracks"):
        TrackClips([tmp_path], "all")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, "no table"),
        (f"film,0.0,{LEFT},NOT_SPEAKING,a\nfilm,0.0,{LEFT},NOT_SPEAKING,a\n", "holds row 0.0:a twice"),
        ("film,0.0,10,20,30,40,NOT_SPEAKING,a\n", "shares of the frame's width"),
        (f"film,1e300,{LEFT},NOT_SPEAKING,a\n", "row 1 has time and box 1e+300,"),
        (f"film,0.0,{LEFT},NOT_SPEAKING,a\n", "no track of 5 frames or more"),
        (f"film,0.0,{LEFT},NOT_SPEAKING,a\nother,0.04,{LEFT},NOT_SPEAKING,a\n", "face a is in film and in other"),
        (
            "".join(f"else,{i / 25},{LEFT},NOT_SPEAKING,a\n" for i in range(9)),
            "none of the 1 videos that the tables name",
        ),
        (
            "".join(f"film,{9 + i / 25},{LEFT},NOT_SPEAKING,a\n" for i in range(9)),
            "film, for one, ends before its first track",
        ),
        ("".join(f"mute,{i / 25},{LEFT},NOT_SPEAKING,a\n" for i in range(9)), "mute, for one, has no audio"),
        ("".join(f"torn,{i / 25},{LEFT},NOT_SPEAKING,a\n" for i in range(9)), "torn, for one, can't be opened"),
    ],
)
def test_wrong_sources_are_said_in_a_line(films: Path, tmp_path: Path, table: str | None, said: str) -> None:
    root = tmp_path / "src"
    root.mkdir()
    (root / "film.mkv").symlink_to(films / "trainval" / "film.mkv")
    (root / "torn.mp4").write_bytes(b"no video" * 100)
    with av.open(str(root / "mute.mp4"), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        for _ in range(15):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            out.mux(video.encode(frame.reformat(format="yuv420p")))
        out.mux(video.encode())
    if table is not None:
        (root / "labels.csv").write_text(table)
    with pytest.raises(UserError) as error:
        make.make_tracks(str(root), tmp_path / "out", TracksConfig(workers=1), quiet)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "named", "split"),
    [
        ("/home/dev/test/labels.csv", [], "train"),
        ("/home/dev/test/val/labels.csv", [], "val"),
        ("/home/dev/test/val/2/labels.csv", [], "train"),
        ("/home/dev/test/val/test_labels.csv", [], "test"),
        ("/home/dev/labels.csv", ["/home/dev/labels.csv"], "train"),
        ("/home/val/ava/labels.csv", ["/home/val/ava"], "train"),
        ("/home/dev/ava_val_v1.0/a.csv", ["/home/dev/ava_val_v1.0"], "val"),
        ("/home/dev/ava/val/labels.csv", ["/home/dev/ava"], "val"),
    ],
)
def test_only_a_table_and_its_own_folder_name_the_split(table: str, named: list[str], split: str) -> None:
    assert make.split_of_table(Path(table), Path("/home/dev/test"), [Path(place) for place in named]) == split


def test_two_videos_of_one_name_are_refused(films: Path, tmp_path: Path) -> None:
    for name in ("s1/film.mkv", "s2/film.mkv", "s1/other.mkv", "s2/other.mkv"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).symlink_to(films / "trainval" / "film.mkv")
    table = tmp_path / "src" / "labels.csv"
    table.write_text("".join(f"film,{i / 25},{LEFT},NOT_SPEAKING,a\n" for i in range(9)))
    with pytest.raises(UserError, match=r"video film of the tables may be .*s1/film.mkv or .*s2/film.mkv: "):
        make.list_jobs(str(tmp_path / "src"), TracksConfig(source="ava"))
    (tmp_path / "src" / "s2" / "film.mkv").unlink()  # no table names the other
    assert len(make.list_jobs(str(tmp_path / "src"), TracksConfig(source="ava"))[0]) == 1
    metadata = tmp_path / "src" / "metadata.csv"
    metadata.write_text("file,split\ns1/film.mkv,train\ns2/film.mkv,val\n")
    with pytest.raises(UserError, match=r"video film of .*metadata.csv may be s1/film.mkv or s2/film.mkv"):
        make.list_jobs(str(tmp_path / "src"), TracksConfig(source="grid"))


def test_a_split_never_leads_out_of_the_folder(grid: Path, tmp_path: Path) -> None:
    root = tmp_path / "pack"
    root.mkdir()
    (root / "train.csv").write_bytes((grid / "train.csv").read_bytes())
    (root / "metadata.csv").write_text("file,split\nscene-000000.mp4,../../train\n")
    with pytest.raises(UserError, match=r"has split '../../train'; names of splits are letters"):
        make.make_tracks(str(root), tmp_path / "out", TracksConfig(workers=1), quiet)


def test_a_split_in_which_nobody_speaks_is_valid_json(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "film.mkv").symlink_to(films / "trainval" / "film.mkv")
    (tmp_path / "src" / "a.csv").write_text("".join(f"film,{i / 25},{LEFT},NOT_SPEAKING,a\n" for i in range(9)))
    args = [str(tmp_path / "src"), str(tmp_path / "set"), "--face-size", "8", "--workers", "1"]
    run("tracks", [*args, "--json"])
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told["splits"]["train"]["loudness_ap"] is None
    run("tracks", args)
    assert "loudness" not in capsys.readouterr().out


def test_an_index_too_large_to_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "MAX_INDEX_BYTES", 500)
    cfg = TracksConfig(scenes=1, seconds=1, face_size=8, workers=1, val_share=0, test_share=0)
    with pytest.raises(UserError, match=r"tracks.json would have .* bytes, more than the 500 that are read"):
        make.make_tracks("synthetic", tmp_path / "out", cfg, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parts"]


def test_an_index_of_more_than_64_mib_is_read(synthetic: Path, tmp_path: Path) -> None:
    large = copy_of(synthetic, tmp_path / "large")
    with (large / "tracks.json").open("a") as file:
        file.write(" " * (65 << 20))
    assert len(TrackClips([large], "all")) == len(TrackClips([synthetic], "all"))


def test_ctrl_c_does_not_wait_for_films_under_way() -> None:
    mapped = make._mapped(time.sleep, [0.0, 60.0, 60.0], 2)
    next(mapped)
    workers = multiprocessing.active_children()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        mapped.throw(KeyboardInterrupt())
    for worker in workers:
        worker.join(20)
    assert len(workers) == 2 and time.monotonic() - start < 20


def test_wrong_options_are_usage_errors(tmp_path: Path) -> None:
    for args in (
        [str(tmp_path / "none"), "out"],
        ["synthetic", "out", "--face-size", "2"],
        [str(tmp_path), "out", "--as-videos"],
        [str(tmp_path), "out", "--source", "synthetic"],
        ["synthetic", "out", "--val-share", "0.6", "--test-share", "0.5"],
    ):
        with pytest.raises(UsageError):
            run("tracks", [args[0], str(tmp_path / args[1]), *args[2:]])
    assert not (tmp_path / "out").exists()


@needs_real_data
def test_grid_clips_give_faces_and_hard_negatives(tmp_path: Path) -> None:
    pack = REAL_DATA / "grid_av"
    with (pack / "metadata.csv").open() as file:
        chosen = [row for row in csv.DictReader(file) if row["split"] == "val"][:4]
    root = tmp_path / "pack"
    root.mkdir()
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, chosen[0])
        writer.writeheader()
        writer.writerows(chosen)
    for row in chosen:
        (root / Path(row["file"]).name).symlink_to(pack / row["file"])
    table = (pack / "asd_ava_style.csv.gz",)
    report = make.make_tracks(str(root), tmp_path / "set", TracksConfig(table=table, workers=1), quiet)
    clips = TrackClips([tmp_path / "set"], "val")
    assert len(clips) == 16 and clips.frames == [75] * 16 and not report.missing
    alone = np.concatenate([make.frame_loudness(clips[i]) for i in range(4)])
    labels = np.concatenate([clips[i].labels for i in range(4)])
    assert make.average_precision(alone, labels == 1) > 0.85 > report.loudness["val"] + 0.15
