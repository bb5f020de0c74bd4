"""`avpretrain speakers INPUT CKPT`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file, require_folder
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import write_json
from avpretrain.core.terminal import Console, plain_line, say
from avpretrain.methods.speaker.config import FPS
from avpretrain.training.folders import find_weights

if TYPE_CHECKING:
    from avpretrain.evaluation.speakers.live import Finder, LiveReport
    from avpretrain.evaluation.speakers.score import SpeakerResult


def main(
    source: Annotated[Positional[str], arg(metavar="INPUT")],
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    /,
    out: Path | None = None,
    boxes: Path | None = None,
    detector: str = "haar",
    detect_every: int = 5,
    detect_size: int = 320,
    threshold: float = 0.5,
    margin: float | None = None,
    annotate: bool = True,
    seconds: float = 0.0,
    microphone: str = "default",
    split: str = "test",
    table: Path | None = None,
    predictions: Path | None = None,
    json_: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Say who is speaking in a video or before a camera, while it comes in; or measure a detector on face tracks.

    Reads INPUT: a video file, the number of a camera (0, 1, ...), or a folder that `avpretrain tracks` wrote. A video
    or a camera goes through a face detector, and each face through a stream of the model; scores come as many frames
    late as the model's window says. Writes OUT/scores.csv (AVA's columns and a score, line by line while it runs),
    OUT/annotated.mp4 (boxes green while a face speaks) and OUT/speakers.json, and says whether it keeps up with 25
    frames a second here. Face tracks give average precision by AVA's rules, written into the checkpoint's run or the
    file --out.

    OpenCV finds faces (pip install 'avpretrain[speakers]'; Apache 2.0, its cascade under the Intel License Agreement
    For Open Source Computer Vision Library); with --boxes it is not needed.

    Args:
        source: a video file, the number of a camera, or a folder of face tracks.
        ckpt: a run folder, a checkpoint, or a folder with model.safetensors and config.json.
        out: folder to write, or for face tracks a JSON file; without it speakers_NAME here, or the checkpoint's run.
        boxes: table of the faces' boxes, with AVA's columns; labels in it are not looked at.
        detector: haar (OpenCV's cascade), or the file of a YuNet model (.onnx).
        detect_every: frames from one look for faces to the next.
        detect_size: pixels of the longer side of the frame in which faces are looked for.
        threshold: score from which on a face is said to speak.
        margin: share of the longer side of a box that is added at each side; without it that of the
            tracks that the model was trained on.
        annotate: write annotated.mp4.
        seconds: stop after so many; 0 = at the end of the video, or at Ctrl-C.
        microphone: of a camera: name of the device, or none.
        split: of face tracks: which split.
        table: of face tracks: AVA's ground truth, whose rows are scored one by one.
        predictions: of face tracks: file for the scores of the table's rows, as AVA's evaluation takes them.
        json_: print the result as JSON.
    """
    if detect_every < 1 or detect_size < 32 or seconds < 0 or not 0 <= (margin or 0) <= 2:
        raise UsageError(
            "--detect-every must be at least 1, --detect-size at least 32, --seconds not negative, --margin in [0, 2]"
        )
    if "://" in source:
        raise UsageError(f"{source} is an address; fetch the video first")
    if predictions is not None and table is None:
        raise UsageError("--predictions takes the rows of a --table; name one")
    find_weights(ckpt)
    if Path(source).is_dir():
        require_file(out)
        _measure(Path(source), ckpt, split, out, table, predictions, json_)
        return
    if table is not None:
        raise UsageError(f"--table goes with a folder of face tracks, and {source} is none; did you mean --boxes?")
    camera = source.isdecimal() and not Path(source).exists()
    if not camera and not Path(source).exists():
        raise UserError(f"there is no {source}; name a video file, the number of a camera, or a folder of face tracks")
    folder = out or Path(f"speakers_{'camera' if camera else ''}{Path(source).stem}")
    require_folder(folder)
    if camera and boxes is not None:
        raise UsageError("--boxes goes with a video file, not with a camera")
    report = _stream(
        source, camera, ckpt, folder, boxes, detector, detect_every, detect_size, threshold,
        margin, annotate, seconds, microphone, not json_,
    )  # fmt: skip
    write_json(folder / "speakers.json", {"input": source, "checkpoint": str(ckpt), **report.to_json()})
    if json_:
        print(json_format.dumps(report.to_json(), indent=2))
        return
    for note in report.notes:
        say(note)
    say(
        f"{report.faces} faces in {report.seconds:.1f} s, {report.scores} scores, {report.speaking} of them above "
        f"{threshold:g}; delay {report.delay_frames} frames ({report.delay_ms:.0f} ms) and the time of a frame; "
        f"streams kept {report.state_bytes / 1024:.0f} KiB"
    )
    if not report.faces:
        say("no face was found; try another --detector, look more often (--detect-every), or give --boxes")
    say(report.verdict)
    say(f"faces by {report.detector}")
    say(f"{folder}: scores.csv{', annotated.mp4' if (folder / 'annotated.mp4').exists() and annotate else ''}")


