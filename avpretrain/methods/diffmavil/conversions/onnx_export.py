"""One encoder as an ONNX file, checked against torch by onnxruntime. Needs the extra `onnx`.

B clips, F spectrogram frames, M mel bins, T video frames, C colours, H height, W width, K tokens, D width.
"""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from avpretrain.config.reader import to_dict
from avpretrain.core.errors import UserError
from avpretrain.core.files import atomic_path
from avpretrain.methods.diffmavil.model import DiffMAViL, Side

TOLERANCE = 1e-4
"""Largest difference between onnxruntime's and torch's outputs."""


class EncoderGraph(nn.Module):
    """What the file computes: normalised input -> tokens [B, K, D], class token first, and their pooled mean [B, D]."""

    def __init__(self, model: DiffMAViL, side: Side) -> None:
        super().__init__()
        self.model, self.side = model, side

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        tower = self.model.tower(self.side)
        tokens_BKD = tower.encode(clip)
        return tokens_BKD, tower.encoder.pool(tokens_BKD)


def export_onnx(model: DiffMAViL, side: Side, path: Path) -> float:
    """Writes the encoder with any number of clips and the trained input size; returns the largest difference to torch.

    Raises:
        UserError: a package is missing, or onnxruntime's outputs differ by more than `TOLERANCE`; nothing is written.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    size = model.cfg.input
    shape = (
        (2, size.audio_frames, size.mels)
        if side == "audio"
        else (2, size.video_frames, 3, size.video_size, size.video_size)
    )
    clip = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    graph = EncoderGraph(model.eval(), side)
    with atomic_path(path) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                graph, (clip,), temporary, input_names=[side], output_names=["tokens", "embedding"], dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("clips")},), external_data=False, verbose=False,
            )  # fmt: skip
        _describe(temporary, model)
        difference = _difference(temporary, graph, torch.cat([clip, clip.flip(1)[:1]]))
        if difference > TOLERANCE:
            raise UserError(f"onnxruntime differs from torch by {difference:.1e}, more than {TOLERANCE}; not written")
    return difference


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


def _difference(path: Path, graph: nn.Module, clip: Tensor) -> float:
    """Largest difference of any output, on another number of clips than the graph was traced with."""
    import onnxruntime

    runtime = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = runtime.run(None, {runtime.get_inputs()[0].name: clip.numpy()})
    with torch.no_grad():
        expected = graph(clip)
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(outputs, expected, strict=True))
