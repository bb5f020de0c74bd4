"""`bench ttft`: FLOPs by hand, memory that holds the cache at least, every arm, and its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from avpretrain.bench.ttft import TTFTPoint, bench_ttft, first_token, first_token_flops, working_bytes
from avpretrain.cli.main import main
from avpretrain.core.errors import UsageError
from avpretrain.methods.kv_prediction.model import KVPredictor
from avpretrain.methods.load import load_config
from avpretrain.methods.openelm.model import LanguageModel

SHAPE = load_config("kvp_tiny").shape()


def reading(heads: int, kv_heads: int, hidden: int, tokens: int, last: bool = False) -> int:
    """Operations of a block of width 128 and heads of 16 on so many tokens; of the last, keys and values alone."""
    if last:
        return 2 * tokens * 128 * 2 * kv_heads * 16
    weights = 128 * (heads + 2 * kv_heads) * 16 + heads * 16 * 128 + 3 * 128 * hidden
    return 2 * tokens * weights + 4 * tokens * tokens * heads * 16


def test_flops_are_those_of_the_products() -> None:
    base, small, n = SHAPE.base, SHAPE.auxiliary, 24
    sizes = list(zip(base.heads, base.kv_heads, base.hidden, strict=True))
    head = 2 * 128 * base.vocabulary
    wanted = sum(reading(*size, n) for size in sizes) + head
    assert first_token_flops(lambda: LanguageModel(base), "base", n) == wanted
    read = list(zip(small.heads, small.kv_heads, small.hidden, strict=True))
    predicted = sum(reading(*size, n - 1) for size in read[:-1]) + reading(*read[-1], n - 1, last=True)
    maps = sum(2 * 2 * (n - 1) * small.kv_heads[i] * 16 * base.kv_heads[k] * 16 for k, i in enumerate(SHAPE.layer_map))
    step = sum(reading(*size, 1) + 4 * (n - 1) * size[0] * 16 for size in sizes) + head
    assert first_token_flops(lambda: KVPredictor.of_shape(SHAPE), "kv_prediction", n) == predicted + maps + step


def test_every_arm_is_measured() -> None:
    torch.manual_seed(0)
    points = bench_ttft(KVPredictor.of_shape(SHAPE).eval(), [8], [1, 2], repeats=2, warmup=1)
    assert [(p.arm, p.tokens, p.batch_size) for p in points[:4]] == [
        ("base", 8, 1), ("auxiliary", 8, 1), ("kv_prediction", 8, 1), ("base", 8, 2),
    ]  # fmt: skip
    assert len(points) == 6 and all(p.seconds >= p.fastest > 0 and not p.out_of_memory for p in points)
    by = {(p.arm, p.tokens, p.batch_size): p for p in points}
    assert by["base", 8, 2].flops == 2 * by["base", 8, 1].flops > 2 * by["kv_prediction", 8, 1].flops
    assert by["kv_prediction", 8, 1].weight_bytes > by["base", 8, 1].weight_bytes > by["auxiliary", 8, 1].weight_bytes
    assert TTFTPoint.from_json(json.loads(json.dumps(points[0].to_json()))) == points[0]
    with pytest.raises(UsageError, match=r"lengths must lie in \[1, 128\]"):
        bench_ttft(KVPredictor.of_shape(SHAPE), [129], [1])


@torch.no_grad()
def test_memory_holds_the_cache_at_least() -> None:
    model, tokens = LanguageModel(SHAPE.base).eval(), torch.zeros(64, 128, dtype=torch.int64)
    cache = model.cache(128, 64).bytes
    found = working_bytes(lambda: first_token(model, tokens), torch.device("cpu"))
    if found is None:
        pytest.skip("peaks of resident memory are read from Linux's /proc, which this system lacks")
    assert 0.5 * cache < found < 100 * cache


def test_its_file_says_with_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ttft.json"
    command = ["bench", "ttft", "kvp_tiny", "--lengths", "8", "4096", "--repeats", "1", "--device", "cpu", "--debug"]
    main([*command, "--out", str(out)])
    found = json.loads(out.read_text())
    assert [p["arm"] for p in found["points"]] == ["base", "auxiliary", "kv_prediction"]
    assert found["hardware"]["cores"] and found["versions"]["torch"] and "commit" in found and not found["trained"]
    assert "kv_prediction" in capsys.readouterr().out
