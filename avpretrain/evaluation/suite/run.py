"""Runs a list of evaluations of one checkpoint, and keeps each result as JSON.

An evaluation whose result is there already, of the same weights, data, options, versions and commit, is not run again,
so a stopped command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from accelerate import PartialState

from avpretrain.config.reader import learnt_config
from avpretrain.core.errors import UserError
from avpretrain.core.files import read_json
from avpretrain.core.provenance import commit, versions
from avpretrain.data.place import DATASET_NAME
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.write.settings import ShardConfig, TranscodeConfig
from avpretrain.data.write.shards import make_shards
from avpretrain.evaluation.finetune.recipes import RECIPES, FinetuneConfig
from avpretrain.evaluation.finetune.run import run_finetune
from avpretrain.evaluation.predictions import Scored
from avpretrain.evaluation.probe.run import ProbeConfig, run_probes
from avpretrain.evaluation.results import predictions_path, save_result
from avpretrain.evaluation.retrieval.run import RetrievalConfig, run_retrieval
from avpretrain.evaluation.suite.plan import Job, Suite, SuiteConfig
from avpretrain.training.checkpoint import file_sha256
from avpretrain.training.folders import WEIGHTS, find_weights

Say = Callable[[str], None]
Options = ProbeConfig | FinetuneConfig | RetrievalConfig
_KEY = {"linear": "probe", "knn": "probe", "finetune": "finetune", "retrieve": "retrieval"}
"""Where a result keeps its options."""


def prepare_data(suite: Suite, cfg: SuiteConfig, say: Say) -> list[str]:
    """Shards what is not there yet, on one rank; returns the data sets that are missing.

    Raises:
        UserError: a folder is there and can't be sharded, or no data set of the list is there.
    """
    state = PartialState()
    wanted = cfg.only or tuple(dict.fromkeys(entry.data for entry in suite.tasks))
    for name in wanted:
        spec, done = suite.data[name], (cfg.shards / name / DATASET_NAME).is_file()
        if done or cfg.packs is None or not (cfg.packs / spec.folder).is_dir() or not state.is_main_process:
            continue
        say(f"sharding {cfg.packs / spec.folder}")
        clips = TranscodeConfig(clip_seconds=0, short_side=spec.short_side)
        make_shards(cfg.packs / spec.folder, cfg.shards / name, ShardConfig(source=spec.source, clips=clips))
    state.wait_for_everyone()
    missing = [name for name in wanted if not (cfg.shards / name / DATASET_NAME).is_file()]
    if len(missing) == len(wanted):
        raise UserError(
            f"{cfg.shards} holds none of the data sets {', '.join(wanted)}; shard them there, or name with --packs "
            "the folder of their files"
        )
    return missing


def run_suite(checkpoint: Path, jobs: Sequence[Job], cfg: SuiteConfig, say: Say) -> None:
    """Runs what has no result yet and writes each as it is done; every rank must call it.

    Raises:
        UserError: see `run_probe`, `run_finetune` and `run_retrieval`.
    """
    sha256 = file_sha256(find_weights(checkpoint) / WEIGHTS)
    for name, group in groupby(jobs, key=lambda job: job.entry.data):
        shards = (str(cfg.shards / name),)
        fingerprint = ClipSet(shards, "all").fingerprint
        todo = [job for job in group if not _is_done(job, options(job, cfg), sha256, fingerprint)]
        PartialState().wait_for_everyone()  # ranks must have looked before one writes
        probes = [job for job in todo if job.method in ("linear", "knn")]
        if probes:
            say(f"{name}: {len(probes)} probes")
            asked = [probe_options(job, cfg) for job in probes]
            for job, outcome in zip(probes, run_probes(checkpoint, shards, asked), strict=True):
                _save(job, outcome.result, outcome.predictions)
        for job in todo:
            if job not in probes:
                say(f"{job.entry.name}: {job.method} from {job.modality}")
                _save(job, *_one(checkpoint, shards, job, cfg))


def _one(checkpoint: Path, shards: tuple[str, ...], job: Job, cfg: SuiteConfig) -> tuple[dict[str, Any], Scored]:
    if job.method == "finetune":
        outcome = run_finetune(checkpoint, shards, job.entry.label, finetune_options(job, cfg))
        return outcome.result, outcome.predictions
    retrieved = run_retrieval(checkpoint, shards, retrieval_options(job, cfg))
    return retrieved.result, retrieved.predictions


def probe_options(job: Job, cfg: SuiteConfig) -> ProbeConfig:
    """A task's options as a probe."""
    return ProbeConfig(
        label=job.entry.label, modality=job.modality, classifier="knn" if job.method == "knn" else "linear",
        pool=cfg.pool, folds=job.entry.folds, train_split=job.entry.train_split, test_split=job.entry.test_split,
        batch_size=cfg.batch_size, num_workers=cfg.num_workers, seed=cfg.seed,
    )  # fmt: skip


def finetune_options(job: Job, cfg: SuiteConfig) -> FinetuneConfig:
    """A task's options as fine-tuning: the recipe, with what the task says."""
    recipe = RECIPES[job.entry.recipe]
    epochs, seconds = job.entry.epochs or recipe.epochs, job.entry.max_seconds or recipe.max_seconds
    return replace(
        recipe, modality=job.modality, folds=job.entry.folds, epochs=epochs, max_seconds=seconds, seed=cfg.seed,
        train_split=job.entry.train_split or recipe.train_split, test_split=job.entry.test_split,
        warmup_epochs=recipe.warmup_epochs * epochs / recipe.epochs, num_workers=cfg.num_workers,
    )  # fmt: skip


def retrieval_options(job: Job, cfg: SuiteConfig) -> RetrievalConfig:
    """A task's options as retrieval."""
    return RetrievalConfig(split=job.entry.split, batch_size=cfg.batch_size, num_workers=cfg.num_workers, seed=cfg.seed)


def options(job: Job, cfg: SuiteConfig) -> Options:
    """A task's options by its method."""
    if job.method == "finetune":
        return finetune_options(job, cfg)
    return retrieval_options(job, cfg) if job.method == "retrieve" else probe_options(job, cfg)


def _is_done(job: Job, wanted: Options, sha256: str, fingerprint: str) -> bool:
    """Whether a result lies there that running the job would give again."""
    if not (job.path.is_file() and predictions_path(job.path).is_file()):
        return False
    result = read_json(job.path, "result")
    try:
        same = result["checkpoint"]["sha256"] == sha256 and result["data"]["fingerprint"] == fingerprint
        made_by = (result["versions"], result["commit"]) == (versions(), commit())
        made_with, matters = result[_KEY[job.method]], learnt_config(wanted)
        return same and made_by and {key: made_with[key] for key in matters} == matters
    except (KeyError, TypeError):
        return False


def _save(job: Job, result: dict[str, Any], predictions: Scored) -> None:
    if PartialState().is_main_process:
        save_result(job.path, result, predictions)
