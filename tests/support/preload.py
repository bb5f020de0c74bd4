"""What a training imports before its first step: loaded once in a process that others are forked from.

torch imports `torch._dynamo` when the first optimizer is made, in seconds, which every fork would do anew.
"""

import contextlib

import torch._dynamo
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.nn.parallel  # noqa: F401

import avpretrain.methods.diffmavil.method
import avpretrain.training.loop  # noqa: F401

with contextlib.suppress(ImportError):  # it has no wheels for some machines
    import decord  # noqa: F401
