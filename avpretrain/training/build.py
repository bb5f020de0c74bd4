"""What a run trains with: accelerate, the optimiser, and the model as its config wants it run."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy

from avpretrain.config.train import EngineConfig, OptimConfig, RunConfig
from avpretrain.core.errors import UsageError
from avpretrain.nn.causal_block import CausalBlock
from avpretrain.nn.decoder import DecoderBlock
from avpretrain.nn.layers import Block
from avpretrain.training.launch import check_accumulation, check_launched_ranks, check_tracker, choose_precision

UNITS = (Block, DecoderBlock, CausalBlock)
"""Blocks that are sharded, and compiled, each on its own."""


def make_accelerator(cfg: EngineConfig, tracked: bool = True) -> Accelerator:
    """Accelerate with this config's precision and, if `tracked`, its tracker.

    Raises:
        UsageError: the tracker is not installed, or the launcher asks for what training can't do.
    """
    check_accumulation()
    if tracked:
        check_tracker(cfg.run.tracker)
    precision: str | None = choose_precision(cfg.run.precision)[0]
    if cfg.run.precision == "auto" and precision == "no":
        precision = None  # what the environment says, or "no"
    tracker = cfg.run.tracker if tracked and cfg.run.tracker != "none" else None
    accelerator = Accelerator(mixed_precision=precision, log_with=tracker, project_dir=str(cfg.run_dir))
    if accelerator.is_fsdp2 and accelerator.mixed_precision == "bf16":
        # Weights travel in bf16, gradients in float32; inputs are cast by autocast, as without FSDP.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    return accelerator


def check_ranks(accelerator: Accelerator, multiple: int) -> None:
    """Refuses launches that would fail late, or train apart in silence.

    Args:
        multiple: what batch sizes are multiples of.

    Raises:
        UsageError: ranks can't share batches evenly, do not know of each other, or can't be sharded as asked.
    """
    ranks, launched = accelerator.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1 and launched > 1 and "LOCAL_RANK" in os.environ:
        raise UsageError(
            f"{launched} ranks were launched, but accelerate made no group of them; without GPUs, set "
            "ACCELERATE_USE_CPU=true"
        )
    check_launched_ranks(ranks)
    if multiple % ranks:
        raise UsageError(
            f"{ranks} ranks can't share batches evenly: schedule.batch.multiple is {multiple}; make it a multiple of "
            f"{ranks}"
        )
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if ranks > 1 and not sharded and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise UsageError("accelerate shards weights (FSDP) on GPUs only; launch without --use_fsdp")
    if sharded and not accelerator.is_fsdp2:
        raise UsageError("FSDP is supported in its second version only; launch with --fsdp_version 2")


def make_optimizer(model: nn.Module, cfg: OptimConfig, tensor_lr: bool = False) -> torch.optim.AdamW:
    """Fused AdamW; parameters of one dimension, and those that end as the model's `no_decay` says, are not decayed.

    Args:
        tensor_lr: the learning rate is a tensor on the parameters' device, as steps in a CUDA graph need it.
    """
    endings: tuple[str, ...] = getattr(model, "no_decay", ())
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in parameters if p.ndim == 1 or name.endswith(endings)]
    kept = {id(p) for p in plain}
    decayed = [p for _, p in parameters if id(p) not in kept]
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if not tensor_lr:
        return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
    device = parameters[0][1].device
    for group in groups:  # a tensor each: they are filled in place
        group["lr"] = torch.tensor(cfg.lr, device=device)
    return torch.optim.AdamW(groups, betas=cfg.betas, fused=True, capturable=True)


def reads_lr_from_a_tensor(accelerator: Accelerator) -> bool:
    """Whether the optimiser does: wherever steps could be captured, so that `run.cuda_graphs` changes no bit.

    A tensor holds the rate in float32, a number in float64.
    """
    return accelerator.device.type == "cuda" and accelerator.distributed_type != DistributedType.FSDP


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def why_uncaptured(cfg: RunConfig, device: torch.device, distributed: DistributedType = DistributedType.NO) -> str:
    """Why steps do not run as CUDA graphs, in a few words; empty = they do.

    Raises:
        UsageError: `run.cuda_graphs` is 'always' where they can't.
    """
    why = ""
    if device.type != "cuda":
        why = "there is no GPU"
    elif distributed == DistributedType.FSDP:
        why = "FSDP shards the weights"
    if why and cfg.cuda_graphs == "always":
        raise UsageError(f"run.cuda_graphs always: {why}, so steps can't be captured; set it to auto or never")
    return why or ("run.cuda_graphs never" if cfg.cuda_graphs == "never" else "")


def prepare_model(model: nn.Module, cfg: RunConfig) -> nn.Module:
    """Applies activation checkpointing and compilation, in place, and names the units in which FSDP shards."""
    units = {type(module).__name__ for module in model.modules() if isinstance(module, UNITS)}  # all must be there
    setattr(model, "_no_split_modules", sorted(units))  # noqa: B010
    if cfg.activation_checkpointing:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
            apply_activation_checkpointing,
            checkpoint_wrapper,
        )

        # blocks draw no random numbers; keeping the generator's state would forbid CUDA graphs
        wrap = partial(checkpoint_wrapper, preserve_rng_state=False)
        apply_activation_checkpointing(model, wrap, lambda module: isinstance(module, Block | CausalBlock))
    if cfg.compile:
        compile_blocks(model)
    return model


def compile_blocks(model: nn.Module) -> None:
    """Compiles the blocks of a model, each on its own and for each shape it meets, and what else it names itself.

    As fast as compiling the whole step, in a fifth of the time: the blocks of a tower share one compilation.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    for module in model.modules():
        if isinstance(module, UNITS):
            module.compile(dynamic=False)
    more = getattr(model, "compile_parts", None)
    if more is not None:
        more()


def whole_model(model: nn.Module, accelerator: Accelerator, build: Callable[[], nn.Module]) -> nn.Module | None:
    """The model out of its wrapper, to be looked at and saved.

    Where ranks hold shards of it, every rank must call this; the first gets a copy with all weights, the others none.

    Args:
        build: makes a fresh model of the same kind.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        unwrapped: nn.Module = accelerator.unwrap_model(model)
        return unwrapped
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not accelerator.is_main_process:
        return None
    with torch.random.fork_rng(devices=[]):
        whole = build()
    whole.load_state_dict(weights)
    return whole.to(accelerator.device)
