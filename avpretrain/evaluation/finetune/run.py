"""Fine-tuning of a checkpoint on a label, and the same architecture from scratch beside it.

B clips, C classes.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from avpretrain.config.model import InputConfig
from avpretrain.config.schedules import lr_at
from avpretrain.config.train import AugmentConfig, OptimConfig
from avpretrain.core.errors import UserError
from avpretrain.core.terminal import Console
from avpretrain.data.batch import AVBatch, RawBatch
from avpretrain.data.features import Features
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.read.dataset import eval_loader
from avpretrain.evaluation.extract import longest_clip, progress
from avpretrain.evaluation.finetune.augmented import Batches, EpochPlan, augmented_loader, draw_mix, spec_augment
from avpretrain.evaluation.finetune.classifier import Classifier, parameter_groups
from avpretrain.evaluation.finetune.recipes import FinetuneConfig
from avpretrain.evaluation.frozen import input_for
from avpretrain.evaluation.labels import Parts, Task
from avpretrain.evaluation.predictions import Predictions, with_baselines
from avpretrain.evaluation.probe.selection import across_parts, headline, majority, pool
from avpretrain.evaluation.results import origin
from avpretrain.evaluation.setup import Outcome, all_clips, parts_of, random_encoder, roles_of
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model
from avpretrain.training.launch import check_accumulation, check_launched_ranks, choose_precision


@dataclass(frozen=True)
class Setting:
    """What every training of one evaluation shares."""

    accelerator: Accelerator
    clips: ClipSet
    task: Task
    input: InputConfig
    cfg: FinetuneConfig

    @property
    def binary(self) -> bool:
        """Whether the loss is binary cross-entropy."""
        return self.cfg.loss == "bce" or (self.cfg.loss == "auto" and self.task.multi_label)

    def targets(self, index_B: Tensor) -> Tensor:
        """float32 [B, C]."""
        target = torch.from_numpy(self.task.target[index_B.cpu().numpy()])
        if not self.task.multi_label:
            target = F.one_hot(target, len(self.task.classes))
        return target.float().to(self.accelerator.device)


def run_finetune(checkpoint: Path, shards: tuple[str, ...], label: str, cfg: FinetuneConfig) -> Outcome:
    """Trains on each part (the official split, or folds in turn) and tests; each rank gets the outcome.

    Raises:
        UserError: no weights, no such label, no test clips, or ranks that do not divide the batch.
    """
    check_accumulation()
    accelerator = Accelerator(mixed_precision=choose_precision("auto")[0])
    check_launched_ranks(accelerator.num_processes)
    if cfg.batch_size % accelerator.num_processes:
        raise UserError(f"batch_size {cfg.batch_size} must be a multiple of the {accelerator.num_processes} ranks")
    model = load_model(checkpoint)
    clips, task = all_clips(shards, label, roles_of(cfg))
    seconds = longest_clip(clips, task.rows_N.tolist(), cfg.max_seconds)
    setting = Setting(accelerator, clips, task, input_for(model, seconds, cfg.modality), cfg)
    usable = readable(setting)
    if not len(usable):
        raise UserError(f"no clip with label '{label}' could be read with modality '{cfg.modality}'")
    unreadable, task = len(task) - len(usable), task.take(usable)
    setting = dataclasses.replace(setting, task=task)
    parts = parts_of(clips, task, cfg.folds)
    ours, part_results = _over_parts(setting, model, parts)
    others = {"majority_class": majority(task, parts)}
    if cfg.baselines:
        # Nothing is known of a random encoder, so all of it learns at the full rate.
        scratch = dataclasses.replace(setting, cfg=dataclasses.replace(cfg, layer_decay=1.0, freeze=False))
        others["from_scratch"], _ = _over_parts(scratch, random_encoder(model.cfg, cfg.seed), parts)
    result = {
        "task": "attentive_probe" if cfg.freeze and cfg.head == "attentive" else "finetune",
        "label": label,
        "modality": cfg.modality,
        **with_baselines(ours, others, cfg.seed),
        "parts": part_results,
        **across_parts(part_results),
        "classes": list(task.classes),
        "clips": {"used": len(task), "without_label": task.without_label, "unreadable": unreadable},
        "finetune": dataclasses.asdict(cfg),
        **origin(checkpoint, model, clips, shards, cfg.seed),
    }
    return Outcome(result, ours)


def readable(setting: Setting) -> NDArray[np.int64]:
    """Places in the task of the clips that can be decoded, as the linear probe counts them: one pass over all clips.

    Every rank must call it, and each gets them all.
    """
    accelerator, cfg = setting.accelerator, setting.cfg
    rows = setting.task.rows_N[accelerator.process_index :: accelerator.num_processes].tolist()
    flags: list[tuple[int, bool]] = []
    with eval_loader(setting.clips, setting.input, rows, cfg.batch_size, cfg.num_workers, cfg.modality) as loader:
        for raw in loader:
            has = {"audio": raw.samples_B > 0, "video": raw.size_B2.amin(dim=1) > 0}
            usable_B = has["audio"] & has["video"] if cfg.modality == "both" else has[cfg.modality]
            flags += zip(raw.index_B.tolist(), usable_B.tolist(), strict=True)
    by_row = dict(gather_object(flags))
    return np.flatnonzero([by_row[int(row)] for row in setting.task.rows_N])


def _over_parts(setting: Setting, model: DiffMAViL, parts: list[Parts]) -> tuple[Predictions, list[dict[str, Any]]]:
    """Pooled test predictions, and each part's sizes and scores."""
    scores, part_results = [], []
    for part in parts:
        classifier, val_score = train_classifier(setting, copy.deepcopy(model), part)
        test_NC = predict(setting, classifier, part.test)
        scores.append(test_NC)
        sizes = {"fit": len(part.fit), "val": len(part.val), "test": len(part.test)}
        test_score = headline(test_NC, setting.task.target[part.test])
        part_results.append({"name": part.name, **sizes, "val_score": val_score, "test_score": test_score})
    return pool(setting.task, parts, scores), part_results


