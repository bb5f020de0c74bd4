"""Segments of YouTube's videos by yt-dlp, a process a clip, under the names that the sources know: ID_START.mp4."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from avpretrain.core.errors import UsageError
from avpretrain.data.fetch.http import GoneError, LostError
from avpretrain.data.sources.base import MEDIA_EXTENSIONS

FORMAT = "bv*[height<=360]+ba/b[height<=360]/bv*+ba/b"
"""The largest of at most 360 lines: shards have 256 by default."""
PATIENCE = 1800
"""Seconds that a clip may take."""
GONE = (
    "video unavailable", "this video is not available", "private video", "has been removed", "is no longer available",
    "has been terminated", "account has been", "not made this video available in your country", "members-only",
    "this video is unavailable", "copyright", "confirm your age", "video is private", "does not exist",
)  # fmt: skip
"""What yt-dlp says, in small letters, of videos that will not come back."""
BLOCKED = ("not a bot", "http error 429", "too many requests", "rate-limit")


@dataclass(frozen=True, slots=True)
class Clip:
    """A segment of a video."""

    id: str
    start: float
    """Seconds."""
    end: float

    def name(self, whole: bool) -> str:
        """Of its file, without the extension, as the sources of AudioSet and VGGSound know it."""
        return self.id if whole else f"{self.id}_{int(self.start):06d}"


class Downloader:
    """Runs yt-dlp.

    Args:
        command: its name or path, with options such as --cookies FILE.
        folder: where clips go.
        whole: take whole videos, which are cut when they are sharded, rather than segments.

    Raises:
        UsageError: it, or the ffmpeg that it cuts with, is not there.
    """

    def __init__(self, command: str, folder: Path, whole: bool) -> None:
        self.command, self.folder, self.whole = shlex.split(command), folder, whole
        if not self.command or shutil.which(self.command[0]) is None:
            raise UsageError(
                f"no {self.command[0] if self.command else 'yt-dlp'} on PATH, which downloads from YouTube; "
                "pip install yt-dlp, or name it by --yt-dlp"
            )
        if not whole and shutil.which("ffmpeg") is None:
            raise UsageError("no ffmpeg on PATH, by which yt-dlp cuts segments; install it, or take --whole-videos")

    def here(self) -> set[str]:
        """Names, without extensions, of the clips that are there."""
        if not self.folder.is_dir():
            return set()
        return {p.stem for p in self.folder.iterdir() if p.suffix.lower() in MEDIA_EXTENSIONS}

    def fetch(self, clip: Clip) -> Path:
        """Downloads a clip; what broke off is resumed as far as yt-dlp can.

        Raises:
            GoneError: the video is not there any more.
            LostError: it can't be had now.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]{11}", clip.id):
            raise GoneError("its id is none of YouTube's")
        name = clip.name(self.whole)
        work = self.folder.parent / ".download" / name
        work.mkdir(parents=True, exist_ok=True)
        cut = ["--download-sections", f"*{clip.start:.3f}-{clip.end:.3f}", "--force-keyframes-at-cuts"]
        place = str(work).replace("%", "%%")  # it is part of yt-dlp's template
        command = [
            *self.command, "--no-playlist", "--no-progress", "--no-warnings", "-f", FORMAT,
            "--merge-output-format", "mp4", *([] if self.whole else cut), "-o", f"{place}/clip.%(ext)s",
            f"https://www.youtube.com/watch?v={clip.id}",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise LostError(f"yt-dlp took more than {PATIENCE} s") from None
        except OSError as error:
            raise LostError(f"yt-dlp can't be run: {error.strerror}") from None
        media = [p for p in work.iterdir() if p.suffix.lower() in MEDIA_EXTENSIONS and p.stat().st_size > 0]
        files = [p for p in media if p.stem == "clip"]  # others are parts of it: clip.f137.mp4, clip.temp.mp4
        if done.returncode or len(files) != 1:
            why = _why(done.stderr, len(files))
            in_the_way = not done.returncode  # what a killed attempt left, in another format
            if in_the_way or why.final or not any(work.iterdir()):
                shutil.rmtree(work)
            raise why
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{name}{files[0].suffix.lower()}"
        files[0].replace(target)
        shutil.rmtree(work, ignore_errors=True)
        return target


def _why(stderr: str, files: int) -> LostError:
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    text = errors[-1] if errors else f"yt-dlp left {files} files"
    text = re.sub(r"^ERROR:\s*(\[[^\]]*\]\s*)?([A-Za-z0-9_-]{11}:\s*)?", "", text)[:200]
    if any(words in text.lower() for words in BLOCKED):
        return LostError(f"the server refuses more for now: {text}")
    return GoneError(text) if any(words in text.lower() for words in GONE) else LostError(text)
