"""DiffMAViL's two stages under one name: a config's objective says which it means."""

from __future__ import annotations

from typing import cast

from avpretrain.config.train import EngineConfig
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.method import DiffMAViLMethod
from avpretrain.methods.diffmavil.self_training import SelfTraining
from avpretrain.training.method import Method


class Stages(DiffMAViLMethod):
    """Stage 1 where the model predicts patches, self-training where it predicts a teacher's features."""

    @classmethod
    def of(cls, cfg: EngineConfig) -> Method:
        features = cast(TrainConfig, cfg).model.objective == "features"
        return SelfTraining(cfg) if features else DiffMAViLMethod(cfg)
