"""What the page holds besides charts: paired differences, classes, downloads, moments, sounds, commands."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avpretrain.core.errors import UserError
from avpretrain.evaluation.predictions import Predictions
from avpretrain.evaluation.results import compare_results, predictions_path
from avpretrain.report.comparison import Comparison, as_json, sentences
from avpretrain.report.write import render
from tests.support.runs import write_inpainted, write_probe, write_run, write_scores

TASK = "class from audio, linear probe"


def short(folder: Path, preset: str = "tiny_mavil", **more: object) -> Path:
    """A run of few steps."""
    return write_run(folder, preset, samples=320, **more)  # type: ignore[arg-type]


def scored(folder: Path, preset: str, right: int, clips: int = 40, **more: object) -> Path:
    """A run whose probe got the first `right` clips right."""
    run = short(folder, preset, name=folder.name, accuracy=None, **more)  # type: ignore[arg-type]
    write_scores(write_probe(run, right / clips), [i < right for i in range(clips)])
    return run


def result(run: Path) -> Path:
    return run / "eval" / "linear_probe_class_audio.json"


def text_of(html: str) -> str:
    """What a reader sees of a page, in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL))


def downloaded(html: str) -> dict[str, str]:
    """The files inside a page."""
    links = re.findall(r'<a download="([^"]+)" href="data:[a-z/]+;base64,([^"]+)">', html)
    return {name: base64.b64decode(data).decode() for name, data in links}


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# --- one run ---------------------------------------------------------------------------------------------------------


def test_a_single_run_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    comparison = Comparison.of([short(tmp_path / "alone")])
    html = text_of(render(comparison))
    assert "saved" not in html and "baseline" not in html
    answer = as_json(comparison)
    assert answer["baseline"] is answer["runs"][0]["flops_saving"] is answer["runs"][0]["seconds_saving"] is None


def test_seeds_of_one_config_have_no_saving_either(tmp_path: Path) -> None:
    html = text_of(render(Comparison.of([short(tmp_path / f"m-{i}", name=f"m-{i}", seed=i) for i in range(2)])))
    assert "saved" not in html and "2 seeds" in html


def test_a_run_without_probes_and_with_columns_of_its_own(tmp_path: Path) -> None:
    run = short(tmp_path / "text", accuracy=None, pictures=0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x | {"bits_per_byte": 2.0}) + "\n" for x in lines))
    html = render(Comparison.of([run]))
    assert "Bits per byte over clips" in html and "Norm of the gradient over clips" in html
    assert "<h2>Probes</h2>" not in html


def test_metrics_that_are_no_share_are_shown_as_they_are(tmp_path: Path) -> None:
    run = short(tmp_path / "text", accuracy=None)
    (run / "eval").mkdir()
    values = {"task": "language", "metric": "bits_per_byte", "bits_per_byte": 1.234, "ci": [1.2, 1.3], "baselines": {}}
    (run / "eval" / "language.json").write_text(json.dumps(values))
    html = render(Comparison.of([run]))
    assert "1.23 (1.20 to 1.30)" in html and "123.4%" not in html


# --- paired differences ----------------------------------------------------------------------------------------------


def test_differences_are_those_of_compare(tmp_path: Path) -> None:
    runs = [scored(tmp_path / "mavil", "tiny_mavil", 20), scored(tmp_path / "diffmavil", "tiny_diffmavil", 30)]
    comparison = Comparison.of(runs)
    expected = compare_results(result(runs[1]), result(runs[0]))
    (found,) = as_json(comparison)["differences"]
    assert found["difference"] == expected["difference"] == 0.25
    assert list(found["ci"]) == expected["difference_ci"]
    low, high = (f"{100 * bound:+.1f}" for bound in expected["difference_ci"])
    assert f"+25.0 points ({low} to {high}), clear" in sentences(comparison)[0]
    assert render(comparison).count(f"+25.0 points ({low} to {high}), clear") == 2  # in words, and below the bar


