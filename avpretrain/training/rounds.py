"""Stage 2 of MAViL: rounds of students, each predicting the features of the model before it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from accelerate import PartialState

from avpretrain.config import TrainConfig
from avpretrain.errors import UsageError
from avpretrain.files import atomic_path
from avpretrain.training.checkpoint import CONFIG, WEIGHTS, find_weights, load_model
from avpretrain.training.loop import Outcome, train


def self_train(cfg: TrainConfig) -> Outcome:
    """Trains `stage2.rounds` students in RUN/round-1, RUN/round-2, ...; the last one's model is copied to RUN/model.

    Each round is a run of its own, and the same command goes on in the round where it was interrupted.

    Raises:
        UsageError: no teacher is named, or it does not fit the student.
        UserError: there are no weights at the teacher's place, or training failed.
    """
    if not cfg.stage2.teacher:
        raise UsageError("model.objective 'features' needs a teacher; give --stage2.teacher RUN")
    teacher = cfg.stage2.teacher
    known = load_model(teacher).cfg.input
    source = dataclasses.replace(cfg.model.input, audio_mean=known.audio_mean, audio_std=known.audio_std)
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, input=source))
    for number in range(1, cfg.stage2.rounds + 1):
        folder = cfg.run_dir / f"round-{number}"
        stage2 = dataclasses.replace(cfg.stage2, teacher=teacher)
        outcome = train(
            dataclasses.replace(cfg, name=f"{cfg.name}-round-{number}", output_dir=str(folder), stage2=stage2)
        )
        if not outcome.finished:
            return outcome
        teacher = str(folder)
    if PartialState().is_main_process:
        _publish(find_weights(teacher), cfg.run_dir / "model")
    return outcome


def _publish(weights: Path, target: Path) -> None:
    with atomic_path(target) as folder:
        folder.mkdir()
        for name in (WEIGHTS, CONFIG, "README.md"):
            if (weights / name).is_file():
                shutil.copy2(weights / name, folder / name)
