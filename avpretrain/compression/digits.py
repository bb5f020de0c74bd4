"""Spoken digits as images, and a small network trained on them: what the tables of compression are measured on.

N clips, H frames, W mel bins.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avpretrain.core.errors import UserError
from avpretrain.data.features import log_mel

SIZE = 64
SAMPLE_RATE = 16_000
SHIFT = (10, 3)
"""Largest shift of a training image, in frames and in mel bins."""
HIDDEN = (12, 10)
"""Largest block of frames, and of mel bins, that is hidden in a training image."""


def digits(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Spectrograms [N, 1, 64, 64], classes [N], and which are of the test split [N], of a folder of FSDD.

    Raises:
        UserError: there are no recordings.
    """
    import soundfile
    import torchaudio

    from avpretrain.data.sources import fsdd

    items = fsdd.find(folder, None).items if folder.is_dir() else []
    if not items:
        raise UserError(f"no recordings DIGIT_SPEAKER_INDEX.wav or .flac below {folder}; name a folder of FSDD")
    images, classes, test = [], [], []
    for item in items:
        wave, rate = soundfile.read(folder / item.path, dtype="float32")
        wave_S = torchaudio.functional.resample(torch.from_numpy(wave), rate, SAMPLE_RATE)
        mel_FM = log_mel(F.pad(wave_S - wave_S.mean(), (0, SAMPLE_RATE))[None, :SAMPLE_RATE], mels=SIZE)[0]
        images.append(F.interpolate(mel_FM[None, None], (SIZE, SIZE), mode="bilinear")[0])
        classes.append(int(str(item.labels["class"])))
        test.append(item.split == "test")
    image_N1HW = torch.stack(images)
    test_N = torch.tensor(test)
    std, mean = torch.std_mean(image_N1HW[~test_N])
    return (image_N1HW - mean) / std, torch.tensor(classes), test_N


def augment(image_N1HW: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted in time and pitch, with a block of frames and one of mel bins hidden behind the mean."""
    image_N1HW = image_N1HW.clone()
    draws_N6 = torch.rand(len(image_N1HW), 6, generator=generator)
    for i, draw in enumerate(draws_N6.tolist()):
        shifts = [round((2 * u - 1) * most) for u, most in zip(draw[:2], SHIFT, strict=True)]
        image = image_N1HW[i].roll(shifts, dims=(1, 2))
        for axis, most in enumerate(HIDDEN):
            size = int(draw[2 + axis] * (most + 1))
            start = int(draw[4 + axis] * (image.shape[1 + axis] - size + 1))
            image.narrow(1 + axis, start, size).zero_()
        image_N1HW[i] = image
    return image_N1HW


def train(net: nn.Module, image_N1HW: Tensor, class_N: Tensor, epochs: int, seed: int, batch: int = 64) -> None:
    """AdamW under a one-cycle rate, cross entropy on augmented images; ends in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.01)
    batch = min(batch, len(image_N1HW))
    per_epoch = len(image_N1HW) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * per_epoch)
    net.train()
    for _ in range(epochs):
        for ids in torch.randperm(len(image_N1HW), generator=generator)[: per_epoch * batch].split(batch):
            optimizer.zero_grad()
            F.cross_entropy(net(augment(image_N1HW[ids], generator)), class_N[ids]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


@torch.no_grad()
def outputs(net: nn.Module, image_N1HW: Tensor) -> Tensor:
    """[N, classes], a batch at a time."""
    return torch.cat([net(part) for part in image_N1HW.split(256)])


def accuracy(output_NC: Tensor, class_N: Tensor) -> float:
    """Share of right answers."""
    return float((output_NC.argmax(dim=1) == class_N).float().mean())
