"""What gave vectors or models without a word that were not what they seemed."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from avpretrain import hear
from avpretrain.cli.embed import listed
from avpretrain.cli.inspect import label_in_a_line
from avpretrain.cli.main import run as run_verb
from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import atomic_path
from avpretrain.data.container import DecodeError
from avpretrain.data.decode import decode_audio
from avpretrain.data.media import Limits, Source
from avpretrain.evaluation.frozen import encode_steps
from avpretrain.evaluation.longform import embed_file
from avpretrain.evaluation.setup import random_encoder
from avpretrain.methods.diffmavil.conversions.foreign import read_weights
from avpretrain.methods.diffmavil.conversions.importers import import_checkpoint
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model
from tests.methods.diffmavil.test_importers import BASE, HEADS, mae, saved
from tests.support.tiny_datasets import SAMPLE_RATE, Spec, flac, make_dataset, mp4, picture, tone
from tests.support.tiny_models import tiny

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
HTML = b"\n <!DOCTYPE html>\n<html><title>Sign in</title></html>"
INSTEAD = {"Git LFS pointer": LFS, "HTML page": HTML, "is empty": b""}


@pytest.fixture(scope="module")
def model() -> DiffMAViL:
    return random_encoder(tiny(), seed=1)


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((2, 64, 64), "32 mel bins"),
        ((2, 64, 16), "32 mel bins"),
        ((64, 32), "32 mel bins"),
        ((2, 60, 32), "multiple of 16 spectrogram frames, got 60"),
        ((2, 0, 32), "multiple of 16 spectrogram frames, got 0"),
    ],
)
def test_spectrograms_of_another_shape_are_refused(model: DiffMAViL, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        model.encode_audio(torch.randn(shape))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 4, 1, 32, 32), "3 colours"),
        ((1, 4, 32, 32, 3), "3 colours"),
        ((4, 3, 32, 32), "3 colours"),
        ((1, 3, 3, 32, 32), "multiples of 2 x 8 x 8"),
        ((1, 4, 3, 32, 36), "multiples of 2 x 8 x 8"),
    ],
)
def test_videos_of_another_shape_are_refused(model: DiffMAViL, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        model.encode_video(torch.randn(shape))


def test_integers_are_refused(model: DiffMAViL) -> None:
    with pytest.raises(ValueError, match="normalised floats, got uint8"):
        model.encode_video(torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="normalised floats, got int16"):
        model.encode_audio(torch.zeros(1, 64, 32, dtype=torch.int16))


def test_features_of_another_shape_are_refused(model: DiffMAViL) -> None:
    with pytest.raises(ValueError, match="32 mel bins"):
        encode_steps(model, "audio", torch.randn(1, 64, 64), 4)
    with pytest.raises(ValueError, match="32 x 32 pixels, got 64 x 64"):
        encode_steps(model, "video", torch.randn(1, 4, 3, 64, 64), 2)


def test_other_lengths_and_sizes_are_still_taken(model: DiffMAViL) -> None:
    assert model.encode_audio(torch.randn(1, 160, 32)).shape == (1, 1 + 10 * 4, 48)
    assert model.encode_video(torch.randn(1, 8, 3, 16, 40)).shape == (1, 1 + 4 * 2 * 5, 48)


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
def test_hear_scales_integers_by_their_type(model: DiffMAViL, dtype: torch.dtype) -> None:
    heard = hear.HearModel(model)
    pcm_S = torch.from_numpy(tone(3, 1.0))[None]
    whole = {torch.int16: pcm_S, torch.int32: pcm_S.int() * 65536, torch.uint8: (pcm_S // 256 + 128).to(torch.uint8)}
    floats = {torch.uint8: (whole[torch.uint8].float() - 128) / 128}.get(dtype, pcm_S.float() / 32768)
    for embed in (hear.get_scene_embeddings, lambda a, m: hear.get_timestamp_embeddings(a, m)[0]):
        torch.testing.assert_close(embed(whole[dtype], heard), embed(floats, heard), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("audio", "says"),
    [
        (torch.zeros(1, 1000, dtype=torch.int64), "int64 has no usual scale"),
        (torch.zeros(1, 1000, dtype=torch.bool), "bool has no usual scale"),
        (torch.full((1, 1000), torch.nan), "no finite numbers"),
        (torch.cat([torch.zeros(1, 999), torch.full((1, 1), torch.inf)], dim=1), "no finite numbers"),
        (torch.from_numpy(tone(3, 0.1)).float()[None], "must lie in"),
        (torch.zeros(1, 0), "at least one sample"),
    ],
)
def test_hear_refuses_what_has_no_scale(model: DiffMAViL, audio: torch.Tensor, says: str) -> None:
    heard = hear.HearModel(model)
    for embed in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(ValueError, match=says):
            embed(audio, heard)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_that_are_no_numbers_are_damage_everywhere(
    model: DiffMAViL, tmp_path: Path, value: float, subtype: str
) -> None:
    wave = tone(3, 1.0) / 32768
    wave[5000] = value
    soundfile.write(tmp_path / "x.wav", wave, SAMPLE_RATE, subtype=subtype)
    with pytest.raises(DecodeError, match="no finite numbers"):
        Source(tmp_path / "x.wav", None, Limits()).sound(16_000)  # what sharding reads by
    with pytest.raises(DecodeError, match="no finite numbers"):
        embed_file(model, tmp_path / "x.wav", "audio", "file")
    with pytest.raises(DecodeError, match="no finite numbers"):
        decode_audio((tmp_path / "x.wav").read_bytes(), 16_000)


def test_floats_without_nan_are_as_they_were(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tone(3, 1.0) / 32768, SAMPLE_RATE, subtype="FLOAT")
    found = Source(tmp_path / "x.wav", None, Limits()).sound(16_000)
    assert found is not None
    assert np.abs(found.astype(int) - tone(3, 1.0)).max() <= 1


# --- imported models -------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_hear_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, mae())
    config = tmp_path / "small.yaml"
    config.write_text("model:\n  input: {audio_frames: 64, video_frames: 4, video_size: 32}\n")
    asked = [str(path), str(tmp_path / "m"), "--format", "mae", "--config", str(config), "--heads", str(HEADS)]
    run_verb("import", [*asked, "--into", "both"])
    assert "can't hear before it is trained" in capsys.readouterr().out.replace("\n", " ")
    assert any("can't hear" in line for line in json.loads((tmp_path / "m" / "import.json").read_text())["warnings"])
    sound = tmp_path / "a.flac"
    sound.write_bytes(flac(tone(1, 1.0)))
    embed = ["embed", str(tmp_path / "m"), str(sound), "--out", str(tmp_path / "x.npz")]
    with pytest.raises(UserError, match="--audio-stats MEAN STD"):
        run_verb(embed[0], embed[1:])
    run_verb("import", [*asked, "--audio-stats", "-8", "4"])
    assert "can't hear" not in capsys.readouterr().out
    assert load_model(tmp_path / "m").cfg.input.audio_mean == -8
    run_verb(embed[0], embed[1:])
    with pytest.raises(UsageError, match="above 0"):
        run_verb("import", [*asked, "--audio-stats", "-8", "0"])


def test_an_encoder_that_got_nothing_is_named(tmp_path: Path) -> None:
    _, report = import_checkpoint(saved(tmp_path, mae()), "mae", BASE, "video", heads=HEADS)
    assert report.warnings == ["nothing of the checkpoint went into the audio encoder, whose weights are random"]


# --- files that are not what they are called -------------------------------------------------------------------------


@pytest.mark.parametrize("says", INSTEAD)
def test_pointers_and_web_pages_are_named(model: DiffMAViL, tmp_path: Path, says: str) -> None:
    content = INSTEAD[says]
    for name in ("a.mp4", "a.wav", "a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
    for name in ("a.mp4", "a.wav"):
        with pytest.raises(DecodeError, match=says):
            embed_file(model, tmp_path / name, "both", "file")
    for name in ("a.pth", "a.safetensors"):
        with pytest.raises(UserError, match=says):
            read_weights(tmp_path / name)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_model(tmp_path / "model")
    save_file({"x": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_model(tmp_path / "model")


def test_streams_without_content_are_named(model: DiffMAViL, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.int16), SAMPLE_RATE)
    with pytest.raises(DecodeError, match="has an audio stream without samples"):
        embed_file(model, tmp_path / "empty.wav", "both", "file")
    (tmp_path / "silent.mp4").write_bytes(mp4(picture(2, 1.0, (48, 64))))
    with pytest.raises(DecodeError, match="has no sound"):
        embed_file(model, tmp_path / "silent.mp4", "audio", "file")


# --- folders ---------------------------------------------------------------------------------------------------------


def test_embed_takes_folders(model: DiffMAViL, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media = tmp_path / "media"
    for name in ("b/2.flac", "b/1.FLAC", "a.flac", ".hidden.flac", "b/notes.txt"):
        (media / name).parent.mkdir(parents=True, exist_ok=True)
        (media / name).write_bytes(flac(tone(1, 0.5)))
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "x.npz"
    run_verb("embed", [str(tmp_path / "model"), str(media), str(media / "a.flac"), "--out", str(out)])
    with np.load(out) as table:
        assert table["path"].tolist() == [str(media / name) for name in ("a.flac", "b/1.FLAC", "b/2.flac")]
    assert "3 embeddings of 3 files" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none holds no media files"):
        listed([tmp_path / "none"])


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine").write_text("mine")
    with pytest.raises(UserError, match="is a folder; name a file"), atomic_path(tmp_path / "results") as temporary:
        temporary.write_text("{}")
    with pytest.raises(UserError, match="is no folder"), atomic_path(tmp_path / "results" / "mine" / "x"):
        raise AssertionError
    with pytest.raises(UserError, match="is a file; name a folder"):  # noqa: SIM117
        with atomic_path(tmp_path / "results" / "mine") as temporary:
            temporary.mkdir()
    assert (tmp_path / "results" / "mine").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_export_and_import_replace_nothing_but_models(model: DiffMAViL, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="something else already"):
        run_verb("export", [str(tmp_path / "model"), str(tmp_path / "mine")])
    with pytest.raises(UsageError, match="something else already"):
        run_verb("import", [str(saved(tmp_path, mae())), str(tmp_path / "mine"), "--format", "mae"])
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    run_verb("export", [str(tmp_path / "model"), str(tmp_path / "copy")])
    run_verb("export", [str(tmp_path / "model"), str(tmp_path / "copy")])


# --- inspect ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"cat": 3, "dog": 2}, "cat 3, dog 2"),
        ({"cat": 3, "dog": 0}, "cat 3"),
        ({"cat": 0}, "no clip has it"),
        ({f"{i / 8}": 1 for i in range(50)}, "50 numbers from 0 to 6.125 in 50 clips"),
        ({f"caption {i:02d}": 1 for i in range(50)}, "50 values in 50 clips, such as caption 00"),
        ({f"c{i:02d}": i + 1 for i in range(50)}, "50 values, most often c49 50, c48 49"),
        ({"x" * 500: 2}, f"{'x' * 21}... 2"),
        ({"1": 5, "2": 7}, "1 5, 2 7"),
    ],
)
def test_labels_take_a_line(counts: dict[str, int], says: str) -> None:
    found = label_in_a_line(counts)
    assert found.startswith(says)
    assert len(found) < 500


def test_inspect_fits_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(tmp_path / "set", [Spec(seconds=0.5, size=(32, 32), label=f"only {i}") for i in range(20)])
    monkeypatch.setenv("COLUMNS", "80")
    run_verb("inspect", [str(root)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("only" in line for line in lines) == 1
    assert all(line.split("  ")[0] for line in lines)
