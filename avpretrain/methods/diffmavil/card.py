"""The model card that travels with saved weights: what the model is, what it must be fed, what it may be used for."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from avpretrain.config.model import SIDES, DecoderConfig, Side
from avpretrain.core.terminal import markdown, plain_line
from avpretrain.measures.scores import Score
from avpretrain.methods.diffmavil.config import ModelConfig

TAGS = ["audio", "video", "self-supervised", "masked-autoencoder", "diffusion"]
PIPELINE = "feature-extraction"
TASKS = {"audio": "audio-classification", "video": "video-classification"}
"""What hubs call the task of a probe."""

CARD_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

Audio and video encoders pretrained by self-supervision with avpretrain.

| | audio | video |
|---|---|---|
| input | {{ audio_input }} | {{ video_input }} |
| patch | {{ audio_patch }} | {{ video_patch }} |
| encoder | {{ audio_encoder }} | {{ video_encoder }} |
| decoder (pretraining only) | {{ audio_decoder }} | {{ video_decoder }} |

{{ parameters }}Loss: {{ loss }}.

## Use

{{ use }}

{{ normalisation }}

## Training data, evaluation, limits

{{ data }} {{ data_license }}

Features reflect what was in the training clips, their biases included. The weights were trained without labels; measure
them on your own task before you rely on them.

## Method

[DiffMAViL](https://arxiv.org/abs/2310.03937) and [MAViL](https://arxiv.org/abs/2212.08071), re-implemented; the authors
of the papers took no part.
"""


USE = """```python
from avpretrain.methods.diffmavil.model import DiffMAViL

model = DiffMAViL.from_pretrained("path/or/hub-id").eval()
clip = model.preprocess("clip.mp4")                    # log-mel [1, F, {mels}], frames [1, T, 3, {size}, {size}]
tokens = model.encode_audio(clip.audio_1FM)            # [1, {prefix}patches, {width}]
feature = model.audio_encoder.pool(tokens)             # [1, {width}]: mean over patches
```"""
USE_TRANSFORMERS = """Needs `transformers` alone; the code that comes along is read from this folder.

```python
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("path/or/hub-id", trust_remote_code=True).eval()
extractor = AutoFeatureExtractor.from_pretrained("path/or/hub-id", trust_remote_code=True)
inputs = extractor(audio=waveform, videos=frames, sampling_rate={rate})
out = model(**inputs)                # audio_embeds, video_embeds [clips, {width}]; audio_steps, video_steps over time
```

`waveform`: float [samples] in [-1, 1], mono, {rate} Hz, or a list of them. `frames`: uint8 [frames, height, width, 3],
{fps:g} a second, or a list of them. Either may be left out, and clips may have any length."""

USE_ONNX = """Needs `onnxruntime` alone.

```python
import onnxruntime

session = onnxruntime.InferenceSession("audio.onnx")   # or video.onnx with frames [clips, T, 3, {size}, {size}]
tokens, embedding = session.run(None, {{"audio": log_mel}})   # log_mel: float32 [clips, F, {mels}], 10 ms a frame
```

F is {audio_length}, T is {video_length}. The files' metadata holds the input settings."""

USES = {"avpretrain": USE, "transformers": USE_TRANSFORMERS, "onnx": USE_ONNX}


def make_card(
    values: dict[str, str],
    library: str,
    scores: Sequence[Score] = (),
    datasets: Sequence[str] = (),
) -> ModelCard:
    """The card of exported weights; its head holds what model hubs sort by, results included.

    Args:
        values: see `card_values`.
        library: avpretrain, transformers or onnx.
        scores: of probes and retrieval, for the model index.
        datasets: names of the training data.
    """
    results = [
        EvalResult(
            task_type=TASKS.get(score.modality, "feature-extraction"),
            task_name=markdown(score.words),
            dataset_type=markdown(score.label or "unnamed"),
            dataset_name=markdown(score.label or "unnamed"),
            metric_type=markdown(score.metric),
            metric_value=score.value,
        )
        for score in scores
    ]
    data = ModelCardData(
        library_name=library,
        license="apache-2.0",
        pipeline_tag=PIPELINE,
        tags=TAGS,
        datasets=[plain_line(name) for name in datasets] or None,
        model_name=values["title"] if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(data, template_str=CARD_TEMPLATE, **values)


def card_values(
    cfg: ModelConfig,
    parameters: int | None = None,
    data: str = "",
    data_license: str = "",
    library: str = "avpretrain",
    fixed_length: bool = False,
) -> dict[str, str]:
    """What `CARD_TEMPLATE` asks for.

    Args:
        parameters: of the whole model, where known.
        data: a sentence on training data and results.
        data_license: of the training data.
        library: that loads the weights, avpretrain, transformers or onnx.
        fixed_length: whether ONNX files take the trained length alone.
    """
    source, loss = cfg.input, cfg.loss
    method = "DiffMAViL" if "diffused" in (cfg.audio.decoder.input, cfg.video.decoder.input) else "MAViL"
    stats = f"{source.audio_mean} and {source.audio_std}" if source.audio_std is not None else "those of your data"
    target = f"{'normalised ' if loss.norm_pix_loss else ''}{cfg.objective}"
    return {
        "title": f"{method}, width {cfg.width}, depth {cfg.audio.depth} + {cfg.video.depth}",
        "audio_input": f"log-mel, {source.sample_rate} Hz, {source.audio_frames} frames of 10 ms x {source.mels} bins",
        "video_input": f"RGB, {source.video_frames} frames at {source.video_fps:g} fps, {source.video_size} px",
        "audio_patch": " x ".join(map(str, cfg.audio.patch)),
        "video_patch": " x ".join(map(str, cfg.video.patch)),
        **{f"{side}_encoder": _encoder(cfg, side) for side in SIDES},
        "audio_decoder": _decoder(cfg.audio.decoder),
        "video_decoder": _decoder(cfg.video.decoder),
        "parameters": f"{parameters:,} parameters. " if parameters else "",
        "loss": f"{loss.reconstruction:g} x reconstruction of {target} + {loss.inter:g} x inter-modal InfoNCE "
        f"+ {loss.intra:g} x intra-modal InfoNCE",
        "use": USES[library].format(
            audio_length=source.audio_frames if fixed_length else f"a multiple of {cfg.audio.patch[0]}",
            video_length=source.video_frames if fixed_length else f"a multiple of {cfg.video.patch[0]}",
            prefix="1 + " if cfg.cls_token else "",
            width=cfg.width,
            mels=source.mels,
            size=source.video_size,
            rate=source.sample_rate,
            fps=source.video_fps,
        ),
        "data_license": f"License of the data: {markdown(data_license)}."
        if data_license
        else "License of the data: not recorded.",
        "normalisation": "Spectrograms are normalised as (x - mean) / (2 std), where mean and std are "
        f"{stats}; frames with ImageNet's mean and std. `avpretrain embed` does all of it.",
        "data": data or "Not recorded.",
    }


def _encoder(cfg: ModelConfig, side: Side) -> str:
    layers = cfg.tower(side).layers
    heads = "heads, ".join(f"{n} " for n in dict.fromkeys((min(layers.heads, default=0), max(layers.heads, default=0))))
    return f"ViT, {len(layers)} layers, width {cfg.width}, {heads}heads"


def _decoder(cfg: DecoderConfig) -> str:
    what = "diffused patches" if cfg.input == "diffused" else "mask tokens"
    return f"{cfg.kind}, {cfg.depth} layers, width {cfg.width}, from {what}"
