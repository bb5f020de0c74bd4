"""Stage 2's teacher: a frozen model that sees whole clips and tells the student what to predict (MAViL, section 3.3).

B clips, L patches, C = L + class token, D width.
"""

from __future__ import annotations

import torch
from torch import nn

from avpretrain.core.errors import UsageError
from avpretrain.data.batch import AVBatch
from avpretrain.methods.diffmavil.config import ModelConfig
from avpretrain.methods.diffmavil.model import SIDES, DiffMAViL
from avpretrain.nn.reconstruction import TeacherFeatures


class Teacher(nn.Module):
    """A trained model without its decoders; nothing of it learns.

    Features are the fused, contextualised tokens of all patches. The student is a `DiffMAViL` of objective 'features';
    with `loss.norm_pix_loss` it predicts each token normalised over its own values, else the token as it is.
    """

    def __init__(self, model: DiffMAViL) -> None:
        super().__init__()
        self.cfg = model.cfg
        self.model = model.eval().requires_grad_(False)
        for side in SIDES:
            del self.model.tower(side).decoder

    @torch.no_grad()
    def forward(self, batch: AVBatch) -> TeacherFeatures:
        """Features of whole, unmasked clips."""
        towers = [self.model.tower(side) for side in SIDES]
        tokens = [tower.encode(batch.clips[tower.side]) for tower in towers]  # [B, C, D] each
        fused = zip(towers, self.model.fusion(*tokens), strict=True)
        return TeacherFeatures(*(tokens_BCD[:, tower.encoder.prefix :] for tower, tokens_BCD in fused))


def require_fit(teacher: Teacher, student: ModelConfig) -> None:
    """Checks that a teacher sees what a student of this config sees.

    Raises:
        UsageError: its inputs, patches or width are not the student's.
    """
    for name, mine, theirs in (
        ("model.width", student.width, teacher.cfg.width),
        ("audio grid", student.audio_grid, teacher.cfg.audio_grid),
        ("video grid", student.video_grid, teacher.cfg.video_grid),
        ("model.input", student.input, teacher.cfg.input),
    ):
        if mine != theirs:
            raise UsageError(f"the teacher has another {name} than the student: {theirs} instead of {mine}")
