"""`avpretrain evaluate`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_folder, require_inputs
from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path, read_json
from avpretrain.core.terminal import Console, plain
from avpretrain.evaluation.settings import Pooling, PoolingKind
from avpretrain.evaluation.suite.plan import Job, SuiteConfig, jobs_of, load_suite

PACKS = "AVPRETRAIN_REAL_DATA"
"""Environment variable with the folder that is meant where --packs names none."""


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    list_: Annotated[Positional[str], arg(metavar="LIST")],
    /,
    shards: Path,
    out: Path,
    packs: Path | None = None,
    only: tuple[str, ...] = (),
    pooling: PoolingKind = "mean",
    layers: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    num_workers: int = 2,
) -> None:
    """Run a list of probes, fine-tunings and retrievals of a checkpoint, and write them as one table.

    Reads a checkpoint, a list of tasks (a YAML file, or the preset results or results_finetune) and sharded data sets.
    Writes OUT/NAME.json and .npz for each task, and OUT/table.md over all of them. Data sets that --shards lacks are
    first sharded from --packs; those found in neither are left out and named. Takes a pass of two encoders over each
    data set and modality: for the preset results and an encoder of width 96 six minutes on a CPU. The
    same command again runs only what has no result of the same weights, data, options and commit.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        list_: The list: a YAML file, or the name of a preset.
        shards: Folder with a sharded data set under each name of the list.
        out: Folder of the results.
        packs: Folder of the files of the data sets; else what the environment variable AVPRETRAIN_REAL_DATA names.
        only: Names of data sets; none = all of the list.
        pooling: Of probes: the mean over patches, the class token, both, or bands (see avpretrain probe --help).
        layers: Of probes: last layers of the encoder whose vectors are concatenated.
        seed: Of the random encoder, fine-tuning and the intervals.
        batch_size: Clips at a time; changes nothing but speed, except in fine-tuning, which takes its recipe's.
        num_workers: Processes that decode, for each rank.
    """
    require_inputs(ckpt)
    require_folder(shards, "--shards")
    require_folder(out)
    packs = packs or (Path(os.environ[PACKS]) if os.environ.get(PACKS) else None)
    cfg = SuiteConfig(
        shards=shards, out=out, packs=packs, only=only, pool=Pooling(pooling, layers), batch_size=batch_size,
        num_workers=num_workers, seed=seed,
    )  # fmt: skip
    suite = load_suite(list_)
    jobs = jobs_of(suite, cfg)
    from accelerate import PartialState

    from avpretrain.evaluation.suite.run import prepare_data, run_suite
    from avpretrain.evaluation.suite.table import markdown

    main_rank = PartialState().is_main_process
    console = Console(stderr=True, quiet=not main_rank)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    missing = prepare_data(suite, cfg, say)
    jobs = [job for job in jobs if job.entry.data not in missing]
    run_suite(ckpt, jobs, cfg, say)
    if main_rank:
        text = markdown([(job, _result(job)) for job in jobs], missing, _command())
        with atomic_path(out / "table.md") as temporary:
            temporary.write_text(text)
        print(plain(text))
        say(f"table: {out / 'table.md'}")


def _result(job: Job) -> dict[str, object]:
    result = read_json(job.path, "result")
    if not isinstance(result, dict):
        raise UserError(f"{job.path} holds no result; delete it and run again")
    return result


def _command() -> str:
    """What was typed, in the verb's own form."""
    args = sys.argv[1:]
    return shlex.join(["avpretrain", *(args if args[:1] == ["evaluate"] else ["evaluate", *args])])
