"""`avpretrain speakers` on videos, tables of boxes, a camera's frames, and sets of face tracks."""

from __future__ import annotations

import csv
import json
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from avpretrain.cli.main import run
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.container import open_media
from avpretrain.evaluation.speakers import inputs
from avpretrain.evaluation.speakers.faces import CascadeFaces, FaceTracker, YuNetFaces, iou
from avpretrain.evaluation.speakers.inputs import CameraInput, FileInput, Microphone, Moment
from avpretrain.evaluation.speakers.live import DetectedFaces, LiveReport, run_live
from avpretrain.evaluation.speakers.score import SpeakerResult
from avpretrain.methods.speaker.ava import read_rows
from avpretrain.methods.speaker.config import FRAME_SAMPLES
from avpretrain.methods.speaker.data import TrackClips
from avpretrain.methods.speaker.evaluate import track_scores
from avpretrain.methods.speaker.method import Speaker
from avpretrain.methods.speaker.metric import average_precision, evaluate
from avpretrain.methods.speaker.model import SpeakerModel
from avpretrain.methods.speaker.tracks import make
from avpretrain.methods.speaker.tracks.config import TracksConfig
from tests.support.ranks import run_ranks, said
from tests.support.real_data import REAL_DATA, needs_real_data
from tests.support.tracks import SIZE, track_config


