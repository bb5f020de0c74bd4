"""Compressed weights as one safetensors file of their true size: whole numbers of few bits, or a mask and survivors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from avpretrain.compression.quantiser import IDENTITY_BITS, QuantGrid
from avpretrain.core.errors import UserError


def pack_integers(q: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits as uint8, `bits` bits each, one after another."""
    planes = (q.flatten().numpy().astype(np.int64)[:, None] >> np.arange(bits)) & 1
    return torch.from_numpy(np.packbits(planes.astype(np.uint8).ravel()))


def unpack_integers(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` whole numbers that `pack_integers` was given, int64."""
    planes = np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits).astype(np.int64)
    return torch.from_numpy((planes << np.arange(bits)).sum(axis=1))


def write_packed(path: Path, tensors: Mapping[str, Tensor], grids: Mapping[str, QuantGrid]) -> int:
    """Writes a model's tensors; returns the file's size in bytes.

    Args:
        tensors: by name; one with zeroes in more than 1 of 32 places is kept as mask and survivors.
        grids: of those tensors that lie on one; they are kept as whole numbers.
    """
    flat: dict[str, Tensor] = {}
    layout: dict[str, dict[str, object]] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        grid = grids.get(name)
        if grid is not None and grid.bits < IDENTITY_BITS:
            shape = (-1, *[1] * (tensor.ndim - 1)) if grid.scale.ndim else ()
            q = torch.round(tensor / grid.scale.reshape(shape)) + grid.zero_point.reshape(shape)
            flat[f"{name}|q"] = pack_integers(q, grid.bits)
            flat[f"{name}|scale"], flat[f"{name}|zero"] = grid.scale.clone(), grid.zero_point.clone()
            layout[name] = {"bits": grid.bits, "shape": list(tensor.shape)}
        elif tensor.is_floating_point() and tensor.numel() and float((tensor == 0).float().mean()) > 1 / 32:
            flat[f"{name}|mask"] = pack_integers(tensor != 0, 1)
            flat[f"{name}|values"] = tensor[tensor != 0]
            layout[name] = {"shape": list(tensor.shape)}
        else:
            flat[name] = tensor.clone()
    save_file(flat, path, metadata={"layout": json.dumps(layout)})
    return path.stat().st_size


def read_packed(path: Path) -> dict[str, Tensor]:
    """The tensors that `write_packed` was given, in float32, bit for bit.

    Raises:
        UserError: it is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            layout = json.loads((file.metadata() or {})["layout"])
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors = {name: tensor for name, tensor in flat.items() if "|" not in name}
        for name, kept in layout.items():
            shape = torch.Size(kept["shape"])
            if "bits" in kept:
                scale, zero_point = flat[f"{name}|scale"], flat[f"{name}|zero"]
                q = unpack_integers(flat[f"{name}|q"], kept["bits"], shape.numel()).reshape(shape)
                along = (-1, *[1] * (len(shape) - 1)) if scale.ndim else ()
                tensors[name] = (q.float() - zero_point.reshape(along)) * scale.reshape(along)
            else:
                mask = unpack_integers(flat[f"{name}|mask"], 1, shape.numel()).bool()
                tensors[name] = torch.zeros(shape.numel()).masked_scatter(mask, flat[f"{name}|values"]).reshape(shape)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} holds no packed weights of avpretrain compress: {error}") from None
    return tensors
