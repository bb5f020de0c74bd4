import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from avpretrain.cli.main import run
from avpretrain.core.errors import UsageError
from avpretrain.data.batch import RawBatch
from avpretrain.evaluation.finetune.augmented import Batches, EpochPlan, balanced_weights, draw_mix, spec_augment
from avpretrain.evaluation.finetune.classifier import Classifier, parameter_groups, visible_patches
from avpretrain.evaluation.finetune.recipes import RECIPES, FinetuneConfig
from avpretrain.evaluation.finetune.run import Setting, run_finetune, train_classifier
from avpretrain.evaluation.frozen import input_for
from avpretrain.evaluation.setup import all_clips, parts_of, random_encoder
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import random_batch, tiny

SPLITS = ["train"] * 24 + ["val"] * 8 + ["test"] * 8
SHORT = FinetuneConfig(
    epochs=6, warmup_epochs=1.0, batch_size=8, base_lr=0.1, layer_decay=0.9, drop_path=0.1, specaug_bins=4,
    specaug_frames=8, num_workers=0, baselines=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Low and high tones."""
    specs = [
        Spec(seconds=0.6 + 0.1 * (i % 3), split=split, label=("low", "high")[i % 2], pitch=(i % 8) + 60 * (i % 2),
             labels=(("fold", str(i % 4)), ("tags", ["x"] if i % 3 else ["x", "y"])), size=(32, 32))
        for i, split in enumerate(SPLITS)
    ]  # fmt: skip
    return str(make_dataset(tmp_path_factory.mktemp("data") / "tones", specs, per_shard=16))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_encoder(tiny(), seed=3).save_pretrained(folder)
    return folder


def test_it_learns(data: str, checkpoint: Path) -> None:
    outcome = run_finetune(checkpoint, (data,), "class", dataclasses.replace(SHORT, baselines=True))
    assert outcome.result["accuracy"] == 1.0
    assert set(outcome.result["baselines"]) == {"majority_class", "from_scratch"}


@pytest.mark.parametrize(
    "change",
    [
        {"modality": "both", "epochs": 2},
        {"modality": "video", "ema": 0.9, "epochs": 2},
        {"head": "attentive", "freeze": True, "epochs": 2},
        {"loss": "bce", "balanced": True, "select": "best", "epochs": 2},
    ],
    ids=str,
)
def test_same_command_twice_gives_the_same_numbers(data: str, checkpoint: Path, change: dict[str, object]) -> None:
    cfg = dataclasses.replace(SHORT, **change)  # type: ignore[arg-type]
    a, b = (run_finetune(checkpoint, (data,), "class", cfg) for _ in range(2))
    assert a.result == b.result
    assert np.array_equal(a.predictions.scores_NC, b.predictions.scores_NC)


def test_several_labels_and_folds(data: str, checkpoint: Path) -> None:
    cfg = dataclasses.replace(SHORT, epochs=2, folds="fold")
    result = run_finetune(checkpoint, (data,), "tags", cfg).result
    assert result["metric"] == "map"
    assert len(result["parts"]) == 4
    assert sum(part["test"] for part in result["parts"]) == 40


def setting_of(data: str, cfg: FinetuneConfig) -> Setting:
    clips, task = all_clips((data,), "class")
    return Setting(Accelerator(cpu=True), clips, task, input_for(random_encoder(tiny(), 3), 1.0, cfg.modality), cfg)


@pytest.mark.parametrize("select", ["last", "best"])
def test_test_labels_never_reach_training(data: str, select: str) -> None:
    cfg = dataclasses.replace(SHORT, epochs=2, select=select)
    setting = setting_of(data, cfg)
    (part,) = parts_of(setting.clips, setting.task, "")
    target = setting.task.target.copy()
    target[part.test] = 1 - target[part.test]
    flipped = dataclasses.replace(setting, task=dataclasses.replace(setting.task, target=target))
    (a, score_a), (b, score_b) = (train_classifier(s, random_encoder(tiny(), 3), part) for s in (setting, flipped))
    assert score_a == score_b
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_frozen_encoder_stays_as_it_was(data: str) -> None:
    cfg = dataclasses.replace(SHORT, head="attentive", freeze=True, epochs=2)
    setting, model = setting_of(data, cfg), random_encoder(tiny(), 3)
    (part,) = parts_of(setting.clips, setting.task, "")
    before = {name: p.clone() for name, p in model.audio_encoder.named_parameters()}
    trained, _ = train_classifier(setting, model, part)
    for name, parameter in trained.encoder("audio").named_parameters():
        assert torch.equal(parameter, before[name])
    assert trained.head.weight.abs().sum() > 0.01


def test_layer_decay_falls_from_head_to_patches() -> None:
    classifier = Classifier(random_encoder(tiny(), 0), 3, SHORT)
    scale = {id(p): group["scale"] for group in parameter_groups(classifier, 0.1, 0.5) for p in group["params"]}
    encoder = classifier.encoder("audio")
    assert scale[id(classifier.head.weight)] == 1.0
    assert scale[id(encoder.norm.weight)] == 1.0
    assert scale[id(encoder.blocks[1].attn.qkv.weight)] == 0.5
    assert scale[id(encoder.blocks[0].attn.qkv.weight)] == 0.25
    assert scale[id(encoder.patch_embed.weight)] == 0.125
    assert len(scale) == sum(1 for _ in classifier.parameters())
    plain = {id(p) for g in parameter_groups(classifier, 0.1, 0.5) if g["weight_decay"] == 0 for p in g["params"]}
    assert id(encoder.cls_token) in plain and id(encoder.blocks[0].attn.qkv.bias) in plain
    assert id(encoder.blocks[0].attn.qkv.weight) not in plain


def test_drop_path_acts_in_training_only_and_keeps_the_mean() -> None:
    cfg = dataclasses.replace(SHORT, drop_path=0.5, mask_time=0.0, mask_frequency=0.0)
    classifier, plain = (
        Classifier(random_encoder(tiny(), 0), 3, c) for c in (cfg, dataclasses.replace(cfg, drop_path=0.0))
    )
    x_BLD = torch.randn(4000, 2, 48, generator=torch.Generator().manual_seed(0))
    block, same = classifier.encoder("audio").blocks[1], plain.encoder("audio").blocks[1]
    assert torch.equal(block.eval()(x_BLD[:4]), same(x_BLD[:4]))
    torch.manual_seed(0)
    dropped = block.train().mlp(x_BLD)
    empty = (dropped == 0).all(dim=(1, 2)).float().mean()
    assert 0.45 < empty < 0.55
    torch.testing.assert_close(dropped.mean(), same.mlp(x_BLD).mean(), atol=0.02, rtol=0)


def test_patch_masking_hides_whole_columns_and_rows() -> None:
    ids_BK = visible_patches(torch.arange(5), (10, 4), time=0.2, frequency=0.25)
    assert ids_BK.shape == (5, 8 * 3)
    for ids in ids_BK:
        assert len(set((ids // 4).tolist())) == 8
        assert len(set((ids % 4).tolist())) == 3
    assert len({tuple(ids.tolist()) for ids in ids_BK}) > 1


def test_masked_encoder_sees_visible_patches_only() -> None:
    cfg = dataclasses.replace(SHORT, mask_time=0.5, mask_frequency=0.0, drop_path=0.0)
    classifier = Classifier(random_encoder(tiny(), 0), 3, cfg).train()
    torch.nn.init.normal_(classifier.head.weight)
    batch = random_batch(tiny(), clips=1)
    ids = visible_patches(batch.seed_B, (4, 4), 0.5, 0.0)[0]
    hidden_step = next(t for t in range(4) if t not in (ids // 4).tolist())
    changed = batch.audio_BFM.clone()
    changed[:, hidden_step * 16 : hidden_step * 16 + 16] = 9.0
    other = dataclasses.replace(batch, audio_BFM=changed)
    assert torch.equal(classifier(batch), classifier(other))
    assert not torch.equal(classifier.eval()(batch), classifier(other))


def raw(count: int) -> RawBatch:
    generator = torch.Generator().manual_seed(0)
    return RawBatch(
        waveform_BS=torch.randint(-32768, 32767, (count, 50), dtype=torch.int16, generator=generator),
        samples_B=torch.arange(count) + 10,
        frames_BTHWC=torch.zeros(count, 1, 1, 1, 3, dtype=torch.uint8),
        size_B2=torch.zeros(count, 2, dtype=torch.int64),
        seed_B=torch.arange(count) + 5,
        index_B=torch.arange(count),
    )


def test_mixup_mixes_waveforms_and_targets_alike() -> None:
    batch = raw(64)
    mix = draw_mix(batch.seed_B, share=0.5)
    mixed, target_BC = mix.waveforms(batch), mix.targets(torch.eye(64))
    assert 16 < (mix.own_B < 1).sum() < 48
    for b in range(64):
        own, partner = float(mix.own_B[b]), int(mix.partner_B[b])
        expected = own * batch.waveform_BS[b].float() + (1 - own) * batch.waveform_BS[partner].float()
        assert (mixed.waveform_BS[b] - expected).abs().max() <= 0.51
        assert target_BC[b, b] == pytest.approx(own if partner != b else 1.0)
        longest = max(batch.samples_B[b], batch.samples_B[partner]) if own < 1 else batch.samples_B[b]
        assert mixed.samples_B[b] == longest
    torch.testing.assert_close(target_BC.sum(dim=1), torch.ones(64))


def test_no_mixup_changes_nothing() -> None:
    batch = raw(6)
    assert torch.equal(draw_mix(batch.seed_B, share=0.0).waveforms(batch).waveform_BS, batch.waveform_BS)


def test_spec_augment_blanks_one_band_and_one_stretch() -> None:
    out = spec_augment(torch.ones(200, 60, 32), torch.arange(200), bins=8, frames=100)
    rows, columns = (out == 0).all(dim=2).sum(dim=1), (out == 0).all(dim=1).sum(dim=1)
    assert rows.max() <= 20 and columns.max() <= 8  # a third of the clip at most
    assert rows.float().mean() == pytest.approx(9.5, abs=1.5)
    assert columns.float().mean() == pytest.approx(3.5, abs=0.7)
    assert torch.equal(spec_augment(torch.ones(2, 60, 32), torch.arange(2), 0, 0), torch.ones(2, 60, 32))


def test_balanced_sampling_evens_out_classes() -> None:
    target = np.array([0] * 90 + [1] * 9 + [2])
    weight_N = balanced_weights(target)
    assert [weight_N[target == c].sum() for c in range(3)] == pytest.approx([1 / 3] * 3)
    plan = EpochPlan(np.arange(100), np.arange(100), target, dataclasses.replace(SHORT, balanced=True))
    assert np.bincount(target[plan.epoch(0)]).min() > 15


def test_ranks_share_each_batch_without_overlap() -> None:
    plan = EpochPlan(np.arange(30), np.arange(30) + 100, np.zeros(30), SHORT)
    alone = list(Batches(plan, 0, 1))
    shared = [list(Batches(plan, rank, 2)) for rank in range(2)]
    for i, batch in enumerate(alone):
        assert sorted(shared[0][i] + shared[1][i]) == sorted(batch)
    assert len(alone) == 6 * (30 // 8)
    assert {index for batch in alone[:3] for index, _, _ in batch} <= set(range(30))


def test_verb_starts_from_its_recipe(
    data: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f.json"
    run("finetune", [str(checkpoint), data, "--recipe", "attentive_probe", "--label", "class", "--epochs", "3",
                     "--no-baselines", "--num-workers", "0", "--out", str(out), "--json"])  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert result["task"] == "attentive_probe"
    assert result["finetune"] == {
        **dataclasses.asdict(RECIPES["attentive_probe"]), "epochs": 3, "baselines": False, "num_workers": 0
    }  # fmt: skip
    assert out.with_suffix(".npz").is_file()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["m", "d", "--label", "x", "--recipe", "as2k"], "no recipe 'as2k'"),
        (["--label", "x"], "checkpoint and data come first"),
        (["m", "d"], "label"),
        (["m", "d", "--label", "x", "--epochs", "2", "--warmup-epochs", "3"], "fewer than epochs"),
    ],
)
def test_wrong_use_is_one_line(args: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run("finetune", args)
