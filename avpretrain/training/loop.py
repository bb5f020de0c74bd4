"""The training loop: the plan says what each step is, the method brings its batch, the model returns its losses."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.distributed.tensor import DTensor

from avpretrain.config.schedules import Phase, Step, cost_by_rule, plan, total_samples
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.locks import locked
from avpretrain.core.terminal import plain, say
from avpretrain.data.read.dataset import check_bad_share
from avpretrain.training.build import (
    check_ranks,
    make_accelerator,
    make_optimizer,
    prepare_model,
    reads_lr_from_a_tensor,
    set_lr,
    whole_model,
    why_uncaptured,
)
from avpretrain.training.checkpoint import Better, CheckpointWriter, Progress, Snapshot, restore, take_snapshot
from avpretrain.training.folders import STATE
from avpretrain.training.graphs import WARM_UP, WARM_UP_RANKS, PhaseGraphs, Update
from avpretrain.training.guards import FiniteGuard, Preemption, Watchdog, memory_advice, sparing_children
from avpretrain.training.launch import banner
from avpretrain.training.memory_probe import measured_memory
from avpretrain.training.method import Method
from avpretrain.training.metrics import MetricsLog, ProgressBar
from avpretrain.training.run import RUN_NAME, open_run, ranks_without, resume_point, save_failure
from avpretrain.training.tracking import hyperparameters, log_picture
from avpretrain.training.window import MeanLosses, Window, after_step, epoch_line, metrics_line

__all__ = ["Outcome", "train"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    progress: Progress
    finished: bool
    """False when a signal or `stop_at` ended it early; the same command resumes from its checkpoint."""
    stopped_by: str | None = None


def train(cfg: EngineConfig, make: Callable[[EngineConfig], Method], stop_at: int | None = None) -> Outcome:
    """Trains what a config says, or resumes the run in its folder, to the bit on the same number of ranks.

    A method of several rounds is trained round after round.

    Args:
        make: the method of a config.
        stop_at: ends after the step that reaches this many samples, with a checkpoint.

    Raises:
        UsageError: the config does not fit the data, the ranks, or the run that the folder holds.
        UserError: training failed, or another process trains in the folder; the message says what to do.
    """
    method: Method | None = make(cfg)
    while method is not None:
        outcome = _train_round(method, stop_at)
        method = method.next_round() if outcome.finished else None
    return outcome


def _train_round(method: Method, stop_at: int | None) -> Outcome:
    accelerator = make_accelerator(method.cfg)
    for warning in method.open():
        if accelerator.is_main_process:
            print(plain(f"avpretrain: warning: {warning}"), file=sys.stderr)
    folder = method.cfg.run_dir
    check_ranks(accelerator, method.cfg.schedule.batch.multiple)
    with locked(folder, "training") if accelerator.is_main_process else contextlib.nullcontext():
        with sparing_children():
            batch = measured_memory(method, accelerator)
        schedule = dataclasses.replace(method.cfg.schedule, batch=batch)
        method.cfg = dataclasses.replace(method.cfg, schedule=schedule)
        with (
            contextlib.closing(Trainer(method, accelerator)) as trainer,
            Preemption().listening() as preemption,
            Watchdog(method.cfg.run.hang_timeout) as watchdog,
        ):
            return trainer.run(preemption, watchdog, stop_at)


class Trainer:
    """One rank's part in a run.

    Args:
        method: opened.
    """

    def __init__(self, method: Method, accelerator: Accelerator) -> None:
        self.method, self.cfg, self.accelerator = method, method.cfg, accelerator
        cfg, data = self.cfg, method.data
        self.total = total_samples(cfg.schedule, len(data))
        cost = cost_by_rule(cfg.schedule.batch, method.cost)
        self.plan = list(plan(cfg.schedule, cfg.optim, self.total, method.phase, cost))
        method.check(self.plan)
        self.best, better = best_measure(cfg.run.keep_best, method)
        torch.manual_seed(cfg.seed)
        model = method.model()
        self.parameters = sum(p.numel() for p in model.parameters())
        if accelerator.is_main_process:
            facts = {"parameters": self.parameters, "ranks": accelerator.num_processes}
            open_run(cfg, data, {**facts, "samples_total": self.total, "precision": accelerator.mixed_precision})
        accelerator.wait_for_everyone()
        self._warn_unless_shared()
        checkpoint = self._checkpoint()
        if checkpoint is None:
            method.initialise(model)
        self.uncaptured = why_uncaptured(cfg.run, accelerator.device, accelerator.distributed_type)
        captured = not self.uncaptured
        tensor_lr = reads_lr_from_a_tensor(accelerator)
        if tensor_lr:  # it is made where the parameters are
            model.to(accelerator.device)
        optimizer = make_optimizer(model, cfg.optim, tensor_lr)
        self.guard = FiniteGuard(optimizer, accelerator.device)
        stream = torch.cuda.Stream() if captured else None
        with torch.cuda.stream(stream):  # DDP's hooks run on the stream that it is built on
            self.model, self.optimizer = accelerator.prepare(prepare_model(model, cfg.run), optimizer)
        self.update: Update = self._update
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
            warm_up = WARM_UP if accelerator.num_processes == 1 else WARM_UP_RANKS
            self.update = PhaseGraphs(self._update, stream, warm_up)
        start = Progress()
        self.progress = restore(checkpoint, self.model, self.optimizer.optimizer) if checkpoint is not None else start
        root = cfg.run_dir / "checkpoints"
        self.writer = CheckpointWriter(root, cfg.run.keep_checkpoints, self.best, better)
        self.window, self.losses = Window(), MeanLosses()

    def _checkpoint(self) -> Path | None:
        """Where the run resumes; none = it begins."""
        checkpoint: Path | None = None
        if self.accelerator.is_main_process:
            checkpoint, messages = resume_point(self.cfg, self.method.model_config)
            for line in messages:
                say(f"avpretrain: {line}")
        agreed: Path | None = broadcast_object_list([checkpoint])[0]
        if agreed is not None and (lacking := ranks_without(agreed / STATE, self.accelerator)):
            raise UserError(
                f"{lacking[0]} does not see {agreed}, from which the run resumes ({len(lacking)} ranks do not); "
                "its folder must lie on storage that all machines share: copy it there and name it with --output-dir"
            )
        return agreed

    def _warn_unless_shared(self) -> None:
        """Says at the start what a run on several machines would end by when it is resumed."""
        folder = self.cfg.run_dir
        lacking = ranks_without(folder / RUN_NAME, self.accelerator)
        if lacking and self.accelerator.is_main_process:
            say(
                f"avpretrain: warning: {lacking[0]} does not see {folder} ({len(lacking)} ranks do not): checkpoints "
                "lie on the first machine alone, and the run resumes only where all machines see them; "
                "name a folder on shared storage with --output-dir"
            )

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self, preemption: Preemption, watchdog: Watchdog, stop_at: int | None) -> Outcome:
        """Trains from where the run stands to its end, `stop_at`, or a signal."""
        cfg, main = self.cfg, self.accelerator.is_main_process
        if self.accelerator.log_with:
            self.accelerator.init_trackers(cfg.run_dir.name, config=hyperparameters(cfg))
        self.log = MetricsLog(cfg.run_dir, self.progress.seen) if main else None
        self.bar = ProgressBar(cfg.name, self.progress.seen, self.total, main, self.method.shown)
        data = f"{len(self.method.data):,} clips ({self.method.data.describe().get('split', 'all')})"
        how = self.parameters, self.progress.seen, self.uncaptured
        self.bar.say(banner(cfg, self.accelerator, self.plan, data, *how))
        if self.log is not None and self.log.damage:
            self.bar.say(self.log.damage)
        steps = list(dropwhile(lambda step: step.seen < self.progress.seen, self.plan))
        stopped_by = None
        with self.bar, contextlib.closing(self._batches(steps)) as batches:
            for step, raw, waited in batches:
                spared = sparing_children() if step is steps[0] else contextlib.nullcontext()
                with memory_advice(step.batch_size, self.accelerator.num_processes, step.phase), spared:
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

    def _batches(self, steps: list[Step]) -> Generator[tuple[Step, Any, float]]:
        """Each step with its batch and the seconds that the loop waited for it; closing it ends the loader."""
        with self.method.batches(steps, self.accelerator.process_index, self.accelerator.num_processes) as batches:
            self.window = Window()
            for step in steps:
                started = time.perf_counter()
                raw = next(batches)
                yield step, raw, time.perf_counter() - started

    def _step(self, step: Step, raw: Any, waited: float) -> None:
        """One optimiser step; reads no number from the device."""
        batch = self.method.prepare(raw, step.phase, self.accelerator.device)
        set_lr(self.optimizer, step.lr)
        self.guard.begin(step.index)
        losses = self.update(batch, step.phase)
        self.window.add(step, self.method.lost(raw), losses, waited)
        self.progress = after_step(self.progress, step, self.method.flops(step.phase, step.batch_size))

    def _update(self, batch: Any, phase: Phase) -> dict[str, Tensor]:
        """Losses, gradients, the optimiser's step: all that a CUDA graph captures."""
        with self.accelerator.autocast():  # accelerate's own does not reach a model that FSDP2 shards
            losses: dict[str, Tensor] = self.model(batch, phase)
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
        self.losses.add(reading)
        self._stop_if_not_finite()
        done, reason = self.progress, self.window.reason
        check_bad_share(done.failed_clips, done.seen, self.method.max_lost_share, reason)
        flops = self.method.flops(step.phase, step.batch_size)
        line = metrics_line(reading, step, done, self.total, flops)
        if self.log is not None:
            self.log.write(line)
        self.accelerator.log({k: v for k, v in line.items() if k not in ("step", "seen")}, step=done.seen)
        self.bar.advance(done.seen)
        self.bar.report(line, step.phase)
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
            save_failure(folder, self.method.data, step, snapshot)
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
        run, epoch = self.cfg.run, len(self.method.data)
        checkpoints = run.checkpoint_every or math.ceil(self.total / 10)
        save = last or _passed(checkpoints, step)
        if save and self.window.clips:
            self._report(step)
        measures = {}
        if self.method.previews and (last or _passed(run.preview_every or checkpoints, step)):
            measures = self._show(step)
        if save:
            losses = self.losses.take()
            snapshot = self._snapshot({**(self.method.measure(losses) if losses else {}), **measures})
            if self.accelerator.is_main_process:
                self.writer.save(snapshot)
        if epoch and _passed(epoch, step):
            self.bar.say(epoch_line(self.progress, self.progress.seen // epoch))

    def _show(self, step: Step) -> dict[str, float]:
        """Lets the method show itself, on rank 0; returns what it measured."""
        model = whole_model(self.model, self.accelerator, self.method.model)
        if model is None or not self.accelerator.is_main_process:
            return {}
        compiled = self.cfg.run.compile  # not for these few samples: each new shape would cost tens of seconds
        stance = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
        with torch.no_grad(), self.accelerator.autocast(), stance:
            preview = self.method.preview(model, step)
        if preview is None:
            return {}
        self.bar.say(preview.line)
        if preview.picture is not None:
            for failure in log_picture(
                self.accelerator.trackers, "reconstructions", preview.picture, self.progress.seen
            ):
                self.bar.say(failure)
        return preview.measures

    def _snapshot(self, measures: dict[str, float] | None = None) -> Snapshot:
        how = self.method.model_config, self.cfg.method
        return take_snapshot(self.model, self.optimizer.optimizer, self.progress, *how, measures)

    def close(self) -> None:
        """Lets go of the CUDA graph, however the run ended: a rank that holds one may not end (`PhaseGraphs.close`)."""
        if isinstance(self.update, PhaseGraphs):
            self.update.close()

    def _finish(self) -> bool:
        """Waits for the last checkpoint and writes the final model, if the run is at its end."""
        self.close()
        self.writer.wait()
        finished, cfg = self.progress.seen >= self.total, self.cfg
        model = whole_model(self.model, self.accelerator, self.method.model) if finished else None
        if model is not None and self.accelerator.is_main_process:
            self.method.save(model, cfg.run_dir / "model")
            best = self.writer.best()
            if best is not None:
                self.bar.say(f"best checkpoint by {self.best}: {best}")
        self.accelerator.end_training()
        return finished


def best_measure(name: str, method: Method) -> tuple[str, Better]:
    """The measure by which a checkpoint is kept, and which value of it is the better one.

    Args:
        name: `run.keep_best`.

    Raises:
        UsageError: the method has no such measure.
    """
    name = next(iter(method.measures), "none") if name == "auto" else name
    if name == "none":
        return name, "min"
    if name not in method.measures:
        close = difflib.get_close_matches(name, ["auto", "none", *method.measures], n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose from auto, {', '.join(method.measures)}, none"
        raise UsageError(f"config key 'run.keep_best' can't be {name!r}; {hint}")
    return name, method.measures[name]


def _passed(every: int, step: Step) -> bool:
    """Whether this step took the count of clips over a multiple of `every`."""
    return (step.seen + step.batch_size) // every > step.seen // every
