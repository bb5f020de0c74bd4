"""The analytic cost model against torch's counter, and the command that presents it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avpretrain.cli import main as cli
from avpretrain.config.model import (
    SIDES,
    AudioTowerConfig,
    DecoderConfig,
    DiffusionConfig,
    FusionConfig,
    InputConfig,
    VideoTowerConfig,
)
from avpretrain.config.scaling import StackConfig
from avpretrain.config.schedules import Phase
from avpretrain.config.train import BatchConfig
from avpretrain.cost.count import count_flops
from avpretrain.data.batch import AVBatch
from avpretrain.measures.numbers import duration, flops, percent, si, significant
from avpretrain.methods.diffmavil.config import (
    LossConfig,
    ModelConfig,
    RatioConfig,
    ScheduleConfig,
    TrainConfig,
    load_config,
)
from avpretrain.methods.diffmavil.cost import COMPONENTS, clip_flops, cost_of, visible_tokens
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.memory import activation_bytes
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.diffmavil.run_cost import mavil_of, run_cost
from avpretrain.nn.layers import Block
from avpretrain.nn.reconstruction import TeacherFeatures
from avpretrain.report.ledger import ACCOUNTINGS, VARIANTS, ledger


def tiny(audio: dict[str, Any] | None = None, video: dict[str, Any] | None = None, **model: Any) -> ModelConfig:
    """A model of two or three layers with unlike sizes everywhere, so that no two products look the same."""
    return ModelConfig(
        input=InputConfig(audio_frames=128, mels=32, video_frames=4, video_size=32),
        width=48,
        heads=3,
        mlp_ratio=2.5,
        audio=AudioTowerConfig(
            patch=(16, 8), depth=2, decoder=DecoderConfig(width=32, heads=2, depth=2, **(audio or {}))
        ),
        video=VideoTowerConfig(
            patch=(2, 8, 8), depth=3, decoder=DecoderConfig(width=64, heads=2, depth=3, **(video or {}))
        ),
        **model,
    )


def clips(cfg: ModelConfig, count: int) -> AVBatch:
    x = cfg.input
    return AVBatch(
        audio_BFM=torch.randn(count, x.audio_frames, x.mels),
        video_BTCHW=torch.randn(count, x.video_frames, 3, x.video_size, x.video_size),
        seed_B=torch.arange(count),
        has_audio_B=torch.ones(count, dtype=torch.bool),
        has_video_B=torch.ones(count, dtype=torch.bool),
    )


MODELS: dict[str, ModelConfig] = {
    f"{kind}-{given}-{time}": tiny(
        {"kind": kind, "input": given},
        {"kind": kind, "input": given},
        diffusion=DiffusionConfig(time_conditioning=time),  # type: ignore[arg-type]
    )
    for kind in ("joint", "cross", "cross_self")
    for given in ("mask_token", "diffused")
    for time in ("none", "added", "adaln")
    if given == "diffused" or time == "none"
}
MODELS |= {
    "mavil": tiny(),
    "diffmavil": tiny({"input": "diffused"}, {"input": "diffused", "kind": "cross"}),
    "part-decoded": tiny({"kind": "cross", "decode_ratio": 0.5}, {"kind": "joint", "decode_ratio": 0.3}),
    "windows": tiny({"window": (2, 2)}),
    "levels": tiny({"kind": "cross", "levels": (0, 1)}, {"kind": "cross_self", "levels": (3, 0, 1)}),
    "level-a-patch": tiny({"input": "diffused"}, diffusion=DiffusionConfig(noise_level="patch", mask_share=0.5)),
    "no-norms": tiny(encoder_norm=False, fusion=FusionConfig(norm=False)),
    "windows-adaln": tiny(
        {"window": (4, 2), "input": "diffused"}, diffusion=DiffusionConfig(time_conditioning="adaln")
    ),
    "bottleneck": tiny(fusion=FusionConfig(kind="bottleneck", depth=3, bottleneck_tokens=3)),
    "no-fusion": tiny(fusion=FusionConfig(depth=0)),
    "no-cls": tiny(cls_token=False),
    "one-view": tiny(views=1, loss=LossConfig(intra=0.0)),
    "both-views-decoded": tiny(decode_views=2),
    "layer-wise": tiny(
        {"kind": "cross_self", "layers": StackConfig(heads=(1, 3), hidden=(16, 24))},
        {"layers": StackConfig(alpha=(0.5, 1.0), beta=(0.5, 2.0))},
        fusion=FusionConfig(layers=StackConfig(alpha=(0.5, 1.0))),
    ),
}


def counted(cfg: ModelConfig, audio_ratio: float, video_ratio: float, count: int) -> tuple[float, float]:
    """torch's count of forward and backward, a clip.

    The math kernel of attention, since torch knows no formula for the fused one on a CPU, and the fused one on a GPU
    recomputes its scores in the backward pass.
    """
    model, batch = DiffMAViL(cfg), clips(cfg, count)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model(batch, MaskRatios(audio_ratio, video_ratio))["loss"]
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops() / count, backward.get_total_flops() / count


@pytest.mark.parametrize("name", MODELS)
def test_equals_torchs_counter(name: str) -> None:
    cfg = MODELS[name]
    forward, backward = counted(cfg, 0.7, 0.85, count=3)
    ours = clip_flops(cfg, 0.7, 0.85, batch_size=3)
    assert ours.forward == pytest.approx(forward, rel=1e-9)
    assert ours.training - ours.forward == pytest.approx(backward, rel=1e-9)


@pytest.mark.parametrize("noise_on", ["target", "pixel"])
def test_equals_torchs_counter_when_features_are_predicted(noise_on: Any) -> None:
    cfg = tiny({"input": "diffused"}, objective="features", diffusion=DiffusionConfig(noise_on=noise_on))
    model, batch = DiffMAViL(cfg), clips(cfg, 2)
    features = [torch.randn(2, math.prod(grid), cfg.width) for grid in (cfg.audio_grid, cfg.video_grid)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as student:
        model(batch, MaskRatios(0.8, 0.8), TeacherFeatures(*features))["loss"].backward()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as teacher:
        model.fusion(model.encode_audio(batch.audio_BFM), model.encode_video(batch.video_BTCHW))
    ours = clip_flops(cfg, 0.8, 0.8, batch_size=2)
    theirs = (student.get_total_flops() + teacher.get_total_flops()) / 2
    assert ours.training == pytest.approx(theirs, rel=1e-9)
    assert ours.components["teacher"].training == pytest.approx(teacher.get_total_flops() / 2, rel=1e-9)


@pytest.mark.parametrize("preset", ["tiny_mavil", "tiny_diffmavil"])
@pytest.mark.parametrize("ratio", [0.9, 0.8])
def test_equals_torchs_counter_on_presets(preset: str, ratio: float) -> None:
    cfg = load_config(preset).model
    forward, backward = counted(cfg, ratio, ratio, count=2)
    ours = clip_flops(cfg, ratio, ratio, batch_size=2)
    assert (ours.forward, ours.training) == pytest.approx((forward, forward + backward), rel=1e-9)


@pytest.mark.slow
def test_equals_torchs_counter_at_paper_size() -> None:
    cfg = load_config("base_diffmavil").model
    model, batch = DiffMAViL(cfg), clips(cfg, 1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch, MaskRatios(0.8, 0.8))
    assert clip_flops(cfg, 0.8, 0.8).forward == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_components_are_those_of_the_modules() -> None:
    cfg = MODELS["diffmavil"]
    model = DiffMAViL(cfg)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(clips(cfg, 1), MaskRatios(0.8, 0.8))
    by_module = {name.removeprefix("DiffMAViL."): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    ours = {name: part.forward for name, part in clip_flops(cfg, 0.8, 0.8).components.items()}
    assert list(ours) == list(COMPONENTS)
    by_module |= {
        f"{side}_{part}": by_module[f"towers.{side}.{part}"] for side in SIDES for part in ("encoder", "decoder")
    }
    for name in ("fusion", "audio_decoder", "video_decoder"):
        assert ours[name] == by_module[name]
    patch_embed = sum(by_module[f"towers.{side}.encoder.patch_embed"] for side in SIDES)
    assert ours["patch_embed"] == patch_embed
    encoders = by_module["audio_encoder"] + by_module["video_encoder"]
    assert ours["audio_encoder"] + ours["video_encoder"] == encoders - patch_embed


def test_counting_imports_no_compiler() -> None:
    """Which would cost as much as torch itself; a curriculum of base size is counted in the time of an import."""
    code = (
        "import sys\n"
        "from avpretrain.methods.diffmavil.config import load_config\n"
        "from avpretrain.methods.diffmavil.run_cost import run_cost\n"
        "run_cost(load_config('base_diffmavil'))\n"
        "print(*[name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_any_model_is_counted_on_meta_as_on_the_cpu() -> None:
    """Also one with operations whose shapes torch has to work out."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.block, self.head = nn.Conv1d(3, 8, 3), Block(8, 2, 12, head_width=6), nn.Linear(8, 4)
            self.table = nn.Embedding(5, 8)

        def forward(self, x_BCL: torch.Tensor, phase: Phase) -> dict[str, torch.Tensor]:
            x_BLD = self.block(self.block(self.conv(x_BCL).mT)) + self.table(torch.arange(5, device=x_BCL.device))
            x_BLD = torch.where(x_BLD > 0, x_BLD, x_BLD.std(dim=1, keepdim=True))
            return {"loss": torch.einsum("bld,bmd->blm", self.head(x_BLD), self.head(x_BLD)).logsumexp(-1).mean()}

    def example(phase: Phase, count: int, device: torch.device) -> torch.Tensor:
        return torch.randn(count, 3, 7, device=device)

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        Plain()(example(Phase(), 2, torch.device("cpu")), Phase())["loss"].backward()
    assert count_flops(Plain, example, Phase()) == counter.get_total_flops() / 2 > 0


