"""Measures what `--transcode train` saves and costs, and writes it as JSON; takes some seconds for each video.

python docs/studies/measure_transcode.py VIDEOS [--out docs/results/transcode.json] [--enlarge]

--enlarge makes 720p files of small ones.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
from tyro import cli
from tyro.conf import Positional, arg

from avpretrain.core.errors import UserError
from avpretrain.core.files import write_json
from avpretrain.core.provenance import environment
from avpretrain.data.choices import Limits
from avpretrain.data.container import open_media, sound_stream
from avpretrain.data.decode import decode_audio, decode_video
from avpretrain.data.media import SAMPLE_RATE
from avpretrain.data.sources import find_items
from avpretrain.data.write.settings import TranscodeConfig
from avpretrain.data.write.transcode import ClipMedia, cut

FRAMES, FPS = 8, 2.0
"""What training reads of a clip: 8 frames at 2 a second (MAViL)."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """The same stretch of a file, copied and re-encoded."""

    copied: ClipMedia
    written: ClipMedia


def enlarge(path: Path, out: Path, height: int = 720, noise: float = 3.0, fps: int = 25) -> Path:
    """Re-encodes a small video as a large one, with camera-like noise so that the encoder has something to do.

    Args:
        path: the small video, with sound.
        out: the large one, mp4 with H.264 (default preset, GOP 250, B-frames) and AAC at 44.1 kHz.
        height: pixels.
        noise: standard deviation, in grey levels.
        fps: frames a second.
    """
    rng = np.random.default_rng(0)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open_media(path) as source, av.open(str(out), "w") as target:
        video, audio = source.streams.video[0], source.streams.audio[0]
        width = round(video.codec_context.width * height / video.codec_context.height / 2) * 2
        picture = target.add_stream("libx264", rate=fps, options={"crf": "23"})
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        sound = target.add_stream("aac", rate=44_100, layout="stereo")
        for count, frame in enumerate(source.decode(video)):
            large = frame.reformat(width, height, "rgb24", interpolation="LANCZOS").to_ndarray().astype(np.float32)
            grain = np.clip(large + rng.normal(0, noise, large.shape[:2])[..., None], 0, 255).astype(np.uint8)
            new = av.VideoFrame.from_ndarray(grain, format="rgb24")
            new.pts, new.time_base = count, Fraction(1, fps)
            target.mux(picture.encode(new))
        target.mux(picture.encode())
        source.seek(0)
        for frame in itertools.chain(source.decode(audio), [None]):
            target.mux(sound.encode(frame))
    return out


def measure_transcode(paths: Sequence[Path], cfg: TranscodeConfig, repeats: int = 5) -> dict[str, Any]:
    """Compares clips copied from `paths` with the same clips re-encoded.

    Returns:
        sizes, processor time to decode what training reads of a clip, errors, settings and machine; see the keys.

    Raises:
        UserError: there is no clip of 4 s to compare.
    """
    took: list[float] = []
    pairs = [pair for path in paths for pair in _pairs(path, cfg, took)]
    if not pairs:
        raise UserError("no clip of 4 s or more to measure; give longer videos")
    copied, written = [pair.copied for pair in pairs], [pair.written for pair in pairs]
    seconds = sum(clip.duration for clip in written)
    original_bytes = sum(len(clip.video) for clip in copied) * seconds / sum(clip.duration for clip in copied)
    slow, fast = (_decode_cpu_ms(clips, cfg.short_side, repeats) for clips in (copied, written))
    sizes = sorted({f"{clip.width}x{clip.height}" for clip in copied})
    return {
        "clips": len(pairs),
        "seconds": seconds,
        "original": {"video_bytes": round(original_bytes), "decode_cpu_ms": slow, "frames": sizes},
        "transcoded": {
            "video_bytes": sum(len(clip.video) for clip in written),
            "audio_bytes": sum(len(clip.audio) for clip in written),
            "decode_cpu_ms": fast,
            "frames": sorted({f"{clip.width}x{clip.height}" for clip in written}),
        },
        "video_seconds_transcoded_a_core_second": seconds / sum(took),
        "video_size_ratio": original_bytes / sum(len(clip.video) for clip in written),
        "decode_speed_ratio": slow["total"] / fast["total"],
        "pixels": _pixel_error(pairs),
        "log_mel": _log_mel_error(paths, cfg),
        "settings": asdict(cfg),
        "environment": environment(),
    }


def _pairs(path: Path, cfg: TranscodeConfig, took: list[float]) -> list[_Pair]:
    """Clips of one file whose two forms begin together; a copied clip may begin only at a key frame.

    Appends to `took` the seconds of one core that writing them took.
    """
    as_it_is = TranscodeConfig(transcode="copy", clip_seconds=cfg.clip_seconds, need=cfg.need)
    copied = {round(c.start, 2): c for c in cut(path, None, "any", as_it_is, Limits())}
    start = time.process_time()
    written = list(cut(path, None, "any", cfg, Limits()))
    took.append(time.process_time() - start)
    together = [clip for clip in written if round(clip.start, 2) in copied and clip.duration >= FRAMES / FPS]
    return [_Pair(copied[round(clip.start, 2)], clip) for clip in together]


def _decode_cpu_ms(clips: Sequence[ClipMedia], short_side: int, repeats: int) -> dict[str, float]:
    """Median processor time a clip, ms: 8 frames at 2 fps resized to `short_side`, and the sound."""

    def median(decode: Callable[[ClipMedia], object]) -> float:
        return 1000 * statistics.median(_seconds(decode, clip) for _ in range(repeats) for clip in clips)

    video = median(lambda clip: decode_video(clip.video, _times(clip), short_side))
    audio = median(lambda clip: decode_audio(clip.audio, SAMPLE_RATE))
    return {"video": video, "audio": audio, "total": video + audio}


def _times(clip: ClipMedia) -> list[float]:
    """Times of a 4 s window in the middle of a clip."""
    first = max(0.0, clip.duration - FRAMES / FPS) / 2
    return [first + i / FPS for i in range(FRAMES)]


def _seconds(decode: Callable[[ClipMedia], object], clip: ClipMedia) -> float:
    start = time.process_time()
    decode(clip)
    return time.process_time() - start


def _pixel_error(pairs: Sequence[_Pair]) -> dict[str, float]:
    """Against the original frames nearest to the same times, resized to the same size; grey levels of 0 to 255."""
    absolute, squared = [], []
    for pair in pairs:
        times = np.round(np.asarray(_times(pair.written)) * pair.written.fps) / pair.written.fps
        side = min(pair.written.width, pair.written.height)
        ours = decode_video(pair.written.video, times.tolist()).astype(np.float64)
        theirs = decode_video(pair.copied.video, times.tolist(), side).astype(np.float64)
        height, width = (min(a, b) for a, b in zip(ours.shape[1:3], theirs.shape[1:3], strict=True))
        difference = ours[:, :height, :width] - theirs[:, :height, :width]
        absolute.append(np.abs(difference).mean())
        squared.append(np.square(difference).mean())
    return {"mean_absolute": float(np.mean(absolute)), "psnr_db": float(10 * np.log10(255**2 / np.mean(squared)))}


def _log_mel_error(paths: Sequence[Path], cfg: TranscodeConfig) -> dict[str, float]:
    """Log-mel of the FLAC against that of the source's own samples in floating point, resampled by torchaudio."""
    import torch

    from avpretrain.data.features import log_mel

    differences, values = [], []
    for path in paths:
        reference_S = _reference_sound(path)
        for clip in cut(path, None, "audio", cfg, Limits()):
            pcm_S = decode_audio(clip.audio, SAMPLE_RATE).astype(np.float32) / 32768
            first = round(clip.start * SAMPLE_RATE)
            theirs_S = reference_S[first : first + len(pcm_S)]
            both = [torch.from_numpy(wave - wave.mean()) for wave in (pcm_S[: len(theirs_S)], theirs_S)]
            ours_FM, theirs_FM = (log_mel(wave[None])[0] for wave in both)
            differences.append((ours_FM - theirs_FM).abs().flatten())
            values.append(theirs_FM.flatten())
    difference, value = torch.cat(differences), torch.cat(values)
    return {
        "mean_absolute": float(difference.mean()),
        "standard_deviation_of_values": float(value.std()),
        "relative": float(difference.mean() / value.std()),
    }


