"""Patches and their positions."""

import math

import pytest
import torch

from avpretrain.nn.patches import (
    patchify_audio,
    patchify_video,
    positions,
    positions_of_steps,
    resize_positions,
    resize_positions_of_steps,
    unpatchify_audio,
    unpatchify_video,
)


def sincos(position: float, width: int) -> list[float]:
    """MAE's 1-D formula, one value at a time."""
    angles = [position / 10_000 ** (i / (width / 2)) for i in range(width // 2)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def test_2d_positions_are_maes_formula() -> None:
    """First half of the width: column; second half: row (MAE's meshgrid puts the width first)."""
    table = positions((5, 3), 16, (5, 3))
    expected = torch.tensor([sincos(col, 8) + sincos(row, 8) for row in range(5) for col in range(3)])
    torch.testing.assert_close(table, expected)


def test_3d_positions_split_the_width() -> None:
    table = positions((2, 3, 4), 32, (2, 3, 4))
    cells = [(t, h, w) for t in range(2) for h in range(3) for w in range(4)]
    expected = torch.tensor([sincos(t, 8) + sincos(w, 12) + sincos(h, 12) for t, h, w in cells])
    torch.testing.assert_close(table, expected)


def test_shorter_time_keeps_its_step_and_longer_time_is_squeezed() -> None:
    trained = positions((8, 4), 16, (8, 4)).reshape(8, 4, 16)
    shorter = positions((3, 4), 16, (8, 4)).reshape(3, 4, 16)
    torch.testing.assert_close(shorter, trained[:3])
    longer = positions((16, 4), 16, (8, 4)).reshape(16, 4, 16)
    torch.testing.assert_close(longer[1, 0, 8:], torch.tensor(sincos(0.25, 8)))
    torch.testing.assert_close(longer[15, 0, 8:], torch.tensor(sincos(7.25, 8)))


def test_finer_space_lies_around_the_centres_of_the_coarse_patches() -> None:
    fine = positions((1, 4, 4), 32, (1, 2, 2)).reshape(4, 4, 32)
    torch.testing.assert_close(fine[0, 3, 8:20], torch.tensor(sincos(1.25, 12)))
    torch.testing.assert_close(fine[0, 3, 20:], torch.tensor(sincos(-0.25, 12)))


@pytest.mark.parametrize("grid", [(4, 6), (2, 4, 6)])
def test_resized_table_agrees_with_the_formula_on_a_slow_ramp(grid: tuple[int, ...]) -> None:
    """Away from the edges a linear function of position stays one: exactly when trilinear, nearly when bicubic."""
    ramp = torch.meshgrid(*(torch.arange(float(g)) for g in grid), indexing="ij")[-1]
    wide = (*grid[:-1], 2 * grid[-1])
    resized = resize_positions(ramp.reshape(-1, 1), grid, wide).reshape(wide)
    inside = resized[..., 4:-4].reshape(-1, wide[-1] - 8)[0]
    torch.testing.assert_close(
        inside, (torch.arange(4, wide[-1] - 4) + 0.5) / 2 - 0.5, atol=0.05 if len(grid) == 2 else 1e-5, rtol=0
    )


def test_resized_table_of_a_shorter_clip_is_its_beginning() -> None:
    table = torch.randn(4 * 3, 8)
    torch.testing.assert_close(resize_positions(table, (4, 3), (2, 3)), table[:6])
    assert resize_positions(table, (4, 3), (4, 3)) is table


def test_audio_patches_and_back() -> None:
    audio = torch.arange(2 * 8 * 6.0).reshape(2, 8, 6)
    patches = patchify_audio(audio, (4, 3))
    assert patches.shape == (2, 4, 12)
    assert torch.equal(patches[1, 1].reshape(4, 3), audio[1, :4, 3:])
    assert torch.equal(unpatchify_audio(patches, (2, 2), (4, 3)), audio)


def test_video_patches_and_back() -> None:
    video = torch.randn(2, 4, 3, 6, 8)
    patches = patchify_video(video, (2, 3, 4))
    assert patches.shape == (2, 8, 72)
    expected = video[0, 2:, :, :3, 4:].permute(0, 2, 3, 1)  # second time, first row, second column
    assert torch.equal(patches[0, 5].reshape(2, 3, 4, 3), expected)
    assert torch.equal(unpatchify_video(patches, (2, 2, 2), (2, 3, 4)), video)


@pytest.mark.parametrize("trained", [(4, 3), (3, 2, 2)])
def test_positions_without_branches_are_the_same_at_any_length(trained: tuple[int, ...]) -> None:
    """What exported graphs compute: fixed positions exactly, a resized table but for rounding."""
    table = torch.randn(math.prod(trained), 32, generator=torch.Generator().manual_seed(0))
    for steps in (1, 2, trained[0], trained[0] + 1, 7, 40):
        grid, steps_S = (steps, *trained[1:]), torch.arange(steps)
        assert torch.equal(positions_of_steps(steps_S, 32, trained), positions(grid, 32, trained))
        resized = resize_positions_of_steps(table, steps_S, trained)
        torch.testing.assert_close(resized, resize_positions(table, trained, grid), atol=1e-5, rtol=0)