def test_contrast_grows_with_the_batch() -> None:
    cfg = MODELS["mavil"]
    one, many = (clip_flops(cfg, 0.8, 0.8, n).components["contrastive"].forward for n in (1, 64))
    assert many == 64 * one > 0


def kept_bytes(cfg: ModelConfig, ratio: float, count: int) -> float:
    """Bytes that autograd keeps for the backward pass under bf16 autocast, with inputs and patches."""
    model, batch = DiffMAViL(cfg), clips(cfg, count)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        model(batch, MaskRatios(ratio, ratio))
    inputs_and_patches = 2 * (batch.audio_BFM.nbytes + batch.video_BTCHW.nbytes)
    return sum(t.untyped_storage().nbytes() for t in kept.values()) + inputs_and_patches


@pytest.mark.parametrize("name", ["mavil", "diffmavil", "cross_self-diffused-added", "joint-diffused-adaln", "windows"])
@pytest.mark.parametrize("ratio", [0.8, 0.9])
def test_memory_estimate_is_near_what_autograd_keeps(name: str, ratio: float) -> None:
    cfg = MODELS[name]
    measured = (kept_bytes(cfg, ratio, 6) - kept_bytes(cfg, ratio, 2)) / 4
    assert activation_bytes(cfg, ratio, ratio) == pytest.approx(measured, rel=0.15)


