"""What stage 2 adds to a run: its teacher, and the student's first weights."""

from __future__ import annotations

from avpretrain.config import TrainConfig
from avpretrain.errors import UsageError
from avpretrain.models.diffmavil import DiffMAViL
from avpretrain.models.teacher import Teacher, make_teacher
from avpretrain.training.checkpoint import load_model

TAUGHT = ("audio_encoder", "video_encoder", "fusion")
"""Parts that a student can take over from its teacher; decoders predict something else now."""


def make_stage2(cfg: TrainConfig, student: DiffMAViL) -> Teacher | None:
    """The frozen teacher of a run, none in stage 1; `stage2.start_from` 'teacher' copies its weights to the student.

    Raises:
        UsageError: no teacher is named, or it does not fit the student.
        UserError: there are no weights at the teacher's place.
    """
    if cfg.model.objective == "patches":
        return None
    if not cfg.stage2.teacher:
        raise UsageError("model.objective 'features' needs a teacher; give --stage2.teacher RUN")
    model = load_model(cfg.stage2.teacher)
    teacher = make_teacher(model, cfg.model)
    if cfg.stage2.start_from == "teacher":
        for part in TAUGHT:
            try:
                student.get_submodule(part).load_state_dict(model.get_submodule(part).state_dict())
            except RuntimeError:
                raise UsageError(
                    f"the teacher's {part} has other layers than the student's; use --stage2.start-from scratch"
                ) from None
    return teacher
