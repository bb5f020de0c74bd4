"""What a frame on a stream costs: bytes by formula and as measured, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from avpretrain.bench import speaker
from avpretrain.bench.speaker import SpeakerBench, bench_speaker
from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError
from tests.support.tracks import track_config


def test_bytes_follow_the_formula_and_everything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = track_config("unused", model={"fusion": {"future": 2, "heads": 2}}).model
    measured, stream_cost = list[speaker.StreamCost](), speaker.stream_cost
    with monkeypatch.context() as patch:
        patch.setattr(speaker, "stream_cost", lambda *a: measured.append(stream_cost(*a)) or measured[-1])
        found = bench_speaker(cfg, pasts=(0, 4, 64), kinds=("gru",), frames=3)
    assert found.costs == tuple(measured[1:]) and measured[0].past == 0, "the first, which is cold, is left out"
    banded = [cost for cost in found.costs if cost.kind == "banded"]
    assert [cost.formula_bytes for cost in banded] == [2 * (2 * (past + 1) + 2) * 16 * 4 for past in (0, 4, 64)]
    rest = {cost.state_bytes - (cost.formula_bytes or 0) for cost in banded}
    assert rest == {240 * 4 + 2 * 2 * 16 * 4}, "samples that windows reach back to, and two frames that wait"
    gru = found.costs[-1]
    assert gru.past is None and gru.formula_bytes is None and gru.delay_frames == 0
    assert all(cost.frame_ms > 0 and cost.frame_cpu_ms > 0 and cost.realtime_streams > 0 for cost in found.costs)
    assert banded[0].delay_ms == 80
    values = found.to_json()
    assert SpeakerBench.from_json(json.loads(json.dumps(values))) == found
    line = [dataclasses.replace(banded[0], past=past, fusion_cpu_ms=1 + 3e-4 * past) for past in (0, 8, 512)]
    assert dataclasses.replace(found, costs=(*line, gru)).past_ns() == pytest.approx(300)
    bent = (*line[:1], dataclasses.replace(line[1], fusion_cpu_ms=9.0), line[2], gru)
    assert dataclasses.replace(found, costs=bent).past_ns() != pytest.approx(300), "all pasts count"
    assert dataclasses.replace(found, costs=(line[0], gru)).past_ns() is None
    with pytest.raises(UsageError, match="unlimited past has no one cost"):
        bench_speaker(cfg, pasts=(4, -1))


def test_the_command_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "small.yaml"
    preset.write_text(
        "method: speaker\nmodel: {width: 16, encoder: {face_size: 16, channels: [4]}, fusion: {heads: 2}}\n"
    )
    main(
        [
            "bench",
            "speaker",
            "--config",
            str(preset),
            "--past",
            "2",
            "8",
            "--frames",
            "2",
            "--out",
            f"{tmp_path}/b.json",
        ]
    )
    assert "a frame of past costs" in capsys.readouterr().out
    values = json.loads((tmp_path / "b.json").read_text())
    assert [cost["past"] for cost in values["costs"]] == [2, 8, None, None] and values["config"] == "small"
    with pytest.raises(SystemExit):
        main(["bench", "speaker", "--config", "tiny_mavil"])
    assert "give one of method speaker" in capsys.readouterr().err