def test_costs_of_the_batch_rules() -> None:
    cfg = load_config("base_mavil").model
    assert visible_tokens(cfg, 0.8, 0.8) == 103 + 158
    assert cost_of(cfg, "visible_tokens")(MaskRatios(0.9, 0.9)) == 52 + 79
    assert cost_of(cfg, "flops")(MaskRatios(0.8, 0.8)) == clip_flops(cfg, 0.8, 0.8, 0).training
    assert cost_of(cfg, "memory")(MaskRatios(0.8, 0.8)) > cost_of(cfg, "memory")(MaskRatios(0.9, 0.9))


def test_paper_size_is_what_arithmetic_says() -> None:
    """92.1 G multiply-adds forward with two views encoded and one decoded, worked out by hand, without class tokens."""
    cfg = load_config("base_mavil").model
    assert clip_flops(cfg, 0.8, 0.8).forward / 2 == pytest.approx(92.1e9, rel=0.02)


def test_phases_cover_the_run() -> None:
    ratio = RatioConfig(kind="linear", start=0.9, end=0.8, levels=3)
    batch = BatchConfig(size=8, multiple=1, rule="visible_tokens")
    schedule = ScheduleConfig(samples=1000, audio_mask_ratio=ratio, video_mask_ratio=ratio, batch=batch)
    cost = run_cost(TrainConfig(model=MODELS["diffmavil"], schedule=schedule), 1000)
    assert [p.audio_ratio for p in cost.phases] == [0.9, 0.85, 0.8]
    assert [p.batch_size for p in cost.phases] == sorted((p.batch_size for p in cost.phases), reverse=True)
    assert 1000 <= cost.clips < 1000 + 8 + 1
    assert cost.total == pytest.approx(sum(p.clips * p.flops.training for p in cost.phases))
    assert sum(part.training for part in cost.components.values()) == pytest.approx(cost.per_clip)


