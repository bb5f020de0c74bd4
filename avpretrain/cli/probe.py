"""`avpretrain probe`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file, require_inputs
from avpretrain.cli.shared.results import show_result
from avpretrain.evaluation.settings import Modality, Pooling, PoolingKind
from avpretrain.measures.scores import require_score


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    data: Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")],
    /,
    label: str,
    modality: Modality = "audio",
    classifier: Literal["linear", "knn"] = "linear",
    pooling: PoolingKind = "mean",
    layers: int = 1,
    folds: str = "",
    split: Literal["test", "val"] = "test",
    train_split: str | tuple[str, ...] = "",
    val_split: str | tuple[str, ...] = "",
    test_split: str | tuple[str, ...] = "",
    max_seconds: float = 30.0,
    baselines: bool = True,
    seed: int = 0,
    batch_size: int = 32,
    num_workers: int = 2,
    compare: Path | None = None,
    out: Path | None = None,
    pictures: bool = False,
    json: bool = False,
) -> None:
    """Fit a classifier on frozen features: chosen on validation clips, scored on test clips, with baselines.

    Reads a checkpoint and a sharded data set with labels. Writes the result as JSON, and the predictions next to it, to
    --out or else into the run's eval/ folder. Takes a pass of two encoders over the labelled clips: about a minute for
    1,000 clips of 4 s and a small encoder on two CPU cores.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        data: Folders or URLs written by `avpretrain shards`.
        label: Name of the label; clips without it are left out.
        modality: What the encoder hears or sees.
        classifier: linear: logistic regression; knn: nearest neighbours.
        pooling: One vector a clip: the mean over its patches, the class token, both; or bands: of audio, the mean over
            time of each band of patches, one after the other.
        layers: Last layers of the encoder whose vectors are concatenated.
        folds: Cross-validate: over official folds, by the name of their label, or over so many made here, by a number.
        split: What is scored. val: validation clips, for choices between models; no test clip is touched.
        train_split: Splits that are for training; by default train and those that end in _train.
        val_split: Splits that are for validation; by default val.
        test_split: Splits that are for test; by default test and eval.
        max_seconds: Of longer clips the middle is taken.
        baselines: Also probe a random encoder and features without learning.
        seed: Of the random encoder and the intervals.
        batch_size: Clips at a time on each device; changes nothing but speed.
        num_workers: Processes that decode, for each rank.
        compare: An earlier result; prints the paired difference to it.
        out: File of the result.
        pictures: Also draw confusion matrix, bars by class and map of the features, as PNG next to the result.
        json: Print the result as JSON.
    """
    require_file(out)
    require_inputs(ckpt, data)
    if compare is not None:
        require_score(compare)
    from accelerate import PartialState

    from avpretrain.evaluation.probe.run import ProbeConfig, run_probe
    from avpretrain.evaluation.results import compare_results, result_path, save_result

    cfg = ProbeConfig(
        label=label, modality=modality, classifier=classifier, pool=Pooling(pooling, layers), folds=folds, split=split,
        train_split=train_split, val_split=val_split, test_split=test_split, max_seconds=max_seconds,
        baselines=baselines, batch_size=batch_size, num_workers=num_workers, seed=seed,
    )  # fmt: skip
    outcome = run_probe(ckpt, data, cfg)
    if not PartialState().is_main_process:
        return
    path = result_path(ckpt, out, outcome.result["task"], label, modality, "" if pooling == "mean" else pooling,
                       "val" if split == "val" else "")  # fmt: skip
    if path:
        save_result(path, outcome.result, outcome.predictions)
    if path and pictures and outcome.features_ND is not None:
        from avpretrain.evaluation.figures import draw_results

        title = f"{label} from {modality}, {classifier} probe"
        draw_results(outcome.predictions, outcome.features_ND, title, path.with_suffix(""))
    comparison = compare_results(path, compare, seed) if path and compare else None
    if json:
        print(json_format.dumps({**outcome.result, **({"comparison": comparison} if comparison else {})}, indent=2))
    else:
        show_result(outcome.result, comparison, path)
