"""What compression costs an audio encoder: linear probe of spoken digits, output error, size, latency.

    python docs/studies/compress_encoder.py CKPT FSDD OUT.json

CKPT is a checkpoint with an audio encoder, FSDD a folder of recordings DIGIT_SPEAKER_INDEX. Digits are repeated until
they fill the encoder's window. The features are the mean over patches; the probe is logistic regression on 500 clips,
its regularisation chosen by cross-validation, scored on the 300 clips of the test split. Real calibration sees 64
training clips. Weights alone are rounded but in the rows `onnx`, where activations have 8 bits, too. Needs the extra
`onnx`.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from avpretrain.compression.compress import Plan, compress
from avpretrain.compression.inputs import (
    LayerNormInputs,
    PropagatedInputs,
    RealInputs,
    layers_of,
    norm_moment_error,
    pink_noise,
)
from avpretrain.compression.norms import equalise_norms
from avpretrain.compression.onnx_int8 import quantise_onnx, run_onnx
from avpretrain.compression.packed import write_packed
from avpretrain.core.files import write_json
from avpretrain.core.provenance import environment
from avpretrain.data.features import log_mel
from avpretrain.data.sources import fsdd
from avpretrain.methods.diffmavil.conversions.onnx_export import export_onnx
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model

TRAIN_CLIPS, CALIBRATION, NOISE = 500, 64, 32
BITS = (4, 8)


def spectrograms(model: DiffMAViL, folder: Path) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Normalised as the encoder was trained, [N, F, M]; classes; which are of the test split."""
    size = model.cfg.input
    items = fsdd.find(folder, None).items
    train = [item for item in items if item.split != "test"]
    step = len(train) / TRAIN_CLIPS
    chosen = [train[int(i * step)] for i in range(TRAIN_CLIPS)] + [item for item in items if item.split == "test"]
    mels = []
    samples = size.audio_frames * size.sample_rate // 100 + size.sample_rate // 50
    for item in chosen:
        wave, rate = soundfile.read(folder / item.path, dtype="float32")
        wave_S = torchaudio.functional.resample(torch.from_numpy(wave), rate, size.sample_rate)
        wave_S = (wave_S - wave_S.mean()).repeat(samples // len(wave_S) + 1)[:samples]
        mels.append(log_mel(wave_S[None], size.mels, size.sample_rate)[0, : size.audio_frames])
    assert size.audio_mean is not None and size.audio_std is not None
    mel_NFM = (torch.stack(mels) - size.audio_mean) / (2 * size.audio_std)
    classes = np.array([int(str(item.labels["class"])) for item in chosen])
    return mel_NFM, classes, np.array([item.split == "test" for item in chosen])


@torch.no_grad()
def features(model: DiffMAViL, mel_NFM: Tensor) -> np.ndarray:
    """[N, D], the mean over patches."""
    encoder = model.tower("audio").encoder
    return torch.cat([encoder.pool(model.encode_audio(part)) for part in mel_NFM.split(50)]).numpy()


def probe(feature_ND: np.ndarray, class_N: np.ndarray, test_N: np.ndarray) -> float:
    """Share of right answers on the test split."""
    fit = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=[0.01, 0.1, 1.0], cv=3, max_iter=300))
    fit.fit(feature_ND[~test_N], class_N[~test_N])
    return float(fit.score(feature_ND[test_N], class_N[test_N]))


def main(ckpt: Path, folder: Path, out: Path) -> None:
    model = load_model(ckpt)
    mel_NFM, class_N, test_N = spectrograms(model, folder)
    generator = torch.Generator().manual_seed(0)
    shape = (NOISE, *mel_NFM.shape[1:])
    white, pink = torch.randn(shape, generator=generator), pink_noise(shape, generator)
    train_NFM = mel_NFM[torch.from_numpy(~test_N)]
    real = train_NFM[torch.randperm(len(train_NFM), generator=generator)[:CALIBRATION]]

    def call(x: Tensor) -> Any:
        return lambda net: net.encode_audio(x)

    full_ND = features(model, mel_NFM)
    variance = float(full_ND[test_N].var(axis=0).mean())
    rows: list[dict[str, Any]] = []

    def add(feature_ND: np.ndarray, **what: Any) -> None:
        error = float(np.square(feature_ND[test_N] - full_ND[test_N]).mean()) / variance
        rows.append({**what, "accuracy": probe(feature_ND, class_N, test_N), "output_error": error})
        print(json.dumps(rows[-1]), flush=True)

    add(full_ND, method="float32", bits=32)
    with tempfile.TemporaryDirectory() as temporary:
        file, small = Path(temporary) / "full.onnx", Path(temporary) / "small.onnx"
        export_onnx(model, "audio", file)
        for kind, samples in (("white noise", white), ("real", real)):
            quantise_onnx(file, small, [part.numpy() for part in samples.split(16)])
            outputs = [run_onnx(small, part.numpy())[0] for part in mel_NFM.split(100)]
            times = {name: [run_onnx(path, white.numpy()[:1])[1] for _ in range(3)]
                     for name, path in (("full", file), ("small", small))}  # fmt: skip
            add(
                np.concatenate(outputs), method=f"onnx, {kind}", bits=8, size=small.stat().st_size,
                float32_size=file.stat().st_size, milliseconds=statistics.median(times["small"]),
                float32_milliseconds=statistics.median(times["full"]),
            )  # fmt: skip
        for bits in BITS:
            for method in ("naive", "equalise", "norms", "pink noise", "real"):
                net = copy.deepcopy(model)
                if method != "naive":
                    assert equalise_norms(net, call(white)) == []
                source = {
                    "naive": RealInputs([call(white)]), "equalise": RealInputs([call(white)]),
                    "norms": LayerNormInputs(call(white)), "pink noise": PropagatedInputs([call(pink)]),
                    "real": RealInputs([call(real)]),
                }[method]  # fmt: skip
                found, missed = source.moments(net)
                solver: Any = "naive" if method in ("naive", "equalise") else "closed"
                done = compress(net, Plan(bits=bits, solver=solver), found, missed)
                kept = {f"{name}.{part}": tensor for name in done.layers
                        for part, tensor in net.get_submodule(name).named_parameters()}  # fmt: skip
                size = write_packed(Path(temporary) / "packed", kept, done.grids)
                add(features(net, mel_NFM), method=method, bits=bits, size=size,
                    float32_size=4 * sum(t.numel() for t in kept.values()))  # fmt: skip
    used = set(RealInputs([call(white)]).moments(model)[0])
    write_json(out, {
        "encoder_weights": sum(m.weight.numel() for n, m in layers_of(model).items() if n in used),
        "train_clips": int((~test_N).sum()), "test_clips": int(test_N.sum()), "calibration_clips": CALIBRATION,
        "norm_moment_error": norm_moment_error(model, [call(real)]), "rows": rows, **environment(),
    })  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