def _reference_sound(path: Path) -> np.ndarray:
    """float32 [S] at 16 kHz: decoded to floating point, channels averaged, resampled by a windowed sinc."""
    import torch
    from torchaudio.functional import resample

    with open_media(path) as container:
        stream = sound_stream(container)
        if stream is None:
            raise UserError(f"{path} has no sound to compare")
        converter = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.codec_context.sample_rate)
        frames = [f.to_ndarray() for frame in container.decode(stream) for f in converter.resample(frame)]
    mono_S = torch.from_numpy(np.concatenate(frames, axis=1).mean(axis=0))
    resampled: np.ndarray = resample(mono_S, stream.codec_context.sample_rate, SAMPLE_RATE).numpy()
    return resampled


def main(
    videos: Positional[Path],
    out: Path = Path("transcode.json"),
    large: Annotated[bool, arg(name="enlarge")] = False,
) -> None:
    paths = [videos / item.path for item in find_items("folder", videos, None).items]
    with tempfile.TemporaryDirectory() as folder:
        paths = [enlarge(path, Path(folder) / f"{i}.mp4") for i, path in enumerate(paths)] if large else paths
        write_json(out, {"enlarged_to_720p": large, **measure_transcode(paths, TranscodeConfig())})


if __name__ == "__main__":
    cli(main)
