"""One encoder as an ONNX file, checked against torch by onnxruntime. Needs the extra `onnx`.

B clips, F spectrogram frames, M mel bins, T video frames, C colours, H height, W width, K tokens, D width.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avpretrain.config.reader import to_dict
from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path
from avpretrain.methods.diffmavil.model import DiffMAViL, Side
from avpretrain.nn.encoder import Encoder
from avpretrain.nn.patches import positions_of_steps, resize_positions_of_steps

TOLERANCE = 1e-4
"""Largest difference between onnxruntime's and torch's outputs."""


MARGIN = 2
"""Steps more than trained that are among the lengths that are checked."""


class EncoderGraph(nn.Module):
    """What the file computes: normalised input -> tokens [B, K, D], class token first, and their pooled mean [B, D].

    Args:
        any_length: compute positions from the length of the clip, as `Encoder.encode` does, without its branches.
    """

    def __init__(self, model: DiffMAViL, side: Side, any_length: bool) -> None:
        super().__init__()
        self.encoder, self.any_length = model.tower(side).encoder, any_length

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        tokens_BKD = self._encode(clip) if self.any_length else self.encoder.encode(clip)
        return tokens_BKD, self.encoder.pool(tokens_BKD)

    def _encode(self, clip: Tensor) -> Tensor:
        encoder = self.encoder
        steps_S = torch.arange(clip.shape[1] // encoder.patches.size[0])
        if encoder.position_table is None:
            position_LD = positions_of_steps(steps_S, encoder.width, encoder.grid)
        else:
            position_LD = resize_positions_of_steps(encoder.position_table[0], steps_S, encoder.grid)
        return encoder.transform(encoder.patch_embed(encoder.patches.split(clip)) + position_LD)


def export_onnx(model: DiffMAViL, side: Side, path: Path, any_length: bool = True) -> float:
    """Writes the encoder for any number of clips; returns the largest difference to torch.

    Args:
        any_length: clips of any whole number of patches along time, with the trained mel bins or pixels; otherwise of
            the trained length alone.

    Raises:
        UserError: a package is missing, or onnxruntime's outputs differ by more than `TOLERANCE`; nothing is written.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    encoder = model.eval().tower(side).encoder
    steps, patch = encoder.grid[0], encoder.patches.size[0]
    checked = sorted({1, max(1, steps // 2), steps, steps + MARGIN}) if any_length else [steps]
    # A size of 1 or 2 would be taken for one that never changes.
    traced = max(4, steps) + 1 if any_length else steps
    sizes: dict[int, Any] = {0: torch.export.Dim("clips")}
    if any_length:
        sizes[1] = patch * torch.export.Dim("steps")
    graph = EncoderGraph(model, side, any_length)
    with atomic_path(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                graph, (_noise(model, side, 2, traced * patch),), temporary, input_names=[side],
                output_names=["tokens", "embedding"], dynamo=True, dynamic_shapes=(sizes,), external_data=False,
                verbose=False,
            )  # fmt: skip
        _describe(temporary, model)
        difference = _difference(temporary, encoder, [_noise(model, side, 3, length * patch) for length in checked])
        if difference > TOLERANCE:
            raise UserError(f"onnxruntime differs from torch by {difference:.1e}, more than {TOLERANCE}; not written")
    return difference


def _noise(model: DiffMAViL, side: Side, clips: int, frames: int) -> Tensor:
    size = model.cfg.input
    shape = (frames, size.mels) if side == "audio" else (frames, 3, size.video_size, size.video_size)
    return torch.randn((clips, *shape), generator=torch.Generator().manual_seed(0))


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"ONNX export needs the package {package}; pip install 'avpretrain[onnx]'") from None


def _describe(path: Path, model: DiffMAViL) -> None:
    """Puts the input's settings into the file's metadata: features are worthless under others."""
    import onnx

    proto = onnx.load(path)
    onnx.helper.set_model_props(
        proto,
        {
            "avpretrain.input": json.dumps(to_dict(model.cfg.input)),
            "avpretrain.normalisation": "audio: (log-mel - audio_mean) / (2 audio_std); video: ImageNet mean and std",
        },
    )
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _difference(path: Path, encoder: Encoder, clips: list[Tensor]) -> float:
    """Largest difference of any output to the encoder's own way, on clips of several lengths."""
    import onnxruntime

    runtime = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name, largest = runtime.get_inputs()[0].name, 0.0
    with torch.no_grad():
        for clip in clips:
            tokens_BKD = encoder.encode(clip)
            expected = [tokens_BKD, encoder.pool(tokens_BKD)]
            outputs = runtime.run(None, {name: clip.numpy()})
            # NaN is a difference, too
            differences = [float(np.abs(a - b.numpy()).max()) for a, b in zip(outputs, expected, strict=True)]
            largest = max([largest, *(math.inf if math.isnan(value) else value for value in differences)])
    return largest
