"""Stage 2 of MAViL (arXiv 2212.08071, section 3.3): rounds of students, each of which predicts the features of the
model before it.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from accelerate import PartialState
from torch import Tensor, nn

from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError
from avpretrain.core.files import atomic_path
from avpretrain.data.batch import AVBatch
from avpretrain.methods.diffmavil.config import ModelConfig, TrainConfig
from avpretrain.methods.diffmavil.example import random_features
from avpretrain.methods.diffmavil.method import DiffMAViLMethod
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.diffmavil.teacher import Teacher, require_fit
from avpretrain.nn.reconstruction import TeacherFeatures
from avpretrain.training.folders import CONFIG, WEIGHTS, find_weights
from avpretrain.training.method import Method

TAUGHT = ("audio_encoder", "video_encoder", "fusion")
"""Parts that a student can take over from its teacher; decoders predict something else now."""


class SelfTraining(DiffMAViLMethod):
    """One round of stage 2, in RUN/round-N; the last round's model is copied to RUN/model.

    Each round is a run of its own, and the same command goes on in the round where it was interrupted.

    Args:
        cfg: of the first round: `stage2.teacher` names the model that teaches it.
        number: of the round, from 1.
        root: folder that holds the rounds; none = the config's.
    """

    def __init__(self, cfg: EngineConfig, number: int = 1, root: TrainConfig | None = None) -> None:
        whole = cast(TrainConfig, cfg)
        self.root, self.number = root or whole, number
        self._teacher: Teacher | None = None
        super().__init__(
            dataclasses.replace(
                whole, name=f"{self.root.name}-round-{number}", output_dir=str(self.root.run_dir / f"round-{number}")
            )
        )
        self.previews = False

    def open(self) -> Sequence[str]:
        """Loads the teacher, whose log-mel statistics the student takes, then opens the clips.

        Raises:
            UsageError: no teacher is named, or it does not fit the student.
            UserError: there are no weights at the teacher's place.
        """
        self._teacher = load_teacher(self.cfg)
        known = self._teacher.cfg.input
        source = dataclasses.replace(self.cfg.model.input, audio_mean=known.audio_mean, audio_std=known.audio_std)
        self.cfg = dataclasses.replace(self.cfg, model=dataclasses.replace(self.cfg.model, input=source))
        require_fit(self._teacher, self.cfg.model)
        return super().open()

    def model(self) -> DiffMAViL:
        """A student that asks its teacher; before `open`, one whose teacher says noise."""
        student = super().model()
        student.teach(asking(self._teacher) if self._teacher is not None else noise(self.cfg.model))
        return student

    def initialise(self, model: nn.Module) -> None:
        """Copies the teacher's encoders and fusion, with `stage2.start_from` 'teacher'."""
        super().initialise(model)
        if self.cfg.stage2.start_from == "teacher" and self._teacher is not None:
            start_from(self._teacher, model)

    def next_round(self) -> Method | None:
        """The student as the next round's teacher; after the last round, its model is published."""
        if self.number < self.cfg.stage2.rounds:
            stage2 = dataclasses.replace(self.root.stage2, teacher=str(self.cfg.run_dir))
            return type(self)(dataclasses.replace(self.root, stage2=stage2), self.number + 1, self.root)
        if PartialState().is_main_process:
            _publish(find_weights(self.cfg.run_dir), self.root.run_dir / "model")
        return None


def load_teacher(cfg: TrainConfig) -> Teacher:
    """The frozen model that `stage2.teacher` names.

    Raises:
        UsageError: no teacher is named.
        UserError: there are no weights at its place.
    """
    if not cfg.stage2.teacher:
        raise UsageError("model.objective 'features' needs a teacher; give --stage2.teacher RUN")
    return Teacher(DiffMAViL.from_pretrained(find_weights(cfg.stage2.teacher)))


def start_from(teacher: Teacher, student: nn.Module) -> None:
    """Copies the teacher's encoders and fusion to a student.

    Raises:
        UsageError: they have other layers.
    """
    for part in TAUGHT:
        try:
            student.get_submodule(part).load_state_dict(teacher.model.get_submodule(part).state_dict())
        except RuntimeError:
            raise UsageError(
                f"the teacher's {part} has other layers than the student's; use --stage2.start-from scratch"
            ) from None


def asking(teacher: Teacher) -> Callable[[AVBatch], TeacherFeatures]:
    """The teacher as a function, which follows a batch to its device and is no part of the student."""

    def features(batch: AVBatch) -> TeacherFeatures:
        teacher_features: TeacherFeatures = teacher.to(batch.seed_B.device)(batch)
        return teacher_features

    return features


def noise(cfg: ModelConfig) -> Callable[[AVBatch], TeacherFeatures]:
    """Noise in place of a teacher's features: for measurements of time and memory."""

    def features(batch: AVBatch) -> TeacherFeatures:
        seed_B: Tensor = batch.seed_B
        return random_features(cfg, seed_B)

    return features


def _publish(weights: Path, target: Path) -> None:
    with atomic_path(target) as folder:
        folder.mkdir()
        for name in (WEIGHTS, CONFIG, "README.md"):
            if (weights / name).is_file():
                shutil.copy2(weights / name, folder / name)