def test_where_there_is_no_clear_difference_the_page_says_so(tmp_path: Path) -> None:
    runs = [scored(tmp_path / "mavil", "tiny_mavil", 20), scored(tmp_path / "diffmavil", "tiny_diffmavil", 21)]
    assert "no clear difference" in render(Comparison.of(runs))


def test_where_nothing_can_be_paired_the_page_says_why(tmp_path: Path) -> None:
    runs = [scored(tmp_path / "mavil", "tiny_mavil", 20), scored(tmp_path / "diffmavil", "tiny_diffmavil", 30)]
    write_scores(result(runs[1]), [True] * 40, classes=3)
    assert "not paired: the two results are of different tasks: their classes differ" in render(Comparison.of(runs))
    predictions_path(result(runs[0])).unlink()
    assert "not paired: the scores of single clips are missing" in render(Comparison.of(runs))
    result(runs[0]).unlink()
    assert "not paired: mavil has no such result" in render(Comparison.of(runs))


def test_seeds_are_paired_with_their_like(tmp_path: Path) -> None:
    rights = {("mavil", "tiny_mavil"): (20, 10), ("diffmavil", "tiny_diffmavil"): (18, 24)}
    runs = [
        scored(tmp_path / f"{name}-s{seed}", preset, right, seed=seed)
        for (name, preset), values in rights.items()
        for seed, right in enumerate(values)
    ]
    (found,) = as_json(Comparison.of([*runs[:2], *runs[:1:-1]]))["differences"]
    assert (found["seeds"], found["difference"], found["ci"]) == (2, pytest.approx(0.15), pytest.approx((-0.05, 0.35)))


# --- classes ---------------------------------------------------------------------------------------------------------


def test_classes_have_their_accuracy_and_clips(tmp_path: Path) -> None:
    runs = [scored(tmp_path / "mavil", "tiny_mavil", 20), scored(tmp_path / "diffmavil", "tiny_diffmavil", 30)]
    write_scores(result(runs[1]), [i % 4 != 1 for i in range(40)])  # half of class1's are wrong
    html = render(Comparison.of(runs))
    rows = re.findall(r'<tr><th scope="row">(class\d)</th>(.*?)</tr>', html)
    shown = {name: re.findall("<td[^>]*>([^<]*)</td>", cells) for name, cells in rows}
    assert shown == {"class0": ["20", "50.0%", "100.0%", "+50.0"], "class1": ["20", "50.0%", "50.0%", "0.0"]}


def test_clips_of_several_labels_have_average_precision(tmp_path: Path) -> None:
    run = short(tmp_path / "mavil", accuracy=None)
    path = write_probe(run, 0.5, metric="map", map=0.5)
    target = np.array([[True, False], [True, True], [False, True], [False, False]])
    scores = np.array([[0.9, 0.8], [0.8, 0.9], [0.1, 0.1], [0.2, 0.7]])
    Predictions(("a", "b", "c", "d"), ("bell", "rain"), scores, target).save(predictions_path(path))
    rows = re.findall(r'<th scope="row">(bell|rain)</th><td[^>]*>2</td><td[^>]*>([^<]*)<', render(Comparison.of([run])))
    assert dict(rows) == {"bell": "100.0%", "rain": "75.0%"}


# --- downloads -------------------------------------------------------------------------------------------------------


def test_numbers_can_be_taken_along(tmp_path: Path) -> None:
    runs = [scored(tmp_path / "mavil", "tiny_mavil", 20), scored(tmp_path / "=diff", "tiny_diffmavil", 30)]
    comparison = Comparison.of(runs)
    files = downloaded(render(comparison))
    assert set(files) == {"runs.csv", "evaluations.csv", "curves.csv", "report.json"}
    assert json.loads(files["report.json"]) == json.loads(json.dumps(as_json(comparison)))
    rows = table(files["runs.csv"])
    assert [row["name"] for row in rows] == ["mavil", "'=diff"]  # which a spreadsheet does not compute
    assert float(rows[1]["flops_per_clip"]) == comparison.runs[1].flops_per_clip
    assert float(rows[1]["reconstruction_audio"]) == comparison.runs[1].last["reconstruction_audio"]
    found = {(row["run"], row["features"]): row for row in table(files["evaluations.csv"])}
    assert float(found["'=diff", "encoder"]["value"]) == 0.75
    assert float(found["'=diff", "difference to mavil"]["value"]) == 0.25
    curve = [row for row in table(files["curves.csv"]) if row["run"] == "mavil"]
    assert [float(row["loss"]) for row in curve] == pytest.approx([x["loss"] for x in comparison.runs[0].lines], 1e-5)


