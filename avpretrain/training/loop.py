"""The pretraining loop: the plan says what each step is, the loader brings its clips, the model returns its losses."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.distributed.tensor import DTensor

from avpretrain.batch import RawBatch
from avpretrain.config import TrainConfig
from avpretrain.data.dataset import ClipSet, check_bad_share, train_loader
from avpretrain.data.features import Features
from avpretrain.data.splits import is_held_out, split_text
from avpretrain.errors import UserError
from avpretrain.locks import locked
from avpretrain.models.cost import cost_of
from avpretrain.models.diffmavil import DiffMAViL
from avpretrain.schedules import Step, plan, total_samples
from avpretrain.training.build import (
    check_batches,
    check_ranks,
    make_accelerator,
    make_optimizer,
    prepare_model,
    whole_model,
)
from avpretrain.training.checkpoint import CheckpointWriter, Progress, Snapshot, best_checkpoint, restore, take_snapshot
from avpretrain.training.guards import FiniteGuard, Preemption, Watchdog, memory_advice, sparing_children
from avpretrain.training.launch import banner
from avpretrain.training.memory_probe import with_measured_memory
from avpretrain.training.metrics import MetricsLog, ProgressBar
from avpretrain.training.preview import Preview
from avpretrain.training.run import open_run, resolve, resume_point, save_failure
from avpretrain.training.stage2 import make_stage2
from avpretrain.training.window import Mean, Window, after_step, epoch_line, metrics_line


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    progress: Progress
    finished: bool
    """False when a signal or `stop_at` ended it early; the same command goes on from its checkpoint."""
    stopped_by: str | None = None


def train(cfg: TrainConfig, stop_at: int | None = None) -> Outcome:
    """Pretrains from a config, or goes on with the run in its folder, to the bit on the same number of ranks.

    Args:
        stop_at: ends after the step that reaches this many clips, with a checkpoint.

    Raises:
        UsageError: the config does not fit the data, the ranks, or the run that the folder holds.
        UserError: training failed, or another process trains in the folder; the message says what to do.
    """
    accelerator = make_accelerator(cfg)
    clips = ClipSet(cfg.data.shards, cfg.data.split, cfg.data.cache_dir, cfg.data.request_timeout)
    if accelerator.is_main_process:
        warn_of_held_out(cfg.data.split, clips)
    cfg = resolve(cfg, clips)
    check_ranks(accelerator, cfg.schedule.batch.multiple)
    with locked(cfg.run_dir, "training") if accelerator.is_main_process else contextlib.nullcontext():
        with sparing_children():
            cfg = with_measured_memory(cfg, accelerator)
        trainer = Trainer(cfg, accelerator, clips)
        with Preemption().listening() as preemption, Watchdog(cfg.run.hang_timeout) as watchdog:
            return trainer.run(preemption, watchdog, stop_at)


def warn_of_held_out(split: str | tuple[str, ...], clips: ClipSet) -> None:
    """Says on stderr which clips that are meant for evaluation a run trains on."""
    held_out = {name: count for name, count in clips.clips_by_split.items() if is_held_out(name)}
    if held_out:
        counts = ", ".join(f"{name} {count}" for name, count in held_out.items())
        print(
            f"avpretrain: warning: data.split {split_text(split)} trains on clips that are meant for evaluation "
            f"({counts}); scores on them will not be those of new clips. --data.split takes several names",
            file=sys.stderr,
        )


class Trainer:
    """One rank's part in a run."""

    def __init__(self, cfg: TrainConfig, accelerator: Accelerator, clips: ClipSet) -> None:
        self.cfg, self.accelerator, self.clips = cfg, accelerator, clips
        self.total = total_samples(cfg.schedule, len(clips))
        batch = cfg.schedule.batch
        self.cost = cost_of(cfg.model, batch.rule, batch.bytes_per_clip)
        self.plan = list(plan(cfg.schedule, cfg.optim, self.total, self.cost))
        check_batches(cfg, self.plan, len(clips))
        torch.manual_seed(cfg.seed)
        model = DiffMAViL(cfg.model)
        teacher = make_stage2(cfg, model)
        self.teacher = None if teacher is None else teacher.to(accelerator.device)
        self.parameters = sum(p.numel() for p in model.parameters())
        if accelerator.is_main_process:
            facts = {"parameters": self.parameters, "ranks": accelerator.num_processes}
            open_run(cfg, clips, {**facts, "samples_total": self.total, "precision": accelerator.mixed_precision})
        accelerator.wait_for_everyone()
        optimizer = make_optimizer(model, cfg.optim)
        self.guard = FiniteGuard(optimizer, accelerator.device)
        self.model, self.optimizer = accelerator.prepare(prepare_model(model, cfg.run), optimizer)
        self.features = Features(cfg.model.input, cfg.data.augment).to(accelerator.device)
        self.progress = self._resume()
        self.writer = CheckpointWriter(cfg.run_dir / "checkpoints", cfg.run.keep_checkpoints, cfg.run.keep_best)
        self.window, self.reconstruction = Window(), Mean()

    def _resume(self) -> Progress:
        checkpoint: Path | None = None
        if self.accelerator.is_main_process:
            checkpoint, said = resume_point(self.cfg)
            for line in said:
                print(f"avpretrain: {line}")
        checkpoint = broadcast_object_list([checkpoint])[0]
        return Progress() if checkpoint is None else restore(checkpoint, self.model, self.optimizer.optimizer)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self, preemption: Preemption, watchdog: Watchdog, stop_at: int | None) -> Outcome:
        """Trains from where the run stands to its end, `stop_at`, or a signal."""
        cfg, main = self.cfg, self.accelerator.is_main_process
        if self.accelerator.log_with:
            self.accelerator.init_trackers(cfg.run_dir.name)
        self.log = MetricsLog(cfg.run_dir, self.progress.seen) if main else None
        self.preview = Preview(cfg) if main and cfg.run.preview_clips and self.teacher is None else None
        self.bar = ProgressBar(cfg.name, self.progress.seen, self.total, shown=main)
        self.bar.say(banner(cfg, self.accelerator, self.plan, len(self.clips), self.parameters, self.progress.seen))
        if self.log is not None and self.log.damage:
            self.bar.say(self.log.damage)
        steps = list(dropwhile(lambda step: step.seen < self.progress.seen, self.plan))
        stopped_by = None
        with self.bar, contextlib.closing(self._batches(steps)) as batches:
            for step, raw, waited in batches:
                spared = sparing_children() if step is steps[0] else contextlib.nullcontext()
                ratios = step.audio_ratio, step.video_ratio
                with memory_advice(step.batch_size, self.accelerator.num_processes, ratios), spared:
                    self._step(step, raw, waited)
                watchdog.alive()
                last = step is steps[-1] or (stop_at is not None and self.progress.seen >= stop_at)
                if step.index % cfg.run.log_every == 0 or last:
                    self._report(step)
                if self._stop_requested(preemption, step):
                    stopped_by, last = preemption.received or "a signal on another rank", True
                self._milestones(step, last)
                if last:
                    break
        return Outcome(self.progress, self._finish(), stopped_by)

    def _batches(self, steps: list[Step]) -> Generator[tuple[Step, RawBatch, float]]:
        """Each step with its clips and the seconds that the loop waited for them; closing it ends the loader."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        cfg = self.cfg
        with train_loader(cfg.data, cfg.model.input, cfg.seed, steps, rank, world, clips=self.clips) as batches:
            self.window = Window()
            for step in steps:
                started = time.perf_counter()
                raw = next(batches)
                yield step, raw, time.perf_counter() - started

    def _step(self, step: Step, raw: RawBatch, waited: float) -> None:
        """One optimiser step; reads no number from the device."""
        batch = self.features(raw.to(self.accelerator.device))
        for group in self.optimizer.param_groups:
            group["lr"] = step.lr
        with self.accelerator.autocast():  # accelerate's own does not reach a model that FSDP2 shards
            taught = None if self.teacher is None else self.teacher(batch)
            losses: dict[str, Tensor] = self.model(batch, step.audio_ratio, step.video_ratio, taught)
        self.accelerator.backward(losses["loss"])
        limit = self.cfg.optim.clip_norm or math.inf
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        if isinstance(grad_norm, DTensor):  # of shards
            grad_norm = grad_norm.full_tensor()
        self.guard.watch(grad_norm, step.index)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.window.add(step, raw, {**losses, "grad_norm": grad_norm}, waited)
        self.progress = after_step(self.progress, step, self.cfg.model)

    # --- between steps -----------------------------------------------------------------------------------------------

    def _report(self, step: Step) -> None:
        """Reads the device once, writes a line of metrics, and stops a run that has gone wrong."""
        reading = self.window.read(self.accelerator)
        self.progress = dataclasses.replace(
            self.progress,
            seconds=self.progress.seconds + reading.seconds,
            failed_clips=self.progress.failed_clips + reading.failed,
        )
        self.reconstruction.add(reading)
        self._stop_if_not_finite()
        done, reason = self.progress, self.window.reason
        check_bad_share(done.failed_clips, done.seen, self.cfg.data.max_bad_share, reason)
        line = metrics_line(reading, step, done, self.total, self.cfg.model)
        if self.log is not None:
            self.log.write(line)
        self.accelerator.log({k: v for k, v in line.items() if k not in ("step", "seen")}, step=done.seen)
        self.bar.advance(done.seen)
        self.bar.report(line)
        self.window = Window(reason)

    def _stop_if_not_finite(self) -> None:
        """Ends the run at a NaN or infinity, with the weights from before it and the clips that led to it.

        Raises:
            UserError: a gradient was not finite.
        """
        bad = self.guard.first_bad_step()
        if bad is None:
            return
        step = self.plan[bad]
        snapshot = self._snapshot()
        folder = self.cfg.run_dir / "failure"
        if self.accelerator.is_main_process:
            save_failure(self.cfg, self.clips, step, snapshot)
        raise UserError(
            f"the loss or its gradient stopped being finite at step {bad}; the weights from before it and the keys of "
            f"its clips are in {folder}; look at those clips, lower optim.lr, or set run.precision fp32"
        )

    def _stop_requested(self, preemption: Preemption, step: Step) -> bool:
        """Whether any rank was told to stop; ranks ask one another only on log steps."""
        if self.accelerator.num_processes == 1:
            return preemption.received is not None
        if step.index % self.cfg.run.log_every:
            return False
        told = torch.tensor(float(preemption.received is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, reduction="sum").item())

    def _milestones(self, step: Step, last: bool) -> None:
        """Writes a preview and a checkpoint where one is due."""
        run, epoch = self.cfg.run, len(self.clips)
        checkpoints = run.checkpoint_every or math.ceil(self.total / 10)
        save = last or _passed(checkpoints, step)
        if save and self.window.clips:
            self._report(step)
        measures = {}
        if run.preview_clips and self.teacher is None and (last or _passed(run.preview_every or checkpoints, step)):
            measures = self._show(step)
        if save:
            snapshot = self._snapshot({**self.reconstruction.take(), **measures})
            if self.accelerator.is_main_process:
                self.writer.save(snapshot)
        if epoch and _passed(epoch, step):
            self.bar.say(epoch_line(self.progress, self.progress.seen // epoch))

    def _show(self, step: Step) -> dict[str, float]:
        """Draws a preview on rank 0; returns what it measured."""
        model = whole_model(self.model, self.accelerator, self.cfg.model)
        if self.preview is None or model is None:
            return {}
        recall, said = self.preview.show(model, self.accelerator, step, self.progress.seen)
        self.bar.say(said)
        return {"recall": recall}

    def _snapshot(self, measures: dict[str, float] | None = None) -> Snapshot:
        return take_snapshot(self.model, self.optimizer.optimizer, self.progress, self.cfg.model, measures)

    def _finish(self) -> bool:
        """Waits for the last checkpoint and writes the final model, if the run is at its end."""
        self.writer.wait()
        finished, cfg = self.progress.seen >= self.total, self.cfg
        model = whole_model(self.model, self.accelerator, cfg.model) if finished else None
        if model is not None and self.accelerator.is_main_process:
            model.save_pretrained(cfg.run_dir / "model")
            best = best_checkpoint(self.writer.root, cfg.run.keep_best)
            if best is not None:
                self.bar.say(f"best checkpoint by {cfg.run.keep_best}: {best}")
        self.accelerator.end_training()
        return finished


def _passed(every: int, step: Step) -> bool:
    """Whether this step took the count of clips over a multiple of `every`."""
    return (step.seen + step.batch_size) // every > step.seen // every
