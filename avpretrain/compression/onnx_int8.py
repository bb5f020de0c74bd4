"""An ONNX file in int8, with quantise and dequantise nodes, as onnxruntime runs it. Needs the extra `onnx`."""

from __future__ import annotations

import importlib
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avpretrain.core.errors import UserError

REPEATS = 20
"""Timed runs of each file."""


def quantise_onnx(path: Path, out: Path, samples: Sequence[np.ndarray]) -> dict[str, Any]:
    """Writes `out`: weights asymmetric by output channel, what they multiply by tensor, from samples' ranges.

    Products of two activations, as in attention, stay in float32. Weights are unsigned: products of uint8 by int8
    overflow 16 bits, and are clipped, on processors without VNNI.

    Args:
        path: a file in float32, with one input.
        samples: batches of that input by which activations' ranges are set; noise where there is to be no data.

    Returns:
        Sizes in bytes, median ms for one clip in one thread, and the outputs' mean cosine on the last batch.
    """
    try:
        quantization = importlib.import_module("onnxruntime.quantization")
    except ImportError:
        raise UserError("int8 ONNX needs onnxruntime and onnx; pip install 'avpretrain[onnx]'") from None
    name = _session(path).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: batch}

    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises on the root logger
    try:
        quantization.quantize_static(
            path, out, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
    finally:
        logging.getLogger().setLevel(before)
    _strip(out)
    return {**compare_onnx(path, out, samples[-1]), "weights": "uint8 asymmetric per channel",
            "activations": "uint8 per tensor, minimum to maximum of samples"}  # fmt: skip


def _strip(path: Path) -> None:
    """Takes out what tells where in the source a node is from, a quarter of a small file; the model's own is kept."""
    import onnx

    proto = onnx.load(path)
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    onnx.save(proto, path)


def compare_onnx(path: Path, small: Path, batch: np.ndarray) -> dict[str, Any]:
    """Size, latency and agreement of two files on one batch, measured in turn."""
    sessions = {"fp32": _session(path), "int8": _session(small)}
    name = sessions["fp32"].get_inputs()[0].name
    milliseconds: dict[str, list[float]] = {kind: [] for kind in sessions}
    for i in range(REPEATS + 3):
        for kind, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {name: batch[:1]})
            if i >= 3:
                milliseconds[kind].append(1000 * (time.perf_counter() - start))
    full, little = (session.run(None, {name: batch})[-1].reshape(len(batch), -1) for session in sessions.values())
    norms = np.linalg.norm(full, axis=1) * np.linalg.norm(little, axis=1)
    return {
        "fp32_bytes": path.stat().st_size,
        "int8_bytes": small.stat().st_size,
        "times_smaller": path.stat().st_size / small.stat().st_size,
        "fp32_ms": statistics.median(milliseconds["fp32"]),
        "int8_ms": statistics.median(milliseconds["int8"]),
        "cosine": float(((full * little).sum(axis=1) / np.maximum(norms, 1e-12)).mean()),
    }


def export_images(net: nn.Module, image_N1HW: Tensor, path: Path) -> None:
    """Writes a network of images as ONNX in float32 for any number of them. Needs onnxscript."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (image_N1HW,), path, input_names=["image"], output_names=["logits"], dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("images")},), external_data=False, verbose=False,
        )  # fmt: skip


def run_onnx(path: Path, batch: np.ndarray) -> tuple[np.ndarray, float]:
    """The last output for a batch, and the median ms for one of it in one thread."""
    session = _session(path)
    name, milliseconds = session.get_inputs()[0].name, []
    for _ in range(REPEATS + 3):
        start = time.perf_counter()
        session.run(None, {name: batch[:1]})
        milliseconds.append(1000 * (time.perf_counter() - start))
    return session.run(None, {name: batch})[-1], statistics.median(milliseconds[3:])


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