def _stream(
    source: str, camera: bool, ckpt: Path, out: Path, boxes: Path | None, detector: str, every: int, size: int,
    threshold: float, margin: float | None, annotate: bool, seconds: float, microphone: str, live: bool,
) -> LiveReport:  # fmt: skip
    """Runs the detector on a file or a camera."""
    import torch

    from avpretrain.evaluation.speakers.faces import make_detector
    from avpretrain.evaluation.speakers.inputs import CameraInput, FileInput, open_camera
    from avpretrain.evaluation.speakers.live import DetectedFaces, GivenFaces, run_live
    from avpretrain.methods.load import load_speaker
    from avpretrain.methods.speaker.streaming import Stream

    model = load_speaker(ckpt)
    Stream(model)  # refuses a model that needs all the future
    file = None if camera else FileInput(Path(source))
    finder: Finder
    if boxes is not None:
        finder, said, colour = GivenFaces(_given(boxes, Path(source).stem)), f"the table {boxes}", False
    else:
        found = make_detector(detector, size)
        finder, said, colour = DetectedFaces(found, every), f"{detector} ({found.licence})", found.needs_colour
    feed = file or open_camera(int(source), microphone)
    console = Console(stderr=True)

    def show(number: int, scores: dict[str, float]) -> None:
        if live and console.is_terminal and number % 5 == 0:
            told = "  ".join(
                f"{plain_line(name)} {score:.2f}{'*' if score >= threshold else ' '}" for name, score in scores.items()
            )
            console.print(f"{number / FPS:7.1f} s  {told:<60}", end="\r", highlight=False, markup=False)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for one frame, handing work to other threads costs more than it saves
    try:
        return run_live(
            feed, finder, lambda: Stream(model), model.cfg.encoder.face_size, out,
            margin=model.cfg.encoder.face_margin if margin is None else margin, threshold=threshold, annotate=annotate,
            colour=colour, detector=said, seconds=seconds, on_frame=show,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
        if isinstance(feed, CameraInput):
            feed.close()


def _given(table: Path, video: str) -> list[Any]:
    """The tracks of a video that a table tells: those of its name, or of the only one.

    Raises:
        UserError: there are none.
    """
    from avpretrain.methods.speaker.ava import read_rows
    from avpretrain.methods.speaker.tracks.cut import tracks_of

    tracks = tracks_of(read_rows(table), max_gap=1.0, min_frames=1)
    if video not in tracks and len(tracks) != 1:
        raise UserError(f"{table} has no faces of video {video}; it has those of {', '.join(list(tracks)[:5])}")
    return tracks.get(video) or next(iter(tracks.values()))


def _measure(
    folder: Path, ckpt: Path, split: str, out: Path | None, table: Path | None, predictions: Path | None, as_json: bool
) -> None:
    """Average precision on face tracks, shared among ranks."""
    from accelerate import PartialState

    from avpretrain.core.provenance import environment
    from avpretrain.evaluation.results import result_path
    from avpretrain.evaluation.speakers.score import measure
    from avpretrain.methods.load import load_speaker
    from avpretrain.methods.speaker.data import TrackClips
    from avpretrain.training.checkpoint import file_sha256
    from avpretrain.training.folders import WEIGHTS

    state = PartialState()
    clips = TrackClips([folder], split)
    model = load_speaker(ckpt).to(state.device)
    if clips.face_size != model.cfg.encoder.face_size:
        raise UsageError(
            f"{folder} holds faces of {clips.face_size} pixels, but the model takes {model.cfg.encoder.face_size}; "
            f"make tracks with --face-size {model.cfg.encoder.face_size}"
        )
    if clips.margin != model.cfg.encoder.face_margin and state.is_main_process and not as_json:
        trained = model.cfg.encoder.face_margin
        say(f"note: {folder} holds faces with a margin of {clips.margin:g}; the model was trained on {trained:g}")
    result = measure(model, clips, table=table, predictions=predictions)
    if not state.is_main_process:
        return
    weights = find_weights(ckpt)
    answer = {
        "task": "active_speaker", **result.to_json(), "data": str(folder), "fingerprint": clips.fingerprint,
        "checkpoint": {"path": str(weights), "sha256": file_sha256(weights / WEIGHTS)}, **environment(),
    }  # fmt: skip
    path = result_path(ckpt, out, "speakers", split, folder.resolve().name)
    if path is not None:
        write_json(path, answer)
    if as_json:
        print(json_format.dumps(answer, indent=2))
        return
    _say(result)
    if path is not None:
        say(f"result: {path}")


def _say(result: SpeakerResult) -> None:
    score = result.score
    told = f" (95% {result.interval[0]:.3f} to {result.interval[1]:.3f}, over videos)" if result.interval else ""
    say(
        f"AP {score.average_precision:.4f}{told} on {score.rows:,} labelled frames of {result.tracks:,} tracks of "
        f"'{result.split}', {score.positives / score.rows:.1%} speaking; by loudness alone {result.loudness:.4f}"
    )
    if score.highest - score.lowest > 5e-4:
        say(f"frames of one score can be ordered so that it is {score.lowest:.4f} to {score.highest:.4f}")
    if len(result.kinds) > 1:
        parts = [f"{kind} {value:.4f}" for kind, value in result.kinds.items() if value is not None]
        say(f"AP of stored tracks, and of these with one kind of mixture: {', '.join(parts)}")
    if result.ava is not None:
        say(f"AP of the table's {result.ava.rows:,} rows: {result.ava.average_precision:.4f}")