def test_baseline_of_a_diffmavil_preset_is_the_mavil_preset() -> None:
    derived, written = mavil_of(load_config("small_diffmavil")), load_config("small_mavil")
    assert derived.model == written.model
    assert run_cost(derived).per_clip == run_cost(written).per_clip
    assert 0.2 < run_cost(load_config("base_diffmavil")).saving(run_cost(load_config("base_mavil"))) < 0.3


def test_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["flops", "tiny_diffmavil", "--json", "--clips", "640", "--schedule.epochs", "2"])
    answer = json.loads(capsys.readouterr().out)
    assert math.isclose(answer["total"], answer["per_clip"] * answer["clips"])
    assert math.isclose(sum(p["share"] for p in answer["phases"]), 1)
    assert answer["baseline"]["config"] == "mavil"
    assert answer["baseline"]["saving"] > 0.05


def test_command_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["flops", "tiny_diffmavil", "--baseline", "tiny_mavil"])
    said = capsys.readouterr().out
    assert "video decoder" in said
    assert "less than tiny_mavil" in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["tiny_difmavil"], "did you mean 'tiny_diffmavil'"),
        (["tiny_mavil", "--clips", "0"], "--clips must be at least 1"),
        (["tiny_mavil", "--clips", "1", "--schedule.epochs", "2"], "raise schedule.epochs"),
        (["--json", "tiny_mavil"], "the config comes first"),
    ],
)
def test_command_says_what_is_wrong(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["flops", *args])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert says in error
    assert error.count("\n") == 1


def test_numbers_as_people_read_them() -> None:
    assert [si(v) for v in (0, 7, 999.6, 1234, 12_345_678)] == ["0", "7.00", "1.00 k", "1.23 k", "12.3 M"]
    assert flops(826e9) == "826 GFLOP"
    assert flops(12) == "12.0 FLOP"
    assert [significant(v) for v in (0.98765, 1234.5, 1e-7)] == ["0.988", "1234", "1.00e-07"]
    assert [duration(s) for s in (41, 750, 11_520, 2e6)] == ["41.0 s", "12.5 min", "3.20 h", "23.1 days"]


def test_ledger_counts_every_variant_under_every_accounting() -> None:
    entries = ledger(load_config("tiny_mavil"), clips=64)
    assert len(entries) == len(VARIANTS) * len(ACCOUNTINGS)
    saving = {(entry.variant, entry.accounting): entry.saving for entry in entries}
    for accounting in ACCOUNTINGS:
        assert saving["mavil", accounting] == 0
        assert saving["masking 0.9 to 0.8 alone", accounting] == pytest.approx(
            saving["masking 0.8 to 0.9 alone", accounting], abs=0.01
        )
        assert saving["diffmavil, both cross, half decoded", accounting] > saving["diffmavil, both cross", accounting]
    same = run_cost(load_config("tiny_diffmavil"), 64 * 20).saving(run_cost(load_config("tiny_mavil"), 64 * 20))
    assert saving["diffmavil", "encode 2, decode 1"] == pytest.approx(same)


def test_ledger_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ledger.json"
    cli.main(["ledger", "tiny_mavil", "--clips", "64", "--out", str(out), "--json"])
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out)


def test_documented_ledger_is_the_committed_one() -> None:
    """Every share in the table of docs/EFFICIENCY.md stands in docs/results/ledger.json."""
    docs = Path(__file__).parents[2] / "docs"
    entries = json.loads((docs / "results" / "ledger.json").read_text())["entries"]
    text = (docs / "EFFICIENCY.md").read_text()
    for variant in VARIANTS:
        row = [percent(e["saving"]) for e in entries if e["variant"] == variant]
        assert f"| {variant} | " + " | ".join(row) + " |" in text
