"""The model card that travels with saved weights: what the model is, what it must be fed, what it may be used for."""

from __future__ import annotations

from avpretrain.config.model import SIDES, DecoderConfig, ModelConfig, Side

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

```python
from avpretrain.methods.diffmavil.model import DiffMAViL

model = DiffMAViL.from_pretrained("path/or/hub-id").eval()
tokens = model.encode_audio(log_mel)          # [clips, frames, mels] -> [clips, {{ prefix }}patches, {{ width }}]
feature = model.audio_encoder.pool(tokens)    # mean over patches
```

{{ normalisation }}

## Training data, evaluation, limits

{{ data }}

Features reflect what was in the training clips, their biases included. The weights were trained without labels; measure
them on your own task before you rely on them.

## Method

[DiffMAViL](https://arxiv.org/abs/2310.03937) and [MAViL](https://arxiv.org/abs/2212.08071), re-implemented; the authors
of the papers took no part.
"""


def card_values(cfg: ModelConfig, parameters: int | None = None, data: str = "") -> dict[str, str]:
    """What `CARD_TEMPLATE` asks for.

    Args:
        parameters: of the whole model, where known.
        data: a sentence on training data and results.
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
        "prefix": "1 + " if cfg.cls_token else "",
        "width": str(cfg.width),
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
