"""`avpretrain compress`."""

from __future__ import annotations

import json as json_format
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file, require_model_folder
from avpretrain.core.errors import UsageError
from avpretrain.core.files import atomic_path, write_json
from avpretrain.core.terminal import Console

if TYPE_CHECKING:
    from torch import Tensor, nn

    from avpretrain.compression.inputs import InputModel, Run
    from avpretrain.data.text.tokenizer import Tokenizer
    from avpretrain.methods.diffmavil.model import DiffMAViL
    from avpretrain.methods.openelm.model import LanguageModel

Inputs = Literal["norms", "propagated", "real"]
NOISE_CLIPS = 8
REAL_CLIPS = 64
TEXT_TOKENS = 128
"""Tokens of a random text, at most."""


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    bits: int | None = None,
    sparsity: float | None = None,
    per_tensor: bool = False,
    solver: Literal["naive", "closed", "ste"] = "closed",
    inputs: Inputs = "norms",
    noise: Literal["white", "pink"] = "white",
    equalise: bool = False,
    data: tuple[str, ...] = (),
    onnx: Literal["audio", "video"] | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Make the encoders of a checkpoint, or a language model, small without data: weights of few bits, or sparse ones.

    Reads a checkpoint. Writes the folder OUT: model.safetensors and config.json, which every verb takes as a
    checkpoint (its weights are float32 on the coarser grid); packed.safetensors, the compressed weights at their true
    size; compress.json, what was done to each layer, what was left and why. Decoders and fusion stay as they are. The
    embedding of a language model is rounded to 8 bits or more. With --onnx the file OUT is one encoder in int8 for
    onnxruntime, activations included, and OUT.json has sizes and latencies. Takes seconds for a small model; ste and
    pruning take minutes for a large one.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        out: Folder to write, or file with --onnx.
        bits: Bits of a weight, 2 to 16; 32 leaves weights as they are.
        sparsity: Share of weights to zero, from 0 up to, not including, 1.
        per_tensor: One grid for each weight tensor, not one for each output channel.
        solver: naive rounds; closed chooses grids and corrects biases, or re-optimises what pruning left; ste also
            moves weights by gradients.
        inputs: Where a layer's input is known from: the norm before its block, noise through the whole encoder, or
            real clips of --data.
        noise: Of the spectrograms and frames: white, or pink, whose amplitude falls as 1/f as that of real ones does.
            A language model is given random tokens.
        equalise: First scale channels between norms and the layers that they feed; the model computes the same. May
            help where a norm's channels differ widely.
        data: Folders or URLs written by `avpretrain shards`: 64 clips of the training split for --inputs real and for
            ranges of --onnx; compress.json then says how far the norms' own statistics are from theirs.
        onnx: Write this encoder as ONNX in int8; takes --bits 8 alone; needs pip install 'avpretrain[onnx]'.
        seed: Of the noise.
        json: Print what was written as JSON.
    """
    _check_numbers(bits, sparsity)
    if inputs == "real" and not data:
        raise UsageError("--inputs real takes --data with folders that avpretrain shards wrote")
    if onnx is None:
        require_model_folder(out)
    elif out.is_dir():
        raise UsageError(f"{out} is a folder; name a file, such as {out / onnx}.onnx")
    elif bits != 8 or per_tensor or solver != "closed" or inputs != "norms":
        raise UsageError("--onnx takes --bits 8 and no other choice: onnxruntime rounds and scales by its own rules")
    else:
        require_file(out, "OUT")
    from avpretrain.methods.load import load_language_model, load_model, method_of

    if method_of(ckpt) == "openelm":
        if onnx is not None or data:
            raise UsageError("a language model takes neither --onnx nor --data")
        from avpretrain.methods.openelm.model import LanguageModel

        text, tokenizer = load_language_model(ckpt)
        assert isinstance(text, LanguageModel)
        subject = _Subject(text, _text_call(text, seed), [], partial(_save_text, text, tokenizer))
    else:
        model = load_model(ckpt)
        real = _clips(model, data, seed) if data else []
        subject = _Subject(model, _clip_call(model, noise, seed), real, model.save_pretrained)
    if onnx is not None:
        answer = _write_onnx(model, onnx, out, noise, seed, real)
    else:
        settings = {
            "bits": bits, "sparsity": sparsity, "per_channel": not per_tensor, "solver": solver, "inputs": inputs,
            "noise": noise, "equalise": equalise, "seed": seed,
        }  # fmt: skip
        answer = _write_folder(subject, out, settings)
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


@dataclass(frozen=True)
class _Subject:
    """What is compressed: the model, a call of it on noise, calls on real data, and how it is saved."""

    model: nn.Module
    run: Run
    real: list[Run]
    save: Callable[[Path], object]


def _noise(model: DiffMAViL, side: str, kind: str, seed: int, clips: int = NOISE_CLIPS) -> Tensor:
    """Normal values in the shape of one modality's input."""
    import torch

    from avpretrain.compression.inputs import pink_noise

    size, generator = model.cfg.input, torch.Generator().manual_seed(seed)
    audio = (clips, size.audio_frames, size.mels)
    video = (clips, size.video_frames, 3, size.video_size, size.video_size)
    shape = audio if side == "audio" else video
    return pink_noise(shape, generator) if kind == "pink" else torch.randn(shape, generator=generator)


