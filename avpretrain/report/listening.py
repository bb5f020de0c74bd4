"""The report's section to listen to: audio that `avpretrain inpaint` filled, next to the original."""

from __future__ import annotations

import io
from pathlib import Path

from avpretrain.core.errors import UserError
from avpretrain.core.files import read_bytes
from avpretrain.measures.runs import Run
from avpretrain.measures.studies import Inpainting
from avpretrain.report.comparison import Comparison
from avpretrain.report.page import Figure, Figures, Picture, Players, Section, data_uri

CLIPS = 2
"""Clips of each group that the page holds."""


def listening(comparison: Comparison) -> Section | None:
    """The first inpainted clips of each group's first run that has any."""
    items = []
    for group in comparison.groups:
        for stem in next((stems for run in group.runs if (stems := _filled(run))), [])[:CLIPS]:
            picture = stem.with_name(f"{stem.name}-audio.png")
            drawn = Picture.of(picture, f"Spectrograms of {stem.name}") if picture.is_file() else None
            sounds = [(name, _sound(stem.with_name(f"{stem.name}-{name}.wav"))) for name in ("original", "filled")]
            items.append(Figure(group.name, Players(drawn, sounds), stem.name))
    if not items:
        return None
    note = (
        "Filled by the decoders where patches were hidden. Both are rebuilt from spectrograms, so that what differs "
        "between them is the filling alone; written by avpretrain inpaint."
    )
    return Section("listening", "Inpainted audio", [Figures(items, "pictures")], note)


def _filled(run: Run) -> list[Path]:
    """Path without ending of each clip that has both sounds.

    Raises:
        UserError: the list of clips is damaged.
    """
    stems = []
    for path in sorted((run.path / "eval").glob("inpaint*/errors.json")):
        stems += [path.parent / key for key in Inpainting.read(path, "inpainting", "avpretrain inpaint").shown]
    return [
        stem
        for stem in stems
        if all(stem.with_name(f"{stem.name}-{name}.wav").is_file() for name in ("original", "filled"))
    ]


def _sound(path: Path) -> str:
    """The sound as FLAC inside the page, which holds the same samples in less space.

    Raises:
        UserError: it is none.
    """
    import soundfile

    packed = io.BytesIO()
    try:
        samples, rate = soundfile.read(io.BytesIO(read_bytes(path)), dtype="int16")
        soundfile.write(packed, samples, rate, format="FLAC", subtype="PCM_16")
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is no audio that can be read ({error}); write it anew with: avpretrain inpaint"
        ) from None
    return data_uri(packed.getvalue(), "audio/flac")
