"""From the name of a method to its class: the one table of what is registered. No method imports it."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpretrain.config.model import MAX_CONFIG_BYTES
from avpretrain.config.reader import find_config, from_dict, read_yaml
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import read_json
from avpretrain.core.terminal import brief

if TYPE_CHECKING:
    from avpretrain.config.train import EngineConfig
    from avpretrain.data.text.tokenizer import Tokenizer
    from avpretrain.methods.diffmavil.model import DiffMAViL
    from avpretrain.methods.openelm.model import TextModel
    from avpretrain.methods.speaker.model import SpeakerModel
    from avpretrain.training.method import Method

__all__ = ["find_method", "load_config", "load_language_model", "load_model", "make_method"]

CONFIGS = {
    "diffmavil": "avpretrain.methods.diffmavil.config.TrainConfig",
    "self_training": "avpretrain.methods.diffmavil.config.TrainConfig",
    "openelm": "avpretrain.methods.openelm.config.OpenELMConfig",
    "speaker": "avpretrain.methods.speaker.config.SpeakerConfig",
    "kv_prediction": "avpretrain.methods.kv_prediction.config.KVPredictionConfig",
}
"""Schema of a registered method's config; reading one imports no torch."""
METHODS = {
    "diffmavil": "avpretrain.methods.diffmavil.stages.Stages",
    "self_training": "avpretrain.methods.diffmavil.self_training.SelfTraining",
    "openelm": "avpretrain.methods.openelm.method.OpenELM",
    "speaker": "avpretrain.methods.speaker.method.Speaker",
    "kv_prediction": "avpretrain.methods.kv_prediction.method.KVPrediction",
}
MODELS = {
    "diffmavil": "avpretrain.methods.diffmavil.model.DiffMAViL",
    "self_training": "avpretrain.methods.diffmavil.model.DiffMAViL",
}
"""Class of the model that a registered method saves; a checkpoint names no other."""
LANGUAGE_MODELS = {
    "openelm": "avpretrain.methods.openelm.model.LanguageModel",
    "kv_prediction": "avpretrain.methods.kv_prediction.model.KVPredictor",
}
"""The same of methods whose models generate text."""


def load_model(path: str | Path) -> DiffMAViL:
    """The model of a run folder, a checkpoint or a saved model, on the CPU, in evaluation mode.

    Raises:
        UserError: there are no weights, they do not fit their config, one is not finite, or their method is not
            registered.
    """
    from avpretrain.training.folders import CONFIG, find_weights

    folder = find_weights(path)
    values = read_json(folder / CONFIG, "model config", MAX_CONFIG_BYTES)
    method = values.get("method", "diffmavil") if isinstance(values, dict) else "diffmavil"
    if not isinstance(method, str) or method not in MODELS:
        raise UserError(
            f"{folder / CONFIG} is of a model of method {brief(method)}; this takes weights of {' and '.join(MODELS)}"
        )
    model: DiffMAViL = _find(MODELS[method]).from_pretrained(folder)
    return model


def method_of(path: str | Path) -> str:
    """The method of the weights of a run folder, a checkpoint or a saved model.

    Raises:
        UserError: there are no weights, or their config is damaged.
    """
    from avpretrain.training.folders import CONFIG, find_weights

    values = read_json(find_weights(path) / CONFIG, "model config")
    return str(values.get("method", "diffmavil")) if isinstance(values, dict) else "diffmavil"


def load_language_model(path: str | Path) -> tuple[TextModel, Tokenizer]:
    """The language model of a run folder, a checkpoint or a saved model, on the CPU, and its tokenizer.

    Raises:
        UserError: there are no weights, they are of another kind of model, or the tokenizer is missing or does not fit.
    """
    from avpretrain.data.text.tokenizer import find_tokenizer, load_tokenizer
    from avpretrain.training.folders import find_weights

    folder, method = find_weights(path), method_of(path)
    kind = LANGUAGE_MODELS.get(method, LANGUAGE_MODELS["openelm"])  # which says what is wrong with another
    model: TextModel = _find(kind).from_pretrained(folder)
    tokenizer = load_tokenizer(find_tokenizer(folder))
    tokenizer.check_fits(model.cfg.vocabulary, f"the vocabulary of {folder}")
    return model, tokenizer


def load_speaker(path: str | Path) -> SpeakerModel:
    """The active speaker detector of a run folder, a checkpoint or a saved model, on the CPU, in evaluation mode.

    Raises:
        UserError: there are no weights, or they are of another kind of model.
    """
    from avpretrain.methods.speaker.model import SpeakerModel
    from avpretrain.training.folders import find_weights

    return SpeakerModel.from_pretrained(find_weights(path))


def load_config(name: str) -> EngineConfig:
    """Reads a preset or a YAML file, by the schema of its method; its `name` defaults to the file's.

    Raises:
        UsageError: there is none, or it is wrong.
    """
    path = find_config(name)
    return config_of({"name": path.stem, **read_yaml(path)})


def config_of(values: dict[str, Any]) -> EngineConfig:
    """The config that nested dictionaries hold, by the schema of its method.

    Raises:
        UsageError: a key or a value is wrong, or there is no such method.
    """
    method = values.get("method", "diffmavil")
    if not isinstance(method, str):
        raise UsageError(f"config key 'method' takes a name, got {brief(method)}")
    schema: type[EngineConfig] = _find(CONFIGS[method]) if method in CONFIGS else find_method(method).config
    return from_dict(schema, values)


def make_method(cfg: EngineConfig) -> Method:
    """The method that a config names.

    Raises:
        UsageError: there is none of that name, or the config is another method's.
    """
    method = find_method(cfg.method)
    if not isinstance(cfg, method.config):
        raise UsageError(f"method {cfg.method} takes a config of {method.config.__name__}, not {type(cfg).__name__}")
    made = method.of(cfg)
    if hasattr(made, "load_encoder"):  # a method imports no other
        made.load_encoder = load_model
    return made


def find_method(name: str) -> type[Method]:
    """The class of a registered method, or the one that a dotted name means.

    Raises:
        UsageError: there is none.
    """
    from avpretrain.training.method import Method

    if name not in METHODS and "." not in name:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(METHODS)}"
        raise UsageError(f"no method '{name}'; {hint} A method of your own is named by its dotted class")
    found = _find(METHODS.get(name, name))
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(f"method {name} is no subclass of avpretrain.training.method.Method")
    return found


def _find(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        where = f"there is no module {error.name}; is its folder on PYTHONPATH ({Path.cwd()} is where you are)?"
        raise UsageError(f"method {dotted} can't be imported: {where}") from None
    except AttributeError:
        raise UsageError(f"method {dotted} can't be imported: {module} has no {name}") from None
