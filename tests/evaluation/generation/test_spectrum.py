"""Reconstructed spectrograms by frequency: known reconstructions have known shares, in the result and in the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avpretrain.cli.main import run
from avpretrain.core.errors import UserError
from avpretrain.core.files import write_json
from avpretrain.data.features import mel_filters
from avpretrain.evaluation.generation.filling import InpaintConfig
from avpretrain.evaluation.generation.spectrum import SpectrumConfig, energies, mel_centres, run_spectrum
from avpretrain.evaluation.setup import random_encoder
from avpretrain.measures.results import Estimate
from avpretrain.measures.studies import MissedDetail, Spectrum
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.report.comparison import Comparison
from avpretrain.report.write import render
from tests.support.runs import ORIGIN, write_run
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import INPUT, random_batch, tiny

HOW = InpaintConfig(audio_ratio=0.75, video_ratio=0.75, steps=4, statistics="own")


@pytest.mark.parametrize(("keep_low", "keep_high"), [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.5, 1.0)])
def test_known_reconstructions_have_known_shares(keep_low: float, keep_high: float) -> None:
    """A decoder that gives back a share of the detail, other below than above the middle, misses the rest squared."""
    torch.manual_seed(0)
    model = DiffMAViL(tiny(source="mask_token", loss={"norm_pix_loss": False}))
    batch = random_batch(model.cfg)
    batch = dataclasses.replace(batch, has_audio_B=torch.tensor([True, True, False, True]))
    view = model.encode_masked(batch, HOW.audio_ratio, HOW.video_ratio)["audio"]
    hidden_BN = view.mask.ids_hidden_BN
    truth_BNP = view.patches_BLP.gather(1, hidden_BN[:, :, None].expand(-1, -1, view.patches_BLP.shape[2]))
    mean_BN1 = truth_BNP.mean(dim=-1, keepdim=True)
    rows = model.cfg.audio_grid[1]
    keep_BN1 = torch.where(hidden_BN % rows < rows // 2, keep_low, keep_high)[:, :, None]

    def knowing(context: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        return mean_BN1 + keep_BN1 * (truth_BNP - mean_BN1)

    model.tower("audio").decoder.forward = knowing
    found = energies(model, batch, HOW)
    assert list(found) == ["one_step"]
    e = found["one_step"]
    assert e.true_NM.shape == (3, INPUT.mels)
    low, high = slice(0, INPUT.mels // 2), slice(INPUT.mels // 2, None)
    for bins, keep in ((low, keep_low), (high, keep_high)):
        whole = e.true_NM[:, bins].sum()
        assert e.missed_NM[:, bins].sum() / whole == pytest.approx((1 - keep) ** 2, abs=1e-6)
        assert e.made_NM[:, bins].sum() / whole == pytest.approx(keep**2, abs=1e-6)


def test_centres_are_where_the_filters_peak() -> None:
    size = 4096
    peaks_M = mel_filters(INPUT.mels, INPUT.sample_rate, size).argmax(dim=0).numpy() * INPUT.sample_rate / size
    np.testing.assert_allclose(mel_centres(INPUT), peaks_M, atol=INPUT.sample_rate / size)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    specs = [Spec(seconds=1.0, split="test", size=(32, 32), sound=i != 2) for i in range(5)]
    silent = [Spec(seconds=1.0, split="val", size=(32, 32), sound=False)]
    return str(make_dataset(tmp_path_factory.mktemp("data") / "set", [*specs, *silent]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_encoder(tiny(), seed=3).save_pretrained(folder)
    return folder


def test_command_measures_every_method(
    checkpoint: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "spectrum.json"
    run("spectrum", [str(checkpoint), data, "--out", str(out), "--steps", "2", "--num-workers", "0", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == result
    assert (result["clips"], len(result["mel_hz"])) == (4, INPUT.mels)
    for method in ("one_step", "sampled"):
        found = result["methods"][method]
        assert len(found["missed_by_mel"]) == INPUT.mels
        assert found["missed_high"]["ci"][0] <= found["missed_high"]["value"] <= found["missed_high"]["ci"][1]
        assert found["missed_high"]["value"] > 0


def test_clips_without_sound_are_an_error(checkpoint: Path, data: str) -> None:
    with pytest.raises(UserError, match="no clip of split 'val' has sound"):
        run_spectrum(checkpoint, [data], SpectrumConfig(split="val", num_workers=0))


# --- in the report ---------------------------------------------------------------------------------------------------


def write_spectrum(run_dir: Path, missed: float, methods: tuple[str, ...] = ("one_step",)) -> None:
    share, by_mel = Estimate(value=missed, ci=(missed - 0.02, missed + 0.02)), (missed,) * 8
    missing = MissedDetail(
        missed_low=share, missed_high=share, detail_low=share, detail_high=share, missed_by_mel=by_mel,
        detail_by_mel=by_mel,
    )  # fmt: skip
    both = dict.fromkeys(methods, missing)
    spectrum = Spectrum(label="test", clips=4, mel_hz=by_mel, methods=both, settings={}, **ORIGIN)
    write_json(run_dir / "eval" / "spectrum_test.json", spectrum.to_json())


def test_report_shows_spectra_of_the_runs_that_have_them(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"mavil-s{s}", name=f"mavil-s{s}", seed=s) for s in range(2)]
    paths += [write_run(tmp_path / name, "tiny_diffmavil", name=name, seed=9) for name in ("diffmavil",)]
    assert 'id="spectra"' not in render(Comparison.of(paths))
    for path, missed in zip(paths, (0.5, 0.6, 0.4), strict=True):
        write_spectrum(path, missed, ("one_step", "sampled") if path.name == "diffmavil" else ("one_step",))
    comparison = Comparison.of(paths)
    assert [group.name for group in comparison.groups] == ["mavil", "diffmavil"]
    page = render(comparison)
    section = page[page.index('id="spectra"') :]
    section = section[: section.index("</section>")]
    assert "55.0%, kept 55.0%" in section
    assert section.count("diffmavil, sampled") == 1
    assert "mavil, one step" in section
    assert section.count("<polyline") == 3
    assert comparison.tasks() == ["class from audio, linear probe"]


def test_a_damaged_spectrum_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path / "mavil")
    (path / "eval" / "spectrum_test.json").write_text("{}")
    with pytest.raises(UserError, match=r"spectrum_test.json holds no spectrum .*'format' is missing"):
        render(Comparison.of([path]))
