"""Whether a tensor is what an encoder was trained on: positions would be stretched over other mel bins without a word.

B clips, F spectrogram frames, M mel bins, T video frames, C colours, H height, W width.
"""

from __future__ import annotations

from torch import Tensor


def require_spectrogram(audio_BFM: Tensor, frames: int, mels: int) -> None:
    """Checks the shape and type of spectrograms.

    Args:
        frames: of a patch.
        mels: bins that the model was trained on.

    Raises:
        ValueError: they are not floats [B, F, M] with F a multiple of the patch and M the model's mel bins.
    """
    shape = tuple(audio_BFM.shape)
    _require_floats("spectrograms", audio_BFM)
    if len(shape) != 3 or shape[2] != mels:
        raise ValueError(
            f"the model takes spectrograms [clips, frames, {mels} mel bins], got shape {shape}; "
            f"compute them with {mels} mel bins"
        )
    if shape[1] < frames or shape[1] % frames:
        raise ValueError(f"the model takes a multiple of {frames} spectrogram frames, got {shape[1]}; pad or cut them")


def require_video(video_BTCHW: Tensor, tubelet: tuple[int, ...]) -> None:
    """Checks the shape and type of videos.

    Raises:
        ValueError: they are not floats [B, T, 3, H, W] with T, H and W multiples of the tubelet.
    """
    shape = tuple(video_BTCHW.shape)
    _require_floats("videos", video_BTCHW)
    if len(shape) != 5 or shape[2] != 3:
        raise ValueError(f"the model takes videos [clips, frames, 3 colours, height, width], got shape {shape}")
    sizes = (shape[1], shape[3], shape[4])
    if any(size < part or size % part for size, part in zip(sizes, tubelet, strict=True)):
        raise ValueError(
            f"the model takes multiples of {' x '.join(map(str, tubelet))} frames, height and width, "
            f"got {' x '.join(map(str, sizes))}; pad, cut or resize them"
        )


def _require_floats(what: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"the model takes {what} as normalised floats, got {str(x.dtype).removeprefix('torch.')}")
