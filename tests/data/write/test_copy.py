"""Streams that are copied into clips as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avpretrain.data.decode import decode_video
from tests.support.clips import BACKENDS, clips_of, shown
from tests.support.media_files import write_media


def test_av1_is_copied(tmp_path: Path) -> None:
    try:
        path = write_media(tmp_path / "a.mp4", 4.0, video="libsvtav1", size=(128, 96))
    except ValueError:
        pytest.skip("the AV1 file is made by libsvtav1, which this build of PyAV lacks")
    (clip,) = clips_of(path, transcode="copy")
    assert (clip.video_ext, round(clip.duration, 1)) == ("mp4", 4.0)
    np.testing.assert_allclose(shown(clip, [0.05, 2.05, 3.85]), [0.0, 2.0, 3.8], atol=0.3)


def test_a_copy_of_a_turned_video_is_upright(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", 2.0, rotation=90)
    (clip,) = clips_of(path, transcode="copy")
    for backend in BACKENDS:
        assert decode_video(clip.video, [0.5], backend=backend)[0, -8:, :8, 0].min() > 200  # type: ignore[arg-type]
