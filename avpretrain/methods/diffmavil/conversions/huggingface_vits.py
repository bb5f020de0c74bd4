"""VideoMAE and DINOv2 as `transformers` saves them: a folder with config.json and the weights.

Names are those of files on the hub and of files that later versions write, which differ; a test holds the outputs to
those of `transformers` itself. D width, L patches, H half the width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from avpretrain.config.model import MAX_POSITIONS
from avpretrain.core.errors import UserError
from avpretrain.core.files import read_json
from avpretrain.core.terminal import brief
from avpretrain.methods.diffmavil.conversions.foreign import (
    FOLDED,
    ForeignModel,
    ForeignViT,
    Taker,
    check_shapes,
    fold_layer_scale,
    read_weights,
)
from avpretrain.nn.layers import NORM_EPS

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_CONFIG_BYTES = 1 << 20

_SAME_NAMES = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_VIDEOMAE_NAMES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_QUERIES = {"attention.attention.query": "q", "attention.attention.key": "k", "attention.attention.value": "v"}


def open_folder(path: Path) -> Taker:
    """Weights and config of a folder in the layout of `transformers`, or of a file in such a folder.

    Raises:
        UserError: the config or the weights are missing or damaged.
    """
    folder = path if path.is_dir() else path.parent
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"no config.json beside {path}; name the model's folder, whose config.json says its heads")
    values = read_json(config, "config of the checkpoint", MAX_CONFIG_BYTES)
    if not isinstance(values, Mapping):
        raise UserError(f"{config} holds no settings")
    if path.is_dir():
        path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder)
        if path == folder:
            raise UserError(f"{folder} holds none of {', '.join(WEIGHTS)}; name the file of the weights")
    return Taker(read_weights(path), str(path), values)


def _videomae(taker: Taker) -> ForeignModel:
    """VideoMAE, pretrained or fine-tuned; its positions are computed, since files do not hold them.

    What was fine-tuned has no norm after its last block, but one over the mean of its tokens, which is left out.
    """
    _check_config(taker, "videomae")
    taker.cut_prefix("videomae.")
    kernel = taker.take("embeddings.patch_embeddings.projection.weight")
    bias_D = taker.take("embeddings.patch_embeddings.projection.bias")
    blocks = [_videomae_block(taker, prefix) for prefix in _layers(taker)]
    patch = (_number(taker, "tubelet_size"), *_pair(taker, "patch_size"))
    if kernel.ndim != 5 or tuple(kernel.shape[2:]) != patch:
        raise UserError(f"{taker.source}: patches are {list(kernel.shape)}, config.json says {list(patch)}")
    size = (_number(taker, "num_frames"), *_pair(taker, "image_size"))
    grid = tuple(whole // part for whole, part in zip(size, patch, strict=True))
    if min(grid) < 1:
        raise UserError(f"{taker.source}: config.json has inputs of {list(size)}, smaller than a patch {list(patch)}")
    if (count := math.prod(grid)) * len(kernel) > MAX_POSITIONS:
        raise UserError(f"{taker.source}: config.json has inputs of {list(size)}, {count} patches, which are too many")
    position_LD = _interleaved_positions(count, len(kernel))
    check_shapes(taker, kernel, position_LD[None], None, blocks)
    norm = taker.take_all("layernorm.")
    notes = ["positions: VideoMAE's fixed ones, over the count of patches, as a table that is trained from here on"]
    if any(key.startswith("fc_norm.") for key in taker.weights):
        notes.append("fine-tuned weights: their norm over the mean of the tokens (fc_norm) has no place here")
    vit = ForeignViT("video", kernel, bias_D, None, position_LD, blocks, norm, grid=grid)
    return ForeignModel([vit], norms=bool(norm), heads=_number(taker, "num_attention_heads"),
                        notes=[*notes, *_epsilon(taker)])  # fmt: skip


def _videomae_block(taker: Taker, prefix: str) -> dict[str, Tensor]:
    """VideoMAE's keys have no bias: it would add the same to all scores of a query."""
    weights = taker.take_all(prefix)
    for letter in "qv":  # as files on the hub have it
        if (old := f"attention.attention.{letter}_bias") in weights:
            weights[f"attention.attention.{'query' if letter == 'q' else 'value'}.bias"] = weights.pop(old)
    return _block(taker, prefix, weights, _VIDEOMAE_NAMES, _QUERIES)


def _dinov2(taker: Taker) -> ForeignModel:
    """DINOv2 with an MLP and without registers: small, base and large."""
    _check_config(taker, "dinov2")
    taker.cut_prefix("dinov2.")
    if "embeddings.register_tokens" in taker:
        raise UserError(_REGISTERS.format(taker.source))
    blocks = [_dinov2_block(taker, prefix) for prefix in _layers(taker)]
    kernel = taker.take("embeddings.patch_embeddings.projection.weight")
    bias_D = taker.take("embeddings.patch_embeddings.projection.bias")
    cls_11D = taker.take("embeddings.cls_token")
    position_1LD = taker.take("embeddings.position_embeddings")
    check_shapes(taker, kernel, position_1LD, cls_11D, blocks)
    if kernel.ndim != 4:
        raise UserError(f"{taker.source}: patches of images have four axes, these have {list(kernel.shape)}")
    vit = ForeignViT("image", kernel, bias_D, cls_11D + position_1LD[:, :1], position_1LD[0, 1:], blocks,
                     taker.take_all("layernorm."), resize="bicubic")  # fmt: skip
    return ForeignModel([vit], heads=_number(taker, "num_attention_heads"), notes=[FOLDED, *_epsilon(taker)])


