"""`avpretrain compress`."""

from __future__ import annotations

import json as json_format
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file, require_model_folder
from avpretrain.core.errors import UsageError
from avpretrain.core.files import atomic_path, write_json
from avpretrain.core.terminal import Console

if TYPE_CHECKING:
    from avpretrain.methods.diffmavil.model import DiffMAViL

NOISE_CLIPS = 8


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    bits: int | None = None,
    sparsity: float | None = None,
    per_tensor: bool = False,
    solver: Literal["naive", "closed", "ste"] = "closed",
    inputs: Literal["norms", "propagated"] = "norms",
    onnx: Literal["audio", "video"] | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Make the encoders of a checkpoint small without data: weights of few bits, or sparse ones.

    Reads a checkpoint. Writes the folder OUT: model.safetensors and config.json, which every verb takes as a
    checkpoint (its weights are float32 on the coarser grid); packed.safetensors, the encoders' compressed weights at
    their true size; compress.json, what was done to each layer, what was left and why. Decoders and fusion stay as
    they are. With --onnx the file OUT is one encoder in int8 for onnxruntime, activations included, and OUT.json has
    sizes and latencies. Takes seconds for a small model; ste and pruning take minutes for a large one.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        out: Folder to write, or file with --onnx.
        bits: Bits of a weight, 2 to 16; 32 leaves weights as they are.
        sparsity: Share of weights to zero, from 0 up to, not including, 1.
        per_tensor: One grid for each weight tensor, not one for each output channel.
        solver: naive rounds; closed chooses grids and corrects biases, or re-optimises what pruning left; ste also
            moves weights by gradients.
        inputs: Where a layer's input is known from: the LayerNorm before its block, or noise through the whole encoder.
        onnx: Write this encoder as ONNX in int8; takes --bits 8 alone; needs pip install 'avpretrain[onnx]'.
        seed: Of the noise.
        json: Print what was written as JSON.
    """
    _check_numbers(bits, sparsity)
    if onnx is None:
        require_model_folder(out)
    elif out.is_dir():
        raise UsageError(f"{out} is a folder; name a file, such as {out / onnx}.onnx")
    elif bits != 8 or per_tensor or solver != "closed" or inputs != "norms":
        raise UsageError("--onnx takes --bits 8 and no other choice: onnxruntime rounds and scales by its own rules")
    else:
        require_file(out, "OUT")
    from avpretrain.methods.load import load_model

    model = load_model(ckpt)
    if onnx is not None:
        answer = _write_onnx(model, onnx, out, seed)
    else:
        answer = _write_folder(model, out, bits, sparsity, not per_tensor, solver, inputs, seed)
    if json:
        print(json_format.dumps(answer, indent=2))
        return
    times = answer["times_smaller"]
    lines = [f"wrote {out}: {times:.1f} times smaller than float32" + (" (packed.safetensors)" if onnx is None else "")]
    if onnx is None:
        lines += [f"left as it was: {len(answer['missed'])} layers, named in {out / 'compress.json'}"]
    Console(highlight=False).print("\n".join(lines))


def _check_numbers(bits: int | None, sparsity: float | None) -> None:
    """What `Plan` checks, too, but before torch is imported."""
    if (bits is None) == (sparsity is None):
        raise UsageError("name one of --bits 8|6|4 and --sparsity S")
    if bits is not None and not (2 <= bits <= 16 or bits == 32):
        raise UsageError(f"--bits takes 2 to 16, or 32 to leave weights as they are, got {bits}")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise UsageError(f"--sparsity takes a share of weights from 0 up to, not including, 1, got {sparsity}")


def _noise(model: DiffMAViL, side: str, seed: int, clips: int = NOISE_CLIPS) -> Any:
    """Standard normal values in the shape of one modality's input."""
    import torch

    size, generator = model.cfg.input, torch.Generator().manual_seed(seed)
    audio = (clips, size.audio_frames, size.mels)
    video = (clips, size.video_frames, 3, size.video_size, size.video_size)
    return torch.randn(audio if side == "audio" else video, generator=generator)


def _write_folder(
    model: DiffMAViL,
    out: Path,
    bits: int | None,
    sparsity: float | None,
    per_channel: bool,
    solver: Literal["naive", "closed", "ste"],
    inputs: Literal["norms", "propagated"],
    seed: int,
) -> dict[str, Any]:
    import torch

    from avpretrain.compression.compress import Plan, compress
    from avpretrain.compression.inputs import LayerNormInputs, PropagatedInputs
    from avpretrain.compression.packed import write_packed
    from avpretrain.core.provenance import environment

    audio, video = _noise(model, "audio", seed), _noise(model, "video", seed)

    def run(net: Any) -> None:
        net.encode_audio(audio)
        net.encode_video(video)

    torch.manual_seed(seed)
    source = LayerNormInputs(run, seed=seed) if inputs == "norms" else PropagatedInputs([run])
    found, missed = source.moments(model)
    done = compress(model, Plan(bits=bits, sparsity=sparsity, per_channel=per_channel, solver=solver), found, missed)
    with atomic_path(out) as folder:
        model.save_pretrained(folder)
        kept = {
            f"{name}.{part}": tensor
            for name in done.layers
            for part, tensor in model.get_submodule(name).named_parameters()
        }
        packed_bytes = write_packed(folder / "packed.safetensors", kept, done.grids)
        full_bytes = sum(4 * tensor.numel() for tensor in kept.values())
        answer = {
            "written": str(out), "bits": bits, "sparsity": sparsity, "per_channel": per_channel, "solver": solver,
            "inputs": inputs, "seed": seed, "activations": "float32", "packed_bytes": packed_bytes,
            "float32_bytes": full_bytes, "times_smaller": full_bytes / packed_bytes, "layers": done.layers,
            "missed": done.missed, **environment(),
        }  # fmt: skip
        write_json(folder / "compress.json", answer)
    return answer


def _write_onnx(model: DiffMAViL, side: Literal["audio", "video"], out: Path, seed: int) -> dict[str, Any]:
    from avpretrain.compression.onnx_int8 import quantise_onnx
    from avpretrain.core.provenance import environment
    from avpretrain.methods.diffmavil.conversions.onnx_export import export_onnx

    samples = [_noise(model, side, seed + i, clips=4).numpy() for i in range(4)]
    with tempfile.TemporaryDirectory() as folder, atomic_path(out) as temporary:
        full = Path(folder) / "fp32.onnx"
        export_onnx(model, side, full, any_length=False)  # ranges are set at the trained length
        answer = {"written": str(out), "calibration": "standard normal noise", "seed": seed}
        answer |= quantise_onnx(full, temporary, samples) | environment()
    write_json(out.with_name(f"{out.name}.json"), answer)
    return answer
