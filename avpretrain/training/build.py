"""What a run trains with: accelerate, the optimiser, and the model as its config wants it run."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from avpretrain.config import OptimConfig, RunConfig, TrainConfig
from avpretrain.models.diffmavil import DiffMAViL
from avpretrain.models.layers import Block


def make_accelerator(cfg: TrainConfig, tracked: bool = True) -> Accelerator:
    """Accelerate with this config's precision and, if `tracked`, its tracker."""
    precision = {"fp32": "no", "bf16": "bf16"}.get(cfg.run.precision)
    if precision is None and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        precision = "bf16"
    tracker = cfg.run.tracker if tracked and cfg.run.tracker != "none" else None
    return Accelerator(mixed_precision=precision, log_with=tracker, project_dir=str(cfg.run_dir))


def make_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW; biases, norms and learned tokens are not decayed."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in parameters if p.ndim == 1 or name.endswith(("_token", "bottleneck", "position_table"))]
    kept = {id(p) for p in plain}
    decayed = [p for _, p in parameters if id(p) not in kept]
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)


def prepare_model(model: DiffMAViL, cfg: RunConfig) -> DiffMAViL:
    """Applies activation checkpointing and compilation, in place."""
    if cfg.activation_checkpointing:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

        apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Block))
    if cfg.compile:
        model.compile_parts()
    return model
