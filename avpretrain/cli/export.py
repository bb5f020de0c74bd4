"""`avpretrain export`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from avpretrain.cli.shared.places import require_file, require_inputs, require_model_folder
from avpretrain.config.model import SIDES
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import atomic_path, read_json
from avpretrain.core.terminal import Console, markdown
from avpretrain.measures.scores import Score, read_score

if TYPE_CHECKING:
    from avpretrain.methods.diffmavil.model import DiffMAViL


def main(
    ckpt: Annotated[Positional[Path], arg(metavar="CKPT")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    format: Literal["avpretrain", "transformers", "onnx"] = "avpretrain",
    onnx: Literal["audio", "video"] | None = None,
    fixed_length: bool = False,
    dataset: tuple[str, ...] = (),
    data_license: str = "",
    json: bool = False,
) -> None:
    """Write weights with a model card, ready to publish; or one encoder as ONNX.

    Reads a checkpoint. Writes the folder OUT with model.safetensors, config.json and README.md (training data and
    results of the run it belongs to included); a language model in Hugging Face's layout of OpenELM, with its
    tokenizer; or with --onnx the file OUT. ONNX files take any number of clips of any
    whole number of patches along time, and are checked against torch with onnxruntime. Takes seconds; as ONNX up to a
    minute.

    Args:
        ckpt: A run folder, a checkpoint, or a folder with model.safetensors and config.json.
        out: Folder to write, or file with --onnx.
        format: What loads the folder. transformers: AutoModel and AutoFeatureExtractor with trust_remote_code, without
            this package; encoders only, from waveforms and frames to embeddings. A language model's folder is always
            loaded by AutoModelForCausalLM with trust_remote_code, too, and by mlx-lm. onnx: onnxruntime; audio.onnx and
            video.onnx, from log-mel spectrograms and normalised frames to tokens and embeddings.
        onnx: Which encoder to write as one ONNX file; as --format onnx it needs the extra: pip install
            'avpretrain[onnx]'.
        fixed_length: ONNX for clips of the trained length alone, for runtimes that need fixed sizes.
        dataset: Names of the training data, for the head of the model card.
        data_license: License of the training data, for the model card.
        json: Print what was written as JSON.
    """
    if onnx is not None and (format != "avpretrain" or dataset or data_license):
        raise UsageError(
            "--onnx writes one file; --format, --dataset and --data-license are of folders: leave them out"
        )
    if fixed_length and onnx is None and format != "onnx":
        raise UsageError("--fixed-length is for ONNX; add --format onnx or --onnx audio|video")
    if onnx is None:
        require_model_folder(out)
    elif out.is_dir():
        raise UsageError(f"{out} is a folder; name a file, such as {out / onnx}.onnx")
    else:
        require_file(out, "OUT")
    require_inputs(ckpt)
    from avpretrain.methods.load import load_language_model, load_model, method_of

    if method_of(ckpt) == "openelm":
        if onnx is not None or format == "onnx":
            raise UsageError("ONNX is for audio and video encoders; this is a language model")
        from avpretrain.evaluation.portable.export import export_language_model
        from avpretrain.methods.openelm.model import LanguageModel

        language_model, tokenizer = load_language_model(ckpt)
        assert isinstance(language_model, LanguageModel)
        with atomic_path(out) as folder:
            folder.mkdir()
            export_language_model(language_model, folder, tokenizer.separator, tokenizer.end)
            tokenizer.save(folder)
        _say({"written": str(out), "layout": "huggingface"}, json, f"wrote {out}, in Hugging Face's layout of OpenELM")
        return
    model = load_model(ckpt)
    answer: dict[str, Any] = {"written": str(out)}
    if onnx is not None:
        from avpretrain.methods.diffmavil.conversions.onnx_export import export_onnx

        answer["largest_difference"] = export_onnx(model, onnx, out, not fixed_length)
    else:
        answer |= _write_folder(model, ckpt, out, format, dataset, data_license, fixed_length)
    checked = f", within {answer['largest_difference']:.1e} of torch" if "largest_difference" in answer else ""
    _say(answer, json, f"wrote {out}{checked}")


def _say(answer: dict[str, Any], json: bool, line: str) -> None:
    if json:
        print(json_format.dumps(answer, indent=2))
    else:
        Console(highlight=False).print(line)


def _write_folder(
    model: DiffMAViL, ckpt: Path, out: Path, library: str, datasets: tuple[str, ...], data_license: str,
    fixed_length: bool,
) -> dict[str, Any]:  # fmt: skip
    """Returns what there is to say of it beside its place."""
    from avpretrain.evaluation.portable.export import export_transformers
    from avpretrain.methods.diffmavil.card import card_values, make_card

    parameters = sum(p.numel() for p in model.parameters())
    data, scores = _provenance(ckpt)
    values = card_values(model.cfg, parameters, data, data_license, library, fixed_length)
    answer: dict[str, Any] = {}
    with atomic_path(out) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        make_card(values, library, scores, datasets).save(folder / "README.md")
        if library == "transformers":
            export_transformers(model, folder)
        elif library == "onnx":
            from avpretrain.methods.diffmavil.conversions.onnx_export import export_onnx

            found = [export_onnx(model, side, folder / f"{side}.onnx", not fixed_length) for side in SIDES]
            answer["largest_difference"] = max(found)
        else:
            model.save_pretrained(folder)  # keeps the card that is there
    return answer


def _provenance(ckpt: Path) -> tuple[str, list[Score]]:
    """Sentences on what the run was trained on and how its probes did, from its own records; the latter also apart."""
    run = next((f for f in (ckpt, ckpt.parent, ckpt.parent.parent) if (f / "run.json").is_file()), None)
    if run is None:
        return "", []
    facts = read_json(run / "run.json", "run record")
    try:
        data = facts["data"]
        parts = [f"Trained on {data['clips']:,} clips (split {markdown(data['split'])}, "
                 f"fingerprint {markdown(data['fingerprint'][:12])})."]  # fmt: skip
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"run record {run / 'run.json'} is damaged: it does not say what data the run was trained on; "
            "to export the weights without it, copy their folder out of the run and export the copy"
        ) from None
    found = [score for path in sorted((run / "eval").glob("*.json")) if (score := read_score(path)) is not None]
    for score in found:
        interval = "" if score.interval is None else ", 95% interval [{:.3f}, {:.3f}]".format(*score.interval)
        parts.append(f"{markdown(score.words)}: {markdown(score.metric)} {score.value:.3f}{interval}.")
    return " ".join(parts), found
