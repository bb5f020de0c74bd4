"""The folder for `transformers`: code made of the package's own, run without it; and model.preprocess."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange as einops_rearrange
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from torch import nn

from avpretrain.cli.main import run as run_verb
from avpretrain.core.errors import UsageError
from avpretrain.data.container import DecodeError
from avpretrain.data.whole import clip_steps, filled, normalised_frames, spectrogram
from avpretrain.evaluation.frozen import encode_steps
from avpretrain.evaluation.longform import embed_file
from avpretrain.evaluation.portable.bundle import Bundle
from avpretrain.evaluation.portable.export import CODE_NAME
from avpretrain.evaluation.portable.rearrange import rearrange
from avpretrain.methods.diffmavil.model import DiffMAViL
from tests.support.media_files import write_media
from tests.support.tiny_models import tiny


class Config:
    """The part of transformers' base class that the code uses."""

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__ |= kwargs


class Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        pass


class Output(dict[str, Any]):
    pass


@pytest.fixture(scope="module")
def model() -> DiffMAViL:
    torch.manual_seed(0)
    model = DiffMAViL(tiny(audio={"positions": "learned"})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(model: DiffMAViL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("portable")
    model.save_pretrained(place / "model")
    options = ["--format", "transformers", "--dataset", "clips-of-mine", "--data-license", "CC BY 4.0"]
    run_verb("export", [str(place / "model"), str(place / "out"), *options])
    return place / "out"


@pytest.fixture
def code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The exported code, where neither einops nor avpretrain can be imported and of transformers there are bases."""
    base, utils, extraction = (types.ModuleType(name) for name in ("transformers", "utils", "extraction"))
    base.PretrainedConfig, base.PreTrainedModel = Config, Model  # type: ignore[attr-defined]
    base.FeatureExtractionMixin = Config  # type: ignore[attr-defined]
    utils.ModelOutput = Output  # type: ignore[attr-defined]
    extraction.BatchFeature = lambda batch, tensor_type: batch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", base)
    monkeypatch.setitem(sys.modules, "transformers.utils", utils)
    monkeypatch.setitem(sys.modules, "transformers.feature_extraction_utils", extraction)
    module = types.ModuleType(CODE_NAME)
    monkeypatch.setitem(sys.modules, CODE_NAME, module)
    with monkeypatch.context() as absent:
        for name in ("einops", "jaxtyping", "avpretrain"):
            absent.setitem(sys.modules, name, None)
        exec(compile((folder / f"{CODE_NAME}.py").read_text(), CODE_NAME, "exec"), module.__dict__)
    return module


def test_embeddings_are_our_own(code: ModuleType, folder: Path, model: DiffMAViL) -> None:
    sizes = json.loads((folder / "config.json").read_text())
    theirs = code.AVPretrainModel(code.AVPretrainConfig(**{k: sizes[k] for k in ("width", "input", "encoders")})).eval()
    theirs.load_state_dict(load_file(folder / "model.safetensors"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    extractor = code.AVPretrainFeatureExtractor(
        **{k: settings[k] for k in ("sampling_rate", "video_fps", "video_size")}
    )
    generator = torch.Generator().manual_seed(1)
    waves = [torch.rand(n, generator=generator) * 2 - 1 for n in (3000, 10_240, 25_000)]
    shapes = ((4, 32, 32, 3), (3, 20, 32, 3), (9, 31, 40, 3))
    videos = [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).numpy() for shape in shapes]
    with torch.no_grad():
        out = theirs(**extractor([wave.numpy() for wave in waves], videos, sampling_rate=16_000))
        audio = [spectrogram(wave[None], model.cfg.input) for wave in waves]
        steps = [clip_steps(x.shape[1], 16) for x in audio]
        sound = [encode_steps(model, "audio", filled(x, 16 * n), n)[0].mean(dim=(0, 1, 2, 3))
                 for x, n in zip(audio, steps, strict=True)]  # fmt: skip
        counts = [clip_steps(len(video), 2) for video in videos]
        picture = [
            encode_steps(model, "video", normalised_frames(list(v), 2 * n, model.cfg.input, torch.device("cpu")), n)[0]
            .mean(dim=(0, 1, 2, 3))
            for v, n in zip(videos, counts, strict=True)
        ]  # fmt: skip
    torch.testing.assert_close(out["audio_embeds"], torch.stack(sound), atol=1e-5, rtol=0)
    torch.testing.assert_close(out["video_embeds"], torch.stack(picture), atol=1e-5, rtol=0)
    assert out["audio_steps"].shape == (3, max(steps), model.cfg.width)
    with pytest.raises(ValueError, match="resample"):
        extractor(waves[0], sampling_rate=44_100)
    with pytest.raises(ValueError, match="audio, videos or both"):
        extractor()


def test_code_needs_no_package_but_torch_and_transformers(folder: Path) -> None:
    lines = (folder / f"{CODE_NAME}.py").read_text().splitlines()
    roots = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert roots - set(sys.stdlib_module_names) == {"torch", "numpy", "transformers"}


def test_card_names_data_and_use(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "feature-extraction")
    assert card.data.datasets == ["clips-of-mine"]
    assert "License of the data: CC BY 4.0." in card.text
    assert "AutoFeatureExtractor.from_pretrained" in card.text


def test_push_to_hub_without_the_hub(model: DiffMAViL, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the two requests."""
    sent: list[str] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: types.SimpleNamespace(repo_id=repo_id))

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, **_: object) -> None:
        sent.extend([repo_id, *sorted(path.name for path in Path(folder_path).iterdir())])

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model.push_to_hub("me/model")
    assert sent == ["me/model", "README.md", "config.json", "model.safetensors"]


def test_options_of_folders_are_refused_for_onnx(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave them out"):
        run_verb("export", [str(folder), str(tmp_path / "x.onnx"), "--onnx", "audio", "--format", "transformers"])


@pytest.mark.parametrize(
    ("pattern", "shape", "sizes"),
    [
        ("b l (s n h) -> s b n l h", (2, 3, 24), {"s": 3, "n": 2}),
        ("b n l h -> b l (n h)", (2, 4, 3, 5), {}),
        ("b (t u) c (h p) (w q) -> b (t h w) (u p q c)", (2, 4, 3, 8, 6), {"u": 2, "p": 4, "q": 3}),
    ],
)
def test_rearrange_is_that_of_einops(pattern: str, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    x = torch.arange(float(np.prod(shape))).reshape(shape)
    assert torch.equal(rearrange(x, pattern, **sizes), einops_rearrange(x, pattern, **sizes))


def test_two_things_of_one_name_are_refused() -> None:
    bundle = Bundle()
    bundle.add("avpretrain.nn.patches", "_positions")
    bundle._owner["Block"] = "elsewhere"
    with pytest.raises(ValueError, match="both define Block"):
        bundle.add("avpretrain.nn.layers", "Block")


def test_preprocess_is_what_embed_does(model: DiffMAViL, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_media(path)
    clip = model.preprocess(path)
    assert clip.audio_1FM is not None and clip.video_1TCHW is not None
    vectors = {row.modality: row.embedding_D for row in embed_file(model, path, "both", "file")}
    with torch.no_grad():
        for side, x in (("audio", clip.audio_1FM), ("video", clip.video_1TCHW)):
            steps = x.shape[1] // model.tower(side).patches.size[0]
            tokens, _ = encode_steps(model, side, x, steps)
            np.testing.assert_allclose(tokens[0, 0].mean(dim=1).mean(dim=0).numpy(), vectors[side], atol=1e-5)
    with pytest.raises(DecodeError, match="no such file"):
        model.preprocess(tmp_path / "none.mp4")
