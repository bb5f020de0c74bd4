"""The report: what it reads, what it compares, and the page."""

from __future__ import annotations

import dataclasses
import json
import re
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
from avpretrain.report.svg import Bar, BarChart, Segment, Series, chart
from avpretrain.report.windows import HeatMap
from avpretrain.report.write import render
from tests.support.runs import write_run

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


# --- the page --------------------------------------------------------------------------------------------------------


def test_whatever_a_template_prints_is_escaped_and_plain() -> None:
    bad = "<b onload='x'>\x1b[2J\u202e\""
    drawn = chart(bad, [Series(bad, [0.0, 1.0], [1.0, 2.0], 0)], bad)
    rows = BarChart(bad, [Bar(bad, bad, [Segment(0.0, 1.0, "c0", bad)], remark=bad)], 1.0)
    picture = Picture("data:,", bad, 1, 1, bad)
    heat = HeatMap(bad, [bad], [bad], [[0.5]], bad, bad)
    blocks = [
        Legend([("c0", bad)]),
        Figures([Figure(bad, d, bad, key=Legend([("c0", bad)])) for d in (drawn, rows, picture, heat)]),
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
