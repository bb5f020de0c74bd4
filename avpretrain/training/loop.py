"""The pretraining loop: the plan says what each step is, the loader brings its clips, the model returns its losses."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from avpretrain.batch import AVBatch, RawBatch
from avpretrain.config import TrainConfig
from avpretrain.data.dataset import ClipSet, check_bad_share, train_loader
from avpretrain.data.features import Features
from avpretrain.errors import UserError
from avpretrain.models.cost import cost_of
from avpretrain.models.diffmavil import DiffMAViL
from avpretrain.schedules import Step, plan, total_samples
from avpretrain.training.build import (
    captures,
    check_ranks,
    make_accelerator,
    make_optimizer,
    prepare_model,
    set_lr,
    whole_model,
)
from avpretrain.training.checkpoint import CheckpointWriter, Progress, Snapshot, best_checkpoint, restore, take_snapshot
from avpretrain.training.graphs import WARM_UP, WARM_UP_RANKS, PhaseGraphs, Update
from avpretrain.training.guards import FiniteGuard, Preemption, Watchdog, memory_advice, sparing_children
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
        UserError: training failed; the message says what to do.
    """
    accelerator = make_accelerator(cfg)
    clips = ClipSet(cfg.data.shards, cfg.data.split, cfg.data.cache_dir)
    cfg = resolve(cfg, clips)
    check_ranks(accelerator, cfg.schedule.batch.multiple)
    with sparing_children():
        cfg = with_measured_memory(cfg, accelerator)
    trainer = Trainer(cfg, accelerator, clips)
    with Preemption().listening() as preemption, Watchdog(cfg.run.hang_timeout) as watchdog:
        return trainer.run(preemption, watchdog, stop_at)


class Trainer:
    """One rank's part in a run."""

    def __init__(self, cfg: TrainConfig, accelerator: Accelerator, clips: ClipSet) -> None:
        self.cfg, self.accelerator, self.clips = cfg, accelerator, clips
        self.total = total_samples(cfg.schedule, len(clips))
        batch = cfg.schedule.batch
        self.cost = cost_of(cfg.model, batch.rule, batch.bytes_per_clip)
        torch.manual_seed(cfg.seed)
        model = DiffMAViL(cfg.model)
        teacher = make_stage2(cfg, model)
        self.teacher = None if teacher is None else teacher.to(accelerator.device)
        if accelerator.is_main_process:
            facts = {"parameters": sum(p.numel() for p in model.parameters()), "ranks": accelerator.num_processes}
            open_run(cfg, clips, {**facts, "samples_total": self.total, "precision": accelerator.mixed_precision})
        accelerator.wait_for_everyone()
        captured = captures(cfg.run, accelerator)
        model.to(accelerator.device)
        optimizer = make_optimizer(model, cfg.optim, captured)
        self.guard = FiniteGuard(optimizer, accelerator.device)
        stream = torch.cuda.Stream() if captured else None
        with torch.cuda.stream(stream):  # DDP's hooks run on the stream it is built on
            self.model, self.optimizer = accelerator.prepare(prepare_model(model, cfg.run), optimizer)
        self.update: Update = self._update
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
            warm_up = WARM_UP if accelerator.num_processes == 1 else WARM_UP_RANKS
            self.update = PhaseGraphs(self._update, stream, warm_up)
        self.features = Features(cfg.model.input, cfg.data.augment).to(accelerator.device)
        self.progress = self._resume()
        self.writer = CheckpointWriter(cfg.run_dir / "checkpoints", cfg.run.keep_checkpoints, cfg.run.keep_best)
        self.window, self.reconstruction = Window(), Mean()

    def _resume(self) -> Progress:
        checkpoint, damaged = resume_point(self.cfg)
        if damaged and self.accelerator.is_main_process:
            print(f"avpretrain: checkpoint {', '.join(damaged)} is damaged and is passed over")
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
        whole = plan(cfg.schedule, cfg.optim, self.total, self.cost)
        steps = list(dropwhile(lambda step: step.seen < self.progress.seen, whole))
        stopped_by = None
        with self.bar:
            for step, raw, waited in self._batches(steps):
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

    def _batches(self, steps: list[Step]) -> Iterator[tuple[Step, RawBatch, float]]:
        """Each step with its clips and the seconds that the loop waited for them."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        cfg = self.cfg
        batches = train_loader(cfg.data, cfg.model.input, cfg.seed, steps, rank, world, clips=self.clips)
        self.window = Window()
        for step in steps:
            started = time.perf_counter()
            raw = next(batches)
            yield step, raw, time.perf_counter() - started

    def _step(self, step: Step, raw: RawBatch, waited: float) -> None:
        """One optimiser step; reads no number from the device."""
        batch = self.features(raw.to(self.accelerator.device))
        set_lr(self.optimizer, step.lr)
        self.guard.begin(step.index)
        losses = self.update(batch, step.audio_ratio, step.video_ratio)
        self.window.add(step, raw, losses, waited)
        self.progress = after_step(self.progress, step, self.cfg.model)

    def _update(self, batch: AVBatch, audio_ratio: float, video_ratio: float) -> dict[str, Tensor]:
        """Losses, gradients, the optimiser's step: all that a CUDA graph captures."""
        with self.accelerator.autocast():  # accelerate's own does not reach a model that FSDP2 shards
            taught = None if self.teacher is None else self.teacher(batch)
            losses: dict[str, Tensor] = self.model(batch, audio_ratio, video_ratio, taught)
        self.accelerator.backward(losses["loss"])
        limit = self.cfg.optim.clip_norm or math.inf
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        if isinstance(grad_norm, DTensor):  # of shards
            grad_norm = grad_norm.full_tensor()
        self.guard.watch(grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**{name: value.detach() for name, value in losses.items()}, "grad_norm": grad_norm}

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
        step = next(s for s in plan(self.cfg.schedule, self.cfg.optim, self.total, self.cost) if s.index == bad)
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