def test_long_curves_are_averaged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", samples=6400, accuracy=None, pictures=0)
    comparison = Comparison.of([run])
    curve = table(downloaded(render(comparison))["curves.csv"])
    first, second, *_ = comparison.runs[0].lines
    assert len(curve) == len(comparison.runs[0].lines) / 2 == 200
    assert float(curve[0]["loss"]) == pytest.approx((first["loss"] + second["loss"]) / 2, rel=1e-5)


# --- pictures and sounds ---------------------------------------------------------------------------------------------


def test_reconstructions_over_time_are_thinned_and_end_with_the_newest(tmp_path: Path) -> None:
    run = short(tmp_path / "run", pictures=9)
    moments = re.findall(r'class="frame" data-name="after ([\d,]+) clips"( hidden)?', render(Comparison.of([run])))
    assert [int(seen.replace(",", "")) for seen, _ in moments][:: len(moments) - 1] == [35, 320]
    assert [bool(hidden) for _, hidden in moments] == [True] * 5 + [False]


def test_pictures_say_their_natural_size_and_get_no_larger(tmp_path: Path) -> None:
    run = short(tmp_path / "run")
    html, size = render(Comparison.of([run])), next(run.glob("reconstructions/*.png")).stat().st_size
    (found,) = re.findall(r'<img src="data:image/(?:webp|png);base64,([^"]+)"[^>]*width="(\d+)" height="(\d+)"', html)
    assert found[1:] == ("560", "160")
    assert len(base64.b64decode(found[0])) <= size


def test_what_previews_measured_is_drawn(tmp_path: Path) -> None:
    run = short(tmp_path / "run")
    assert "Measured during training" not in render(Comparison.of([run]))
    for seen in (100, 200):
        path = run / "reconstructions" / f"{seen:012d}.json"
        path.write_text(json.dumps({"seen": seen, "recall": seen / 400, "note": "text"}))
    comparison = Comparison.of([run])
    assert [line["recall"] for line in comparison.runs[0].previews] == [0.25, 0.5]
    assert "R@1 of preview clips over clips" in render(comparison)


def test_inpainted_audio_can_be_heard(tmp_path: Path) -> None:
    run = short(tmp_path / "run")
    original = write_inpainted(run)
    html = render(Comparison.of([run]))
    sounds = re.findall(r'<label>(\w+) <audio controls [^>]*src="data:audio/flac;base64,([^"]+)"', html)
    assert [name for name, _ in sounds] == ["original", "filled"]
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0][1])), dtype="int16")
    assert rate == 16_000 and np.array_equal(heard, soundfile.read(original, dtype="int16")[0])


@pytest.mark.parametrize(("file", "says"), [("clip-original.wav", "no audio"), ("clip-audio.png", "not a picture")])
def test_damaged_pictures_and_sounds_are_named(tmp_path: Path, file: str, says: str) -> None:
    run = short(tmp_path / "run")
    (write_inpainted(run).parent / file).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=rf"{file} is {says}"):
        render(Comparison.of([run]))


# --- commands --------------------------------------------------------------------------------------------------------


def test_commands_are_quoted_for_a_shell(tmp_path: Path) -> None:
    run = short(tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    info["command"] = ["avpretrain", "train", "tiny", "--output-dir", "my runs/a&b"]
    (run / "run.json").write_text(json.dumps(info))
    html = render(Comparison.of([run]))
    assert "<code>avpretrain train tiny --output-dir &#39;my runs/a&amp;b&#39;</code>" in html
