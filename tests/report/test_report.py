"""The report: what it reads, what it says, and how the page behaves in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from avpretrain.cli import main as cli
from avpretrain.config.model import AudioTowerConfig, DecoderConfig
from avpretrain.core.errors import UserError
from avpretrain.measures.runs import read_run
from avpretrain.methods.diffmavil.config import load_config
from avpretrain.methods.diffmavil.run_cost import run_cost
from avpretrain.methods.load import config_of
from avpretrain.report import page as pages
from avpretrain.report.comparison import Comparison, as_json, sentences, summary_table
from avpretrain.report.page import (
    Card,
    Cards,
    Cell,
    Downloads,
    Figure,
    Figures,
    Legend,
    Picture,
    PictureSequence,
    Players,
    Section,
    Table,
)
from avpretrain.report.saving import config_differences, split_saving
from avpretrain.report.svg import Bar, BarChart, Segment, Series, chart, thinned, tick_labels, ticks
from avpretrain.report.write import render, write_report
from tests.support.runs import write_inpainted, write_probe, write_run


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """A finished MAViL run and a finished DiffMAViL run."""
    return [
        write_run(tmp_path / "mavil", "tiny_mavil", name="mavil", accuracy=0.80),
        write_run(tmp_path / "diffmavil", "tiny_diffmavil", name="diffmavil", accuracy=0.82),
    ]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_reads_what_training_wrote(pair: list[Path]) -> None:
    run = read_run(pair[0], config_of)
    assert (run.name, run.seen, run.finished) == ("mavil", 6400, True)
    assert run.flops_per_clip == pytest.approx(run_cost(run.config, 6400).per_clip)
    assert run.clips_per_second == pytest.approx(60, rel=0.01)
    assert run.probes[0].task == "class from audio, linear probe"
    assert run.probes[0].baselines["random encoder"] == 0.41
    assert len(run.pictures) == 1
    halfway = (run.at(3200, "flops_total"), run.at(3200, "seconds"))
    assert halfway == pytest.approx((run.flops_total / 2, run.seconds / 2), rel=1e-6)


def test_metrics_cut_off_by_a_crash_are_read(pair: list[Path]) -> None:
    path = pair[0] / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-40])
    assert len(read_run(pair[0], config_of).lines) == whole.count("\n") - 1


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.yaml", None, "is no run folder"),
        ("config.yaml", "model: {widht: 3}", "did you mean 'model.width'"),
        ("config.yaml", "- a list", "is not a config"),
        ("metrics.jsonl", None, "has the run logged its first step yet?"),
        ("metrics.jsonl", "", "is empty"),
        ("metrics.jsonl", "nonsense\n{}\n", "line 1 is not valid JSON"),
        ("metrics.jsonl", '{"seen": 1}\n', "lacks a number for 'samples_total'"),
        ("metrics.jsonl", "[1]\n", "lacks a number for 'seen'"),
        ("run.json", "{", "is not valid JSON"),
        ("run.json", "[]", "must hold an object"),
        ("eval/linear_probe_class_audio.json", "{", "is not valid JSON"),
    ],
)
def test_broken_run_is_one_line(
    pair: list[Path], file: str, text: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pair[1] / file
    path.unlink() if text is None else path.write_text(text)
    out = pair[0].parent / "report.html"
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", *map(str, pair), "--out", str(out)])
    error = capsys.readouterr().err
    assert stop.value.code in (1, 2)
    assert says in error
    assert str(pair[1]) in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_missing_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        read_run(tmp_path / "nowhere", config_of)


# --- comparing -------------------------------------------------------------------------------------------------------


def test_savings_are_against_mavil_wherever_it_stands(pair: list[Path]) -> None:
    comparison = Comparison.of(pair[::-1])
    assert comparison.baseline.name == "mavil"
    answer = as_json(comparison)
    by_name = {row["name"]: row for row in answer["runs"]}
    mavil, diffmavil = by_name["mavil"], by_name["diffmavil"]
    assert mavil["flops_saving"] == 0
    expected = run_cost(load_config("tiny_diffmavil"), 6400).saving(run_cost(load_config("tiny_mavil"), 6400))
    assert diffmavil["flops_saving"] == pytest.approx(expected, rel=1e-6)
    assert diffmavil["seconds_saving"] > 0
    assert diffmavil["probes"][0]["value"] == 0.82
    json.dumps(answer, allow_nan=False)


def test_sentences_say_what_was_saved_and_reached(pair: list[Path]) -> None:
    (sentence,) = sentences(Comparison.of(pair))
    assert re.match(r"diffmavil took \d+\.\d% fewer FLOPs and \d+\.\d% less wall clock a clip than mavil", sentence)
    assert "82.0% accuracy against 80.0%, not paired: the scores of single clips are missing" in sentence


def test_summary_is_five_lines_for_two_runs(pair: list[Path]) -> None:
    lines = summary_table(pair).splitlines()
    assert len(lines) == 5
    assert [line.split()[0] for line in lines] == ["run", "mavil", "diffmavil", "best", "diffmavil"]
    assert "41.0% (random encoder)" in lines[3]


def test_seeds_of_one_config_are_one_group(tmp_path: Path) -> None:
    accuracies = (0.78, 0.80, 0.82)
    paths = [
        write_run(tmp_path / f"mavil-{seed}", name=f"mavil-{seed}", seed=seed, accuracy=accuracy)
        for seed, accuracy in enumerate(accuracies)
    ]
    comparison = Comparison.of([*paths, write_run(tmp_path / "d", "tiny_diffmavil", name="diffmavil")])
    assert [(g.name, len(g.runs)) for g in comparison.groups] == [("mavil", 3), ("diffmavil", 1)]
    probe = comparison.groups[0].probe("class from audio, linear probe")
    assert probe is not None
    assert (probe.value, probe.interval) == (pytest.approx(0.80), (0.78, 0.82))
    assert "3 seeds" in render(comparison)


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / part / "run", name="tiny", seed=i) for i, part in enumerate("ab")]
    assert [run.name for run in Comparison.of(paths).runs] == ["a/run", "b/run"]


def test_cautions_name_what_cannot_be_compared(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", name="a"), write_run(tmp_path / "b", name="b", stop_at=0.5)]
    info = json.loads((paths[1] / "run.json").read_text())
    info["hardware"]["gpus"], info["data"]["fingerprint"] = ["A card"], "00"
    (paths[1] / "run.json").write_text(json.dumps(info))
    page = render(Comparison.of(paths))
    for text in (r"b is not finished: 5\d% of its clips", "different hardware", "different data"):
        assert re.search(text, page)


# --- the split of the saving -----------------------------------------------------------------------------------------


def test_split_is_exact_and_in_order() -> None:
    base, target = load_config("base_mavil"), load_config("base_diffmavil")
    changes = split_saving(base, target)
    assert [c.label for c in changes] == [
        "diffused patches",
        "video decoder: joint to cross",
        "masking 0.9 to 0.8",
        "batch size: constant to visible tokens",
    ]
    assert changes[0].before == run_cost(base).per_clip
    assert changes[-1].after == pytest.approx(run_cost(target).per_clip)
    for first, second in pairwise(changes):
        assert first.after == second.before


def test_split_merges_a_stop_that_is_no_valid_config() -> None:
    """Decoding a part of the patches can't be combined with the windows that the baseline's decoder has."""
    base = load_config("tiny_mavil")
    windows = DecoderConfig(width=64, depth=2, heads=2, window=(5, 2))
    part = DecoderConfig(width=32, depth=2, heads=2, decode_ratio=0.5)

    def with_decoder(decoder: DecoderConfig) -> Any:
        audio = dataclasses.replace(base.model.audio, decoder=decoder)
        return dataclasses.replace(base, model=dataclasses.replace(base.model, audio=audio))

    changes = split_saving(with_decoder(windows), with_decoder(part))
    assert changes[-1].after == pytest.approx(run_cost(with_decoder(part)).per_clip)
    assert split_saving(base, base) == []


def test_config_differences_leave_out_names() -> None:
    a = load_config("tiny_mavil")
    b = dataclasses.replace(a, name="b", seed=3, model=dataclasses.replace(a.model, audio=AudioTowerConfig(depth=2)))
    found = config_differences({"a": a, "b": b})
    assert found["seed"] == {"a": 0, "b": 3}
    assert found["model.audio.depth"] == {"a": 4, "b": 2}
    assert "name" not in found


# --- charts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "inside", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.81, 0.9, False, [0.8, 0.82, 0.84, 0.86, 0.88, 0.9]),
        (3, 3, False, [3, 4, 5, 6]),
        (0, 0.9, True, [0, 0.2, 0.4, 0.6, 0.8]),
        (0, 2064, True, [0, 500, 1000, 1500, 2000]),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, inside: bool, expected: list[float]) -> None:
    assert ticks(float(low), float(high), inside) == pytest.approx(expected)


def test_every_axis_has_more_than_two_ticks() -> None:
    for high in (1.001**i * 1e-6 for i in range(0, 40_000, 37)):
        for low in (0.0, 0.3 * high, 0.97 * high):
            found = ticks(low, high)
            assert 4 <= len(found) <= 10 and found[0] <= low * (1 + 1e-6) + 1e-12 and found[-1] >= high * (1 - 1e-6)
        inner = ticks(0.0, high, inside=True)
        assert 4 <= len(inner) <= 10 and inner[-1] <= high * (1 + 1e-6) + 1e-12


def test_tick_labels_agree_with_each_other() -> None:
    assert tick_labels([0.8, 0.85, 0.9]) == ["0.80", "0.85", "0.90"]
    assert tick_labels([0.0, 500.0, 1000.0]) == ["0", "500", "1000"]
    assert tick_labels([0.0, 10_000.0, 20_000.0]) == ["0", "10 k", "20 k"]
    assert tick_labels([0.0, 0.0005, 0.001]) == ["0", "0.0005", "0.0010"]


def test_long_series_are_thinned_and_bad_values_left_out() -> None:
    xs = [float(i) for i in range(5000)]
    points = thinned(xs, xs)
    assert 300 < len(points) <= 400
    assert sum(y for _, y in points) / len(points) == pytest.approx(2499.5, rel=0.01)
    assert thinned([0.0, 1.0, 2.0], [1.0, float("nan"), 3.0]) == [(0.0, 1.0), (2.0, 3.0)]


def test_a_step_holds_back_to_the_value_before() -> None:
    drawn = chart("ratio", [Series("a", [10.0, 20.0], [0.9, 0.8], 0)], "clips", steps=True)
    places = [tuple(map(float, pair.split(","))) for pair in drawn.lines[0].path.split()]
    left, middle, right = 46.0, 197.0, 348.0
    assert [x for x, _ in places] == [left, left, middle, middle, right]
    assert len({y for _, y in places[:3]}) == len({y for _, y in places[3:]}) == 1


def test_whatever_a_template_prints_is_escaped_and_plain() -> None:
    bad = "<b onload='x'>\x1b[2J\u202e\""
    drawn = chart(bad, [Series(bad, [0.0, 1.0], [1.0, 2.0], 0)], bad)
    rows = BarChart(bad, [Bar(bad, bad, [Segment(0.0, 1.0, "c0", bad)], remark=bad)], 1.0)
    picture = Picture("data:,", bad, 1, 1, bad)
    blocks = [
        Legend([("c0", bad)]),
        Figures([Figure(bad, d, bad, key=Legend([("c0", bad)])) for d in (drawn, rows, picture)]),
        Figures([Figure(bad, PictureSequence([picture, picture])), Figure(bad, Players(picture, [(bad, "data:,")]))]),
        Table(bad, [bad], [[Cell(bad), Cell(bad, copy=True)]], folded=bad),
        Cards([Card(bad, "c0", bad, bad, bad, [(bad, bad, bad)])]),
        Downloads([(bad, "text/csv", bad)]),
    ]
    assert {block.template for block in blocks} | {d.drawing.template for b in blocks[1:3] for d in b.items} | {
        "page.html", "page.css", "page.js"
    } == {path.name for path in pages.TEMPLATES.iterdir()}  # every template is tried  # fmt: skip
    values = {"title": bad, "subtitle": bad, "sentences": [bad], "cautions": [bad], "footer": bad}
    html = pages.render("page.html", {**values, "sections": [Section("a", bad, blocks, bad)]})
    assert "<b " not in html and "\x1b" not in html and "\u202e" not in html
    assert html.count("&lt;b onload=&#39;x&#39;&gt;\\x1b[2J\\u202e&#34;") > 40


# --- the page --------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Collects what the page points to, and what can be pointed to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            if name in ("src", "href"):
                self.targets.append(value or "")


def test_page_is_self_contained_and_its_links_lead_somewhere(pair: list[Path]) -> None:
    html = render(Comparison.of(pair))
    links = Links()
    links.feed(html)
    assert len(links.targets) > 8
    for target in links.targets:
        assert target.startswith("data:") or target.removeprefix("#") in links.anchors
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert "@import" not in html
    assert "url(" not in html


def test_pieces_that_are_missing_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "bare", accuracy=None, pictures=0)
    (run / "run.json").unlink()
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    html = render(Comparison.of([run]))
    assert "Overview" in html
    for title in ("Probes", "Reconstructions", "How they were made", "Differences in config"):
        assert f"<h2>{title}</h2>" not in html
    assert len(summary_table([run]).splitlines()) == 2


def test_evaluations_of_another_shape_are_left_out(pair: list[Path]) -> None:
    (pair[0] / "eval" / "other.json").write_text('{"something": [1, 2]}')
    (pair[0] / "eval" / "list.json").write_text("[1, 2]")
    assert len(read_run(pair[0], config_of).probes) == 1


def test_command_writes_the_page_and_prints_json(pair: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = pair[0].parent / "new" / "report.html"
    cli.main(["report", *map(str, pair), "--out", str(out), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in answer["runs"]] == ["mavil", "diffmavil"]
    assert answer["report"] == str(out)
    assert out.read_text().startswith("<!doctype html>")


def test_command_needs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["report"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- in a browser ----------------------------------------------------------------------------------------------------

PROBE_SCRIPT = """
<script>
window.addEventListener("load", () => {
  const table = document.querySelector("table.sortable");
  const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith("FLOPs a clip"));
  const orders = [];
  for (let i = 0; i < 2; i++) {
    table.tHead.rows[0].cells[column].querySelector("button").click();
    orders.push(order());
  }
  const chart = document.querySelector("svg[data-range]");
  const box = chart.getBoundingClientRect();
  const [clientX, clientY] = [box.x + box.width - 30, box.y + 20];
  chart.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
  const slider = document.querySelector(".sequence input");
  const frames = [...slider.closest(".sequence").querySelectorAll(".frame")];
  const moment = () => frames.filter((frame) => !frame.hidden).map((frame) => frame.dataset.name).join();
  const moments = [moment()];
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  moments.push(moment());
  const image = document.querySelector("#listening img");
  const before = image.getBoundingClientRect().width;
  image.click();
  const drawn = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return width > 100 && height > 50 && (element.tagName !== "IMG" || element.naturalWidth > 0);
  };
  const pictures = [...document.querySelectorAll("figure svg, figure img")].filter((e) => !e.closest("[hidden]"));
  const lines = [...document.querySelectorAll("polyline, rect.bar")];
  const result = {
    errors: window.errors,
    orders,
    readout: chart.parentElement.querySelector("output").textContent,
    moments,
    copy: [...document.querySelectorAll("button.copy")].every((button) => !button.hidden),
    copied: document.querySelector("button.copy").previousElementSibling.textContent,
    sounds: document.querySelectorAll("audio").length,
    zoomed: [before, image.getBoundingClientRect().width, image.naturalWidth],
    figures: document.querySelectorAll("figure").length,
    drawn: pictures.filter(drawn).length,
    coloured: lines.every((line) => {
      const style = getComputedStyle(line);
      return /rgb/.test(line.tagName === "rect" ? style.fill : style.stroke);
    }),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    background: getComputedStyle(document.body).backgroundColor,
  };
  document.body.textContent = "RESULT" + JSON.stringify(result) + "END";
});
</script></body>"""


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def in_browser(page: Path, width: int, dark: bool) -> dict[str, Any]:
    """What a script finds in the page as Chromium shows it."""
    html = page.read_text().replace(
        "<head>", "<head><script>window.errors = []; onerror = (m) => { errors.push(String(m)); };</script>", 1
    )
    probed = page.with_name("probed.html")
    probed.write_text(html.replace("</body>", PROBE_SCRIPT, 1))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={page.parent / f'browser-{width}-{dark}'}", f"--window-size={width},1200",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--enable-logging=stderr", "--dump-dom",
        probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CONSOLE" not in done.stderr
    found = re.search("RESULT(.*)END", done.stdout)
    assert found, done.stdout[-500:]
    answer: dict[str, Any] = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    return answer


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None,
    reason="needs a browser, which is no Python package: put Chromium or Chrome on PATH (.ci/run installs one)",
)
def test_page_works_in_a_browser(pair: list[Path]) -> None:
    write_probe(pair[0], 0.6, modality="video")
    write_inpainted(pair[0])
    for moment in (10, 20):
        (pair[1] / "reconstructions" / f"{moment:012d}.png").write_bytes(next(pair[1].glob("r*/*.png")).read_bytes())
    page = pair[0].parent / "report.html"
    write_report(pair, page)
    light, dark = in_browser(page, 1280, dark=False), in_browser(page, 390, dark=True)
    for result in (light, dark):
        assert result["errors"] == []
        assert result["figures"] == result["drawn"] > 15
        assert result["coloured"]
        assert result["orders"] == [["diffmavil", "mavil"], ["mavil", "diffmavil"]]
        assert re.search(r"clips seen: mavil [\d.]+ · diffmavil [\d.]+", result["readout"])
        assert result["overflow"] <= 0
        assert result["moments"] == ["after 6,400 clips", "after 10 clips"]
        assert result["copy"] and result["copied"] == "avpretrain train mavil"
        assert result["sounds"] == 2
        shown, full, natural = result["zoomed"]
        assert shown <= full == pytest.approx(natural, abs=2.5)
    assert light["background"] != dark["background"]