def quiet(done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic scenes as videos with a table; scene 1 has two faces."""
    root = tmp_path_factory.mktemp("scenes") / "videos"
    make.write_scenes(root, TracksConfig(scenes=3, face_size=48, seconds=1.2, val_share=0, test_share=0), quiet)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, 16 pixels, past 3, future 2."""
    folder = tmp_path_factory.mktemp("model") / "model"
    method = Speaker(track_config(folder.parent, method="speaker"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = method.model().eval()
    made.head.weight.data *= 5  # scores that differ
    method.save(made, folder)
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_video_with_boxes_gives_the_scores_of_its_tracks(
    scenes: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make.make_tracks(str(scenes), tmp_path / "set", TracksConfig(face_size=SIZE, workers=1), quiet)
    clips, detector = TrackClips([tmp_path / "set"], "train"), SpeakerModel.from_pretrained(model)
    expected = {clip.track: track_scores(detector, clip) for clip in (clips[i] for i in range(len(clips)))}
    of_scene = {track: scores for track, scores in expected.items() if track.startswith("scene-000001")}
    assert len(of_scene) == 2
    together = np.sort(np.concatenate(list(of_scene.values())))
    assert together[0] > 0.01 and together[-1] < 0.99 and np.ptp(together) > 0.05
    middle = float(together[29:31].mean())
    video, out = scenes / "train" / "scene-000001.mp4", tmp_path / "out"
    args = [str(video), str(model), "--boxes", str(scenes / "train.csv"), "--out", str(out)]
    run("speakers", [*args, "--threshold", repr(middle)])
    rows = read_csv(out / "scores.csv")
    for track, scores in of_scene.items():
        told = [row for row in rows if row["entity_id"] == track]
        assert [float(row["frame_timestamp"]) for row in told] == [round(i / 25, 2) for i in range(30)]
        assert np.abs(np.array([float(row["score"]) for row in told]) - scores).max() < 1e-4
        assert all((row["label"] == "SPEAKING_AUDIBLE") == (float(row["score"]) >= middle) for row in told)
    assert read_rows(out / "scores.csv", scored=True).score_N is not None  # AVA's columns
    written = json.loads((out / "speakers.json").read_text())
    report = LiveReport.read(out / "speakers.json", "report", "avpretrain speakers")
    assert {**written, **report.to_json()} == written
    assert (report.frames, report.faces, report.scores, report.delay_frames) == (30, 2, 60, 2)
    assert report.state_bytes > 0 and report.delay_ms == 80
    text = capsys.readouterr().out
    assert "delay 2 frames (80 ms)" in text and "up with 25 fps on this machine" in text

    with open_media(out / "annotated.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
        sound = container.streams.audio[0]
        assert len(frames) == 30 and frames[0].shape == (48, 96, 3)
        assert abs(float(sound.duration * sound.time_base) - 1.2) < 0.1
    for number, image in enumerate(frames):
        for face, (_, scores) in enumerate(sorted(of_scene.items())):
            edge = image[12:36, 48 * face + 2 : 48 * face + 8]  # around the left side of its box
            green = (edge[:, :, 1] - edge[:, :, 0]).max(axis=1).mean()
            if abs(scores[number] - middle) > 1e-3:
                assert (green > 40) == (scores[number] >= middle), (number, face, green)


def test_faces_are_cut_out_as_those_that_the_model_was_trained_on(
    scenes: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.make_tracks(str(scenes), tmp_path / "set", TracksConfig(face_size=SIZE, margin=0.4, workers=1), quiet)
    cfg = track_config(tmp_path / "run", method="speaker", data={"shards": [str(tmp_path / "set")]})
    method = Speaker(cfg)
    method.open()
    method.save(method.model(), tmp_path / "wide")
    used: list[float] = []
    monkeypatch.setattr("avpretrain.evaluation.speakers.live.run_live", lambda *a, margin, **k: used.append(margin))
    boxes = ["--boxes", str(scenes / "train.csv"), "--out", str(tmp_path / "out")]
    for folder, more in ((tmp_path / "wide", []), (model, []), (tmp_path / "wide", ["--margin", "0.2"])):
        with pytest.raises(AttributeError):  # there is no report
            run("speakers", [str(scenes / "train" / "scene-000001.mp4"), str(folder), *boxes, *more])
    assert used == [0.4, 0.1, 0.2]


class Fixed:
    """A stream that answers with the mean of each frame's face, some frames late."""

    state_bytes = 100

    def __init__(self, delay: int = 0, seconds: float = 0.0) -> None:
        self.delay_frames, self.seconds = delay, seconds
        self.held: list[float] = []

    def push(self, faces: Any, waveform: Any) -> list[float]:
        time.sleep(self.seconds)
        assert waveform.shape == (len(faces) * FRAME_SAMPLES,)
        self.held += [float(face.mean()) / 255 for face in faces]
        return [self.held.pop(0) for _ in range(len(self.held) - self.delay_frames)]

    def flush(self) -> list[float]:
        given, self.held = self.held, []
        return given


class Given:
    """Frames whose brightness is their number."""

    name, aspect = "given", 1.0

    def __init__(self, numbers: list[int], endless: bool = False, stop: int = -1) -> None:
        self.numbers, self.notes, self.endless, self.stop = numbers, list[str](), endless, stop

    def moments(self, colour: bool) -> Iterator[Moment]:
        for number in self.numbers:
            if number == self.stop:
                raise KeyboardInterrupt
            time.sleep(0.03 * self.endless)
            grey = np.full((40, 60) if number < 35 else (30, 80), number, np.uint8)  # videos may change their size
            yield Moment(number, grey, np.repeat(grey[..., None], 3, 2) if colour else None, np.zeros(640, np.float32))


BOX = (0.2, 0.2, 0.6, 0.8)


def watch(source: Given, out: Path, stream: Any, finder: Any = None, **changes: Any) -> LiveReport:
    options: dict[str, Any] = {
        "margin": 0.0, "threshold": 0.5, "annotate": False, "colour": False, "detector": "none", **changes,
    }  # fmt: skip
    return run_live(source, finder or (lambda moment: {"a": BOX}), stream, 8, out, **options)


def test_scores_are_written_as_they_come_and_no_later_than_the_delay(tmp_path: Path) -> None:
    written = []

    def look(number: int, scores: dict[str, float]) -> None:
        written.append(len(read_csv(tmp_path / "scores.csv")))

    report = watch(Given(list(range(20))), tmp_path, lambda: Fixed(3), on_frame=look)
    assert written == [max(0, number + 1 - 3) for number in range(20)]
    rows = read_csv(tmp_path / "scores.csv")
    assert [round(255 * float(row["score"])) for row in rows] == list(range(20))
    assert report.delay_ms == 120 and not (tmp_path / "annotated.mp4").exists()


def test_a_face_that_is_gone_ends_its_stream_and_so_does_a_hole_in_time(tmp_path: Path) -> None:
    def finder(moment: Moment) -> dict[str, Any]:
        return {name: BOX for name, first, last in (("a", 0, 9), ("b", 5, 99)) if first <= moment.number <= last}

    opened: list[Fixed] = []

    def stream() -> Fixed:
        opened.append(Fixed(4))
        return opened[-1]

    numbers = [*range(15), *range(30, 40)]
    report = watch(Given(numbers), tmp_path, stream, finder, annotate=True, colour=True)
    rows = read_csv(tmp_path / "scores.csv")
    assert report.faces == 3 and len(opened) == 4  # a, b, b again after the hole, and one asked for its delay
    told = {(row["entity_id"], round(25 * float(row["frame_timestamp"]))): float(row["score"]) for row in rows}
    expected = {("given:a", n) for n in range(10)} | {("given:b", n) for n in numbers if n >= 5}
    assert set(told) == expected and len(rows) == len(expected)
    assert all(round(255 * score) == number for (_, number), score in told.items())
    with open_media(tmp_path / "annotated.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 25


def test_an_interrupt_ends_a_camera_with_all_that_it_saw(tmp_path: Path) -> None:
    camera = Given(list(range(99)), endless=True, stop=12)
    report = watch(camera, tmp_path, lambda: Fixed(3), annotate=True)
    assert (report.frames, report.scores, len(read_csv(tmp_path / "scores.csv"))) == (12, 12, 12)
    assert report.ms["read"] < 20  # waiting for a camera is no work
    with open_media(tmp_path / "annotated.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 12

    def interrupted(moment: Moment) -> dict[str, Any]:
        if moment.number == 12:
            signal.raise_signal(signal.SIGINT)
        return {"a": BOX}

    before, out = signal.getsignal(signal.SIGINT), tmp_path / "finder"
    report = watch(Given(list(range(99)), endless=True), out, lambda: Fixed(3), interrupted, annotate=True)
    assert (report.frames, report.scores, len(read_csv(out / "scores.csv"))) == (13, 13, 13)
    with open_media(out / "annotated.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 13
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        watch(Given(list(range(99)), stop=12), tmp_path / "file", lambda: Fixed(3), annotate=True)
    assert not (tmp_path / "file" / "annotated.mp4").exists()


def test_it_says_so_where_it_can_not_keep_up(tmp_path: Path) -> None:
    slow = watch(Given(list(range(8))), tmp_path, lambda: Fixed(0, seconds=0.05))
    assert not slow.keeps_up and slow.mean_ms > 50 and slow.cpu_ms < slow.mean_ms
    assert "does NOT keep up with 25 fps" in slow.verdict and "most goes to 'model'" in slow.verdict
    assert "other programs have the CPU" in LiveReport.from_json({**slow.to_json(), "cpu_ms": 5.0}).verdict
    assert "other programs" not in LiveReport.from_json({**slow.to_json(), "cpu_ms": 45.0}).verdict
    values = {**slow.to_json(), "mean_ms": 10.0, "worst_second_ms": 20.0}
    quick = LiveReport.from_json(values)
    assert quick.keeps_up and quick.verdict.startswith("keeps up with 25 fps on this machine")
    assert not LiveReport.from_json({**values, "worst_second_ms": 41.0}).keeps_up
    assert not LiveReport.from_json({**values, "skipped": 1}).keeps_up
    stopped = watch(Given(list(range(100))), tmp_path, Fixed, seconds=0.4)
    assert stopped.frames == 10


# --- faces ----------------------------------------------------------------------------------------------------------


def test_boxes_that_overlap_are_one_face_and_single_detections_are_none() -> None:
    tracker = FaceTracker(patience=3, hits=2)
    left, right = (0.1, 0.1, 0.3, 0.4), (0.6, 0.1, 0.8, 0.4)
    assert tracker.update([left]) == [] and tracker.unsure
    names = []
    for step in range(8):
        moved = (left[0] + 0.02 * step, *left[1:2], left[2] + 0.02 * step, left[3])
        ghost = [(0.4, 0.7, 0.5, 0.9)] if step == 3 else []
        names.append([face.name for face in tracker.update([right, moved, *ghost])])
    assert names == [["face-1"]] + [["face-1", "face-2"]] * 7
    assert [face.name for face in tracker.update([right])] == ["face-1", "face-2"]  # missed once, still there
    assert [face.name for face in tracker.update(None)] == ["face-1", "face-2"]
    for _ in range(3):
        there = tracker.update([right])
    assert [face.name for face in there] == ["face-2"]
    assert iou(left, left) == pytest.approx(1) and iou(left, right) == 0
    assert iou((0, 0, 1, 1), (0.5, 0, 1.5, 1)) == pytest.approx(1 / 3)


def test_faces_are_looked_for_every_so_often_and_sooner_while_unsure() -> None:
    looked: list[int] = []

    class Detector:
        licence, needs_colour = "", False

        def __call__(self, grey_HW: Any, rgb_HWC: Any) -> list[Any]:
            looked.append(int(grey_HW[0, 0]))
            return [BOX]

    finder = DetectedFaces(Detector(), every=5)
    found = [finder(moment) for moment in Given(list(range(14))).moments(False)]
    assert looked == [0, 1, 6, 11]
    assert [len(boxes) for boxes in found] == [0] + [1] * 13


def test_without_opencv_or_its_cascade_a_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'avpretrain\[speakers\]', or give their boxes with --boxes"):
        CascadeFaces()
    five = types.ModuleType("cv2")
    five.__dict__.update(__version__="5.0.0", setNumThreads=lambda n: None)
    monkeypatch.setitem(sys.modules, "cv2", five)
    with pytest.raises(UserError, match=r"OpenCV 5.0.0 comes without the cascade; pip install 'opencv-python.*<5'"):
        CascadeFaces()
    with pytest.raises(UserError, match="no detector"):
        YuNetFaces(tmp_path / "none.onnx")


def test_opencv_cascade_and_a_file_that_is_no_yunet(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs the extra 'speakers'")
    assert CascadeFaces()(np.zeros((480, 640), np.uint8)) == []
    (tmp_path / "other.onnx").write_bytes(b"no model at all")
    with pytest.raises(UserError, match="is no YuNet model that OpenCV") as error:
        YuNetFaces(tmp_path / "other.onnx")
    assert "\n" not in str(error.value)


@needs_real_data
def test_the_cascade_finds_and_follows_a_real_face(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs the extra 'speakers'")
    video, table = REAL_DATA / "grid_av" / "video" / "s1_bbaf2n.mp4", REAL_DATA / "grid_av" / "asd_ava_style.csv.gz"
    run("speakers", [str(video), str(model), "--out", str(tmp_path / "out"), "--no-annotate"])
    rows = read_csv(tmp_path / "out" / "scores.csv")
    assert {row["entity_id"] for row in rows} == {"s1_bbaf2n:face-1"} and len(rows) >= 70
    truth = make.tracks_of(read_rows(table), 1.0, 1)["s1_bbaf2n"][0].box_T4[0]
    box = [float(rows[-1][f"entity_box_{corner}"]) for corner in ("x1", "y1", "x2", "y2")]
    assert iou((box[0], box[1], box[2], box[3]), (truth[0], truth[1], truth[2], truth[3])) > 0.7


# --- a camera -------------------------------------------------------------------------------------------------------


class Capture:
    """Pictures at about 30 a second, as cv2.VideoCapture gives them; blue grows."""

    def __init__(self) -> None:
        self.times, self.released = list[float](), False

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.033)
        self.times.append(time.monotonic())
        return True, np.tile(np.array([len(self.times) - 1, 100, 50], np.uint8), (20, 30, 1))

    def release(self) -> None:
        self.released = True


def test_a_camera_gives_frames_with_audio_without_holes_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BEHIND", 60.0)  # however busy this machine is
    monkeypatch.setattr(inputs, "PICTURES", 1000)
    tone = av.open("sine=frequency=400:sample_rate=48000:duration=1.2,arealtime", format="lavfi")
    capture, microphone = Capture(), Microphone(tone)
    camera = CameraInput(capture, microphone, "camera-0")
    moments, times = [], []
    for moment in camera.moments(colour=True):
        moments.append(moment)
        times.append(microphone.time - 0.04)
        time.sleep(0.1 if len(moments) == 5 else 0)
    camera.close()
    assert camera.skipped == 0 and 10 <= len(moments) <= 30
    assert [m.number for m in moments] == list(range(len(moments)))
    heard = np.concatenate([m.waveform_S for m in moments])[: 10 * FRAME_SAMPLES]
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum.argmax() == 160 and spectrum[155:166].sum() > 0.8 * spectrum.sum()  # 400 Hz, nothing lost
    shown = [m.rgb_HWC[0, 0].tolist() for m in moments if m.rgb_HWC is not None]
    assert len(shown) == len(moments) and all(colour[:2] == [50, 100] for colour in shown)
    for (_, _, number), at in list(zip(shown, times, strict=True))[2:]:
        later = capture.times[number + 1 :][:1] or [np.inf]
        assert capture.times[number] <= at + 0.002 and later[0] > at - 0.002  # the newest that was there
    assert capture.released


def test_a_camera_is_released_only_when_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(Capture):
        reading, broken = False, False

        def read(self) -> tuple[bool, Any]:
            self.reading = True
            time.sleep(0.15)
            self.reading = False
            return True, np.zeros((20, 30, 3), np.uint8)

        def release(self) -> None:
            self.broken, self.released = self.reading, True

    tone = av.open("sine=frequency=400:sample_rate=48000,arealtime", format="lavfi")
    capture, microphone = Busy(), Microphone(tone)
    camera = CameraInput(capture, microphone, "camera-0")
    next(camera.moments(colour=False))
    while not capture.reading:
        time.sleep(0.001)
    camera.close()
    assert capture.released and not capture.broken
    assert microphone.ended and not microphone._thread.is_alive()
    with pytest.raises(AssertionError, match="not open"):
        next(tone.decode(audio=0))

    class Torn(Capture):
        def read(self) -> tuple[bool, Any]:
            raise RuntimeError("no such device")

    monkeypatch.setattr("threading.excepthook", lambda told: None)
    camera, start = CameraInput(Torn(), None, "camera-1"), time.monotonic()
    with pytest.raises(UserError, match="no picture comes from camera-1"):
        next(camera.moments(colour=False))
    assert time.monotonic() - start < 5


def test_a_camera_leaves_frames_out_rather_than_falling_behind() -> None:
    camera = CameraInput(Capture(), None, "camera-0")
    numbers = []
    for moment in camera.moments(colour=False):
        numbers.append(moment.number)
        assert not moment.waveform_S.any()
        if len(numbers) == 2:
            time.sleep(1.3)
        if len(numbers) == 4:
            break
    camera.close()
    assert camera.skipped > 20 and numbers[:2] == [0, 1] and numbers[2] == 2 + camera.skipped


# --- sets of face tracks --------------------------------------------------------------------------------------------


def test_average_precision_of_a_set_is_that_of_its_tracks_by_one_rank_and_by_two(
    scenes: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = TracksConfig(face_size=SIZE, workers=1, hard_negatives=1)
    make.make_tracks(str(scenes), tmp_path / "set", cfg, quiet)
    table = scenes / "train.csv"
    args = [str(tmp_path / "set"), str(model), "--split", "train", "--table", str(table)]
    run("speakers", [*args, "--out", str(tmp_path / "one.json"), "--predictions", str(tmp_path / "p.csv"), "--json"])
    one = json.loads((tmp_path / "one.json").read_text())
    assert json.loads(capsys.readouterr().out) == one
    result = SpeakerResult.from_json(one)

    clips, detector = TrackClips([tmp_path / "set"], "train"), SpeakerModel.from_pretrained(model)
    scores = [track_scores(detector, clips[i]) for i in range(len(clips))]
    labels = [clips[i].labels for i in range(len(clips))]
    whole = average_precision(np.concatenate(scores), np.concatenate(labels) == 1)
    assert result.score.average_precision == pytest.approx(whole, abs=1e-12)
    stored = [i for i in range(len(clips)) if clips.kind(i) == "stored"]
    alone = average_precision(
        np.concatenate([scores[i] for i in stored]), np.concatenate([labels[i] for i in stored]) == 1
    )
    assert result.kinds["stored"] == pytest.approx(alone) and set(result.kinds) > {"swapped", "shifted", "mixed"}
    assert result.ava is not None and result.ava.average_precision == pytest.approx(alone, abs=1e-9)
    assert evaluate(read_rows(table), read_rows(tmp_path / "p.csv", scored=True)) == result.ava

    codes = run_ranks(tmp_path / "ranks", run, "speakers", [*args, "--out", str(tmp_path / "two.json")])
    assert codes == [0, 0], said(tmp_path / "ranks")
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["score"]["average_precision"] == pytest.approx(whole, abs=1e-6)
    assert two["interval"] == pytest.approx(one["interval"], abs=1e-6)


def test_wrong_use_is_said_in_a_line(scenes: Path, model: Path, tmp_path: Path) -> None:
    video = str(scenes / "train" / "scene-000000.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other.csv"
    other.write_text("".join(f"{name},0.0,0.1,0.1,0.4,0.4,NOT_SPEAKING,{name}:1\n" for name in "xy"))
    boxes = ["--boxes", str(scenes / "train.csv")]
    for args, kind, said_so in (
        ([video, str(tmp_path / "empty")], UserError, "no weights"),
        ([str(tmp_path / "none.mp4"), str(model)], UserError, "there is no"),
        ([str(tmp_path / "empty"), str(model)], UserError, "holds no face tracks"),
        ([str(tmp_path / "text.mp4"), str(model), *boxes], UserError, "text.mp4 can't be opened"),
        (
            [video, str(model), "--boxes", str(other)],
            UserError,
            "no faces of video scene-000000; it has those of x, y",
        ),
        ([video, str(model), "--detect-every", "0"], UsageError, "--detect-every must be at least 1"),
        ([video, str(model), "--table", str(other)], UsageError, "did you mean --boxes?"),
        (["https://example.org/a.mp4", str(model)], UsageError, "is an address"),
        ([video, str(model), "--predictions", str(other)], UsageError, "takes the rows of a --table"),
    ):
        with pytest.raises(kind) as error:
            run("speakers", [*args, "--out", str(tmp_path / "out" / "x")])
        assert said_so in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out" / "x" / "annotated.mp4").exists()


def test_a_video_without_audio_is_silence_and_says_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "mute.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=50, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(30):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p")))
        out.mux(stream.encode())
    source = FileInput(tmp_path / "mute.mp4")
    moments = list(source.moments(colour=False))
    assert len(moments) == 15 and not any(m.waveform_S.any() for m in moments)  # 50 a second become 25
    assert "has no audio" in source.notes[0]
