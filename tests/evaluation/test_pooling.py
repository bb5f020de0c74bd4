"""What a last patch holds beyond the clip's end, and bands kept apart."""

from __future__ import annotations

import dataclasses

import torch

from avpretrain.data.whole import filled
from avpretrain.evaluation.frozen import ClipBatch, FrozenEncoder, Pooling, encode_steps
from avpretrain.evaluation.probe.run import random_encoder
from tests.support.tiny_models import INPUT, tiny

MODEL = random_encoder(tiny(), seed=0)


def batch(audio_BFM: torch.Tensor, frames: int) -> ClipBatch:
    count = torch.full((len(audio_BFM),), frames)
    return ClipBatch(audio_BFM, torch.zeros(len(audio_BFM), 4, 3, 32, 32), count, torch.full_like(count, 4))


def test_what_follows_a_clip_does_not_matter() -> None:
    """24 frames fill a patch and a half: the other half repeats the last frame, whatever the batch holds there."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, INPUT.mels, generator=generator)
    encoder = FrozenEncoder(MODEL, "audio", Pooling())
    one = encoder(batch(x, 24))
    noisy = x.clone()
    noisy[:, 24:] = 100 * torch.randn(2, 40, INPUT.mels, generator=generator)
    torch.testing.assert_close(encoder(batch(noisy, 24)), one, atol=1e-6, rtol=0)
    by_hand = torch.cat([x[:, :24], x[:, 23:24].expand(-1, 8, -1)], dim=1)
    tokens, _ = encode_steps(MODEL, "audio", by_hand, 2)
    torch.testing.assert_close(one, tokens.mean(dim=(2, 3)).flatten(1), atol=1e-6, rtol=0)
    assert torch.equal(filled(x[:, :24], 32), by_hand)
    assert torch.equal(filled(x, 32), x[:, :32])


def test_bands_average_to_the_mean_and_picture_stays_the_mean() -> None:
    x = batch(torch.randn(3, 64, INPUT.mels, generator=torch.Generator().manual_seed(1)), 64)
    x = dataclasses.replace(x, video_BTCHW=torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    for layers in (1, 2):
        mean, bands = (FrozenEncoder(MODEL, "both", Pooling(kind, layers))(x) for kind in ("mean", "bands"))
        width, count = 48 * layers, MODEL.audio_encoder.grid[1]
        assert bands.shape == (3, width * count + width)
        apart = bands[:, : width * count].unflatten(1, (layers, count, 48))
        torch.testing.assert_close(apart.mean(dim=2).flatten(1), mean[:, :width], atol=1e-6, rtol=0)
        assert torch.equal(bands[:, width * count :], mean[:, width:])
        assert (apart.std(dim=2) > 1e-3).any()
