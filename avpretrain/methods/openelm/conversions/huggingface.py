"""The layout in which OpenELM's weights are published for transformers, and which mlx-lm reads, too.

A folder with `config.json`, `model.safetensors` (or several with an index) and perhaps `tokenizer.json`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from avpretrain.config.scaling import LayerScaling, LayerSizes, make_divisible
from avpretrain.core.errors import UserError
from avpretrain.core.files import mistaken_for, read_head, read_json
from avpretrain.methods.openelm.config import LanguageModelShape
from avpretrain.methods.openelm.model import LanguageModel
from avpretrain.nn.weights import Header, check_finite, compare, read_header

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PARTS = {
    "attn.qkv_proj": "attn.qkv",
    "attn.q_norm": "attn.q_norm",
    "attn.k_norm": "attn.k_norm",
    "attn.out_proj": "attn.proj",
    "ffn.proj_1": "mlp.fc1",
    "ffn.proj_2": "mlp.fc2",
    "attn_norm": "norm1",
    "ffn_norm": "norm2",
}
"""Parts of a layer: their name, and ours."""
ENDS = {"transformer.token_embeddings": "embed", "transformer.norm": "norm"}
FIXED: dict[str, Any] = {
    "ffn_with_glu": True,
    "normalize_qk_projections": True,
    "share_input_output_layers": True,
    "activation_fn_name": "swish",
    "normalization_layer_name": "rms_norm",
}
"""Choices of the layout of which this model knows one each."""


def foreign_names(depth: int) -> dict[str, str]:
    """Our name of each tensor by theirs, for a model of so many blocks."""
    names = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in ENDS.items()}
    for i in range(depth):
        names |= {f"transformer.layers.{i}.{a}.weight": f"blocks.{i}.{b}.weight" for a, b in PARTS.items()}
    return names


def shape_of(values: Mapping[str, Any], where: str) -> LanguageModelShape:
    """What a `config.json` of the layout says: heads and hidden widths by layer, listed or by multipliers.

    Raises:
        UserError: it is of another model, lacks something, or asks for what this model does not do.
    """
    if values.get("model_type") != "openelm":
        raise UserError(f"{where} is of a model of type {values.get('model_type')!r}, not 'openelm'")
    for key, wanted in FIXED.items():
        if values.get(key, wanted) != wanted:
            raise UserError(f"{where}: {key} is {values[key]!r}; only {wanted!r} can be taken in")
    try:
        depth, width = int(values["num_transformer_layers"]), int(values["model_dim"])
        head_width, groups = int(values["head_dim"]), int(values.get("num_gqa_groups", 1))
        sizes = _sizes(values, width, depth, head_width, groups)
        shape = LanguageModelShape(
            vocabulary=int(values["vocab_size"]),
            context=int(values.get("max_context_length", 2048)),
            width=width,
            head_width=head_width,
            heads_per_group=groups,
            heads=sizes.heads,
            hidden=sizes.hidden,
            rope_base=float(values.get("rope_freq_constant", 10_000)),
        )
    except KeyError as error:
        raise UserError(f"{where} lacks {error.args[0]!r}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{where}: {error}") from None
    kv_heads = values.get("num_kv_heads")
    if kv_heads is not None and list(kv_heads) != list(shape.kv_heads):
        raise UserError(f"{where}: num_kv_heads is not num_query_heads over num_gqa_groups {groups}")
    return shape


def _sizes(values: Mapping[str, Any], width: int, depth: int, head_width: int, groups: int) -> LayerSizes:
    """Heads and hidden widths by layer. Multipliers are one for all layers, the first and the last, or one for each."""
    divisor = int(values.get("ffn_dim_divisor", 256))
    found = {}
    for key in ("qkv_multipliers", "ffn_multipliers"):
        given = values.get(key, 1.0) if key == "qkv_multipliers" else values[key]
        found[key] = [float(given)] * 2 if isinstance(given, int | float) else [float(value) for value in given]
        if len(found[key]) not in (2, depth):
            raise ValueError(f"{key} has {len(found[key])} entries for {depth} layers")
    qkv, ffn = found.values()
    ends = LayerScaling(alpha=(qkv[0], qkv[-1]), beta=(ffn[0], ffn[-1]), divisor=divisor)
    sizes = ends.sizes(width, depth, head_width, groups)
    heads, hidden = list(sizes.heads), list(sizes.hidden)
    if len(qkv) == depth:
        heads = [make_divisible(value * width, head_width * groups) // head_width for value in qkv]
    if len(ffn) == depth:
        hidden = [make_divisible(value * width, divisor) for value in ffn]
    listed = values.get("num_query_heads")
    return LayerSizes(tuple(map(int, listed)) if listed else tuple(heads), tuple(hidden))


def config_of(cfg: LanguageModelShape, bos: int, eos: int) -> dict[str, Any]:
    """The `config.json` of the layout, with lists by layer."""
    divisor = math.gcd(*cfg.hidden)
    return {
        "model_type": "openelm",
        "architectures": ["OpenELMForCausalLM"],
        "vocab_size": cfg.vocabulary,
        "max_context_length": cfg.context,
        "num_transformer_layers": len(cfg.heads),
        "model_dim": cfg.width,
        "head_dim": cfg.head_width,
        "num_gqa_groups": cfg.heads_per_group,
        "num_query_heads": list(cfg.heads),
        "num_kv_heads": list(cfg.kv_heads),
        "qkv_multipliers": [heads * cfg.head_width / cfg.width for heads in cfg.heads],
        "ffn_multipliers": [hidden / cfg.width for hidden in cfg.hidden],
        "ffn_dim_divisor": divisor,
        **FIXED,
        "rope_freq_constant": cfg.rope_base,
        "rope_max_length": 2 * cfg.context,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }


def from_huggingface(folder: Path) -> LanguageModel:
    """The model in a folder of the layout, on the CPU, in evaluation mode.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those that the config asks for.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the one with {CONFIG} and {WEIGHTS}")
    values = read_json(folder / CONFIG, "model config")
    if not isinstance(values, dict):
        raise UserError(f"model config {folder / CONFIG} must hold an object")
    cfg = shape_of(values, str(folder / CONFIG))
    names = foreign_names(len(cfg.heads))
    files = _files(folder)
    headers: Header = {}
    for path in files:
        if path.is_file() and (mistaken := mistaken_for(read_head(path))):
            raise UserError(f"{path} {mistaken}")
        headers |= read_header(path)
    with torch.device("meta"):
        model = LanguageModel(cfg)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    compare({theirs: ours[name] for theirs, name in names.items()}, headers, folder)
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged: {str(error)[:200]}") from None
        check_finite(tensors, path)
        state |= {names[name]: value.float() for name, value in tensors.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def _files(folder: Path) -> list[Path]:
    """The files of weights: one, or those that an index names."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    values = read_json(folder / INDEX, "index of weights")
    named = values.get("weight_map") if isinstance(values, dict) else None
    names = sorted(set(named.values())) if isinstance(named, dict) else []
    if not names or not all(isinstance(n, str) and re.fullmatch(r"[\w.-]+\.safetensors", n) for n in names):
        raise UserError(f"{folder / INDEX} names no files of weights in this folder; fetch it again")
    return [folder / name for name in names]


def to_huggingface(model: LanguageModel, folder: Path, bos: int, eos: int) -> None:
    """Writes `config.json` and `model.safetensors` of the layout into a folder that is there.

    Args:
        bos, eos: tokens that begin and end a text.
    """
    state = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    theirs = {foreign: state[name] for foreign, name in foreign_names(len(model.blocks)).items()}
    save_file(theirs, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config_of(model.cfg, bos, eos), indent=2) + "\n")