def train_classifier(setting: Setting, model: DiffMAViL, part: Parts) -> tuple[Classifier, float | None]:
    """The classifier after the last epoch, or after the one with the best validation score (which is returned then).

    With `select` 'last' nothing is chosen, so a validation part that belongs to the training clips is trained on too.
    """
    cfg, accelerator = setting.cfg, setting.accelerator
    set_seed(cfg.seed)
    together = part.val_is_training and cfg.select == "last"
    train = np.concatenate([part.fit, part.val]) if together else part.fit
    plan = EpochPlan(train, setting.task.rows_N, setting.task.target, cfg)
    classifier = Classifier(model, len(setting.task.classes), cfg).to(accelerator.device)
    groups = parameter_groups(classifier, cfg.weight_decay, cfg.layer_decay)
    trained, optimizer = accelerator.prepare(classifier, torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95)))
    average = AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema)) if cfg.ema else None
    evaluated = cast(Classifier, average.module) if average else classifier
    best: tuple[float, dict[str, Tensor] | None] = (-1.0, None)
    batches = Batches(plan, accelerator.process_index, accelerator.num_processes)
    features = Features(setting.input, _augment(cfg, setting.input)).to(accelerator.device)
    loader = augmented_loader(setting.clips, setting.input, cfg, batches)
    with progress(len(batches), part.name) as advance, loader:
        for step, raw in enumerate(loader):
            _set_lr(optimizer, step, len(batches), plan.steps, cfg)
            loss = _loss(setting, trained, features, raw.to(accelerator.device))
            accelerator.backward(loss)
            if cfg.clip_norm:
                accelerator.clip_grad_norm_(classifier.parameters(), cfg.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update_parameters(classifier)
            if (step + 1) % plan.steps == 0:
                best = _after_epoch(setting, evaluated, part, (step + 1) // plan.steps, loss, best)
            advance(1)
    if best[1] is None:
        return evaluated, None
    evaluated.load_state_dict(best[1])
    return evaluated, best[0]


def _set_lr(optimizer: torch.optim.Optimizer, step: int, steps: int, epoch_steps: int, cfg: FinetuneConfig) -> None:
    """Warm-up, then half a cosine, by the same function as pretraining; each group at its own share."""
    peak = cfg.base_lr * cfg.batch_size / 256
    schedule = OptimConfig(
        lr=peak, warmup=cfg.warmup_epochs * epoch_steps / steps, min_lr_ratio=min(1.0, cfg.min_lr / peak)
    )
    for group in optimizer.param_groups:
        group["lr"] = lr_at((step + 0.5) / steps, schedule) * group["scale"]


def _loss(setting: Setting, trained: torch.nn.Module, features: Features, raw: RawBatch) -> Tensor:
    trained.train()
    cfg, target_BC = setting.cfg, setting.targets(raw.index_B)
    mix = draw_mix(raw.seed_B, cfg.mixup)
    batch = features(mix.waveforms(raw) if cfg.modality != "video" else raw)
    batch = mix.frames(batch) if cfg.modality != "audio" else batch
    target_BC = mix.targets(target_BC)
    if cfg.specaug_bins or cfg.specaug_frames:
        audio_BFM = spec_augment(batch.audio_BFM, raw.seed_B, cfg.specaug_bins, cfg.specaug_frames)
        batch = dataclasses.replace(batch, audio_BFM=audio_BFM)
    with setting.accelerator.autocast():
        logits_BC = trained(batch).float()
    if setting.binary:
        return F.binary_cross_entropy_with_logits(logits_BC, target_BC)
    return F.cross_entropy(logits_BC, target_BC)


def _augment(cfg: FinetuneConfig, input: InputConfig) -> AugmentConfig:
    rolled = input.audio_seconds / 2 if cfg.roll and cfg.modality == "audio" else 0.0
    return AugmentConfig(gain_db=cfg.gain_db, time_shift=rolled)


def _after_epoch(
    setting: Setting,
    classifier: Classifier,
    part: Parts,
    epoch: int,
    loss: Tensor,
    best: tuple[float, dict[str, Tensor] | None],
) -> tuple[float, dict[str, Tensor] | None]:
    """Says how it goes; with `select` 'best' keeps the weights that do best on validation clips."""
    line = f"{part.name}, epoch {epoch} of {setting.cfg.epochs}: loss {loss.item():.3f}"
    if not torch.isfinite(loss):
        raise UserError(f"{line} is not finite; lower base_lr")
    if setting.cfg.select == "best":
        score = headline(predict(setting, classifier, part.val), setting.task.target[part.val])
        line += f", validation {score:.1%}"
        if score > best[0]:
            best = score, {name: value.detach().clone() for name, value in classifier.state_dict().items()}
    if setting.accelerator.is_main_process:
        Console(stderr=True).print(line, highlight=False)
    return best


@torch.no_grad()
def predict(setting: Setting, classifier: Classifier, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logits [N, C] of the middle of each clip; every rank must call it, and each gets them all."""
    accelerator, cfg = setting.accelerator, setting.cfg
    classifier.eval()
    features = Features(setting.input, None).to(accelerator.device)
    rows = setting.task.rows_N[chosen][accelerator.process_index :: accelerator.num_processes].tolist()
    logits: list[tuple[int, NDArray[np.float64]]] = []
    with eval_loader(setting.clips, setting.input, rows, cfg.batch_size, cfg.num_workers, cfg.modality) as loader:
        for raw in loader:
            batch: AVBatch = features(raw.to(accelerator.device))
            with accelerator.autocast():
                logits_BC = classifier(batch)
            logits += zip(raw.index_B.tolist(), logits_BC.double().cpu().numpy(), strict=True)
    by_row = dict(gather_object(logits))
    return np.stack([by_row[int(row)] for row in setting.task.rows_N[chosen]])