def _clip_call(model: DiffMAViL, kind: str, seed: int) -> Run:
    return partial(_encode, audio=_noise(model, "audio", kind, seed), video=_noise(model, "video", kind, seed))


def _encode(model: Any, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    return model.encode_audio(audio), model.encode_video(video)


def _clips(model: DiffMAViL, shards: tuple[str, ...], seed: int) -> list[Run]:
    """Calls on batches of real clips, drawn from the training split."""
    import torch

    from avpretrain.data.read.clips import ClipSet
    from avpretrain.evaluation.extract import Reading, clip_batches

    clips = ClipSet(shards, "train")
    rows = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed))[:REAL_CLIPS].tolist()
    batches = clip_batches(clips, rows, Reading(model.cfg.input, batch_size=16, num_workers=0))
    return [partial(_encode, audio=b.audio_BFM.cpu(), video=b.video_BTCHW.cpu()) for _, b in batches]


def _text_call(model: LanguageModel, seed: int) -> Run:
    import torch

    size = (NOISE_CLIPS, min(model.cfg.context, TEXT_TOKENS))
    tokens = torch.randint(model.cfg.vocabulary, size, generator=torch.Generator().manual_seed(seed))
    return lambda net: net.logits(tokens)  # type: ignore[operator]


def _save_text(model: LanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    from avpretrain.methods.openelm.model import save_pretrained

    folder.mkdir(exist_ok=True)
    save_pretrained(model, folder)
    tokenizer.save(folder)


def _write_folder(subject: _Subject, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import torch

    from avpretrain.compression.compress import Plan, compress
    from avpretrain.compression.inputs import LayerNormInputs, PropagatedInputs, RealInputs, norm_moment_error
    from avpretrain.compression.norms import equalise_norms
    from avpretrain.compression.packed import write_packed
    from avpretrain.core.provenance import environment

    model, run, real = subject.model.eval(), subject.run, subject.real
    torch.manual_seed(settings["seed"])
    errors = norm_moment_error(model, real)
    kept_back = equalise_norms(model, run) if settings["equalise"] and settings["bits"] != 32 else []
    sources: dict[str, InputModel] = {
        "norms": LayerNormInputs(run, seed=settings["seed"]), "propagated": PropagatedInputs([run]),
        "real": RealInputs(real),
    }  # fmt: skip
    found, missed = sources[settings["inputs"]].moments(model)
    plan = Plan(**{name: settings[name] for name in ("bits", "sparsity", "per_channel", "solver")})
    done = compress(model, plan, found, [*kept_back, *missed], new_biases=False)
    with atomic_path(out) as folder:
        subject.save(folder)
        kept = {
            f"{name}.{part}": tensor
            for name in done.layers
            for part, tensor in model.get_submodule(name).named_parameters()
        }
        packed_bytes = write_packed(folder / "packed.safetensors", kept, done.grids)
        full_bytes = sum(4 * tensor.numel() for tensor in kept.values())
        answer = {
            "written": str(out), **settings, "activations": "float32", "packed_bytes": packed_bytes,
            "float32_bytes": full_bytes, "times_smaller": full_bytes / packed_bytes, "layers": done.layers,
            "missed": done.missed, "norm_moment_error": errors, **environment(),
        }  # fmt: skip
        write_json(folder / "compress.json", answer)
    return answer


def _write_onnx(
    model: DiffMAViL, side: Literal["audio", "video"], out: Path, noise: str, seed: int, real: list[Run]
) -> dict[str, Any]:
    from avpretrain.compression.onnx_int8 import quantise_onnx
    from avpretrain.core.provenance import environment
    from avpretrain.methods.diffmavil.conversions.onnx_export import export_onnx

    samples = [_noise(model, side, noise, seed + i, clips=4).numpy() for i in range(4)]
    if real:
        samples = [batch.keywords[side].numpy() for batch in real]  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder, atomic_path(out) as temporary:
        full = Path(folder) / "fp32.onnx"
        export_onnx(model, side, full, any_length=False)  # ranges are set at the trained length
        answer = {"written": str(out), "calibration": "real clips" if real else f"{noise} noise", "seed": seed}
        answer |= quantise_onnx(full, temporary, samples) | environment()
    write_json(out.with_name(f"{out.name}.json"), answer)
    return answer