_REGISTERS = "{} has register tokens, for which our encoders have no place; take DINOv2 without registers"


def _dinov2_block(taker: Taker, prefix: str) -> dict[str, Tensor]:
    weights = taker.take_all(prefix)
    if any(key.startswith(("mlp.weights_in", "mlp.gate_proj")) for key in weights):
        raise UserError(
            f"{taker.source} has gated MLPs (SwiGLU, as in DINOv2 giant), ours are plain; take small, base or large"
        )
    gammas = [weights.pop(f"layer_scale{n}.lambda1", None) for n in (1, 2)]
    is_new = any(key.startswith("attention.q_proj.") for key in weights)
    names = _SAME_NAMES | {"attention.o_proj" if is_new else "attention.output.dense": "attn.proj"}
    queries = {f"attention.{letter}_proj": letter for letter in "qkv"} if is_new else _QUERIES
    block = _block(taker, prefix, weights, names, queries)
    if gammas[0] is None or gammas[1] is None:
        raise UserError(f"{taker.source}: {prefix}layer_scale is missing; is --format right?")
    return fold_layer_scale(block, gammas[0], gammas[1])


def _block(
    taker: Taker, prefix: str, weights: dict[str, Tensor], names: dict[str, str], queries: dict[str, str]
) -> dict[str, Tensor]:
    """A layer by the names of our `Block`; queries, keys and values become one layer, missing biases 0.

    Raises:
        UserError: a part is missing, or there is one more.
    """
    tensors = {
        f"{ours}.{kind}": weights.pop(f"{theirs}.{kind}")
        for theirs, ours in (names | queries).items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in weights
    }
    wanted = [f"{ours}.{kind}" for ours in names.values() for kind in ("weight", "bias")]
    lacking = [key for key in (*wanted, *(f"{letter}.weight" for letter in "qkv")) if key not in tensors]
    if lacking or weights:
        what = f"lacks {brief(lacking[0])}" if lacking else f"has {brief(next(iter(weights)))}, unknown here"
        raise UserError(f"{taker.source}: {prefix.rstrip('.')} {what}; is --format right?")
    parts = [tensors.pop(f"{letter}.weight") for letter in "qkv"]
    biases = [
        tensors.pop(f"{letter}.bias", torch.zeros(part.shape[:1])) for letter, part in zip("qkv", parts, strict=True)
    ]
    return {**tensors, "attn.qkv.weight": torch.cat(parts), "attn.qkv.bias": torch.cat(biases)}


def _layers(taker: Taker) -> list[str]:
    """Prefixes of the layers, in order.

    Raises:
        UserError: their numbers leave some out.
    """
    numbers = {int(m.group(1)) for key in taker.weights if (m := re.match(r"encoder\.layer\.(\d{1,9})\.", key))}
    if numbers != set(range(len(numbers))):
        raise UserError(f"{taker.source} has {len(numbers)} layers, but their numbers reach {max(numbers)}")
    return [f"encoder.layer.{i}." for i in range(len(numbers))]


def _interleaved_positions(count: int, width: int) -> Tensor:
    """[count, width]: sine and cosine in turn, of wavelengths up to 10,000 (Vaswani et al. 2017, section 3.5)."""
    angle_LH = torch.arange(count, dtype=torch.float64)[:, None] * 10_000.0 ** -(
        torch.arange(0, width, 2, dtype=torch.float64) / width
    )
    return torch.stack([angle_LH.sin(), angle_LH.cos()], dim=2).flatten(1)[:, :width].float()


def _check_config(taker: Taker, kind: str) -> None:
    """Raises a UserError unless config.json is of a model whose arithmetic our blocks do."""
    model_type = taker.config.get("model_type")
    if kind == "dinov2" and model_type == "dinov2_with_registers":
        raise UserError(_REGISTERS.format(taker.source))
    if model_type != kind:
        raise UserError(
            f"{taker.source}: config.json has model_type {brief(model_type)}, not '{kind}'; is --format right?"
        )
    if (act := taker.config.get("hidden_act", "gelu")) != "gelu":
        raise UserError(f"{taker.source}: its MLPs use {brief(act)}, ours GELU; such a model can't be imported")


def _number(taker: Taker, key: str) -> int:
    value = taker.config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65_536:
        raise UserError(f"{taker.source}: config.json must say {key}, a whole number from 1, got {brief(value)}")
    return value


def _pair(taker: Taker, key: str) -> tuple[int, int]:
    """Height and width, which one number may say both."""
    value = taker.config.get(key)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) and 1 <= v <= 65_536 for v in value):
        return value[0], value[1]
    return (_number(taker, key),) * 2


def _epsilon(taker: Taker) -> list[str]:
    """A line where norms were trained with another epsilon than ours have."""
    value = taker.config.get("layer_norm_eps")
    return [] if value == NORM_EPS else [f"its norms were trained with epsilon {brief(value)}; here it is {NORM_EPS:g}"]


READERS: dict[str, Callable[[Taker], ForeignModel]] = {"videomae": _videomae, "dinov2": _dinov2}
"""Format to the function that takes a folder of it apart."""
