"""Shards and weights that commit c5ab0f8 wrote, in the flat layout, still load, to the same numbers.

Made there, with the config in `model/config.json`, by

    avpretrain synth scenes --clips 3 --seed 3 --seconds 1 --size 32 --fps 8
    avpretrain shards scenes shards --clip-seconds 0 --short-side 32
    avpretrain train CONFIG --data.shards shards        # six clips, in batches of two
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from avpretrain import hear
from avpretrain.cli.main import main

HERE = Path(__file__).with_name("c5ab0f8")
EXPECTED = json.loads((HERE / "expected.json").read_text())


def test_weights_give_the_same_embeddings() -> None:
    t = torch.arange(16_000) / 16_000
    sounds = [0.3 * torch.sin(2 * math.pi * 440 * t), 0.1 * torch.sin(2 * math.pi * (200 + 600 * t) * t)]
    found = hear.get_scene_embeddings(torch.stack(sounds), hear.load_model(str(HERE / "model")))
    torch.testing.assert_close(found, torch.tensor(EXPECTED["scene_embeddings"]), atol=1e-3, rtol=0)


def test_shards_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(HERE / "shards"), "--verify", "--json"])
    assert json.loads(capsys.readouterr().out)["clips"] == 3


def test_weights_read_shards_to_the_same_result(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    main(["retrieve", str(HERE / "model"), str(HERE / "shards"), "--split", "all", "--no-baselines",
          "--num-workers", "0", "--out", str(out)])  # fmt: skip
    result, expected = json.loads(out.read_text()), EXPECTED["retrieval"]
    assert result["gallery"] == expected["gallery"]
    assert result["recall_at_1"] == pytest.approx(expected["recall_at_1"])
    ranks = [result[way]["median_rank"] for way in ("audio_to_video", "video_to_audio")]
    assert ranks == pytest.approx(expected["median_rank"])


def test_a_new_run_trains_on_old_shards(tmp_path: Path) -> None:
    model = json.loads((HERE / "model" / "config.json").read_text())["config"]
    config = {"name": "new", "model": model, "schedule": {"samples": 2, "batch": {"size": 2, "multiple": 2}}}
    (tmp_path / "new.yaml").write_text(json.dumps(config))  # JSON is YAML
    main(["train", str(tmp_path / "new.yaml"), "--data.shards", str(HERE / "shards"), "--data.num-workers", "1",
          "--output-dir", str(tmp_path / "run")])  # fmt: skip
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
