"""Mean and standard deviation of log-mel values as a model sees them, at its own number of mel bins and sample rate."""

from __future__ import annotations

from avpretrain.data.container import DecodeError
from avpretrain.data.decode import decode_audio
from avpretrain.data.log_mel_sums import MELS, LogMelSums, log_mel_sums
from avpretrain.data.media import SAMPLE_RATE
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.read.storage import StorageError

SAMPLED = 128
"""Clips that a correction is measured on, spread evenly over the set."""


def log_mel_stats(clips: ClipSet, mels: int, sample_rate: int) -> tuple[float, float]:
    """Mean and standard deviation for `mels` bins at `sample_rate`.

    Data sets are measured at 128 bins and 16 kHz while they are sharded; what that measured is the answer there. For
    other inputs it is corrected by what differs on a sample of clips, measured both ways: wider triangles hold more
    energy, so the mean rises, by nearly the same amount in each clip. A pure function of the data set; exact where the
    sample is all of it.

    Raises:
        UsageError: no clip has audio.
    """
    mean, std = clips.log_mel
    if (mels, sample_rate) == (MELS, SAMPLE_RATE):
        return mean, std
    as_sharded, as_seen = LogMelSums(0, 0, 0.0, 0.0), LogMelSums(0, 0, 0.0, 0.0)
    count = min(SAMPLED, len(clips))
    for row in (i * len(clips) // count for i in range(count)):
        try:
            audio = clips.encoded(row).media.audio
            if audio:
                pcm_S = decode_audio(audio, SAMPLE_RATE)
                resampled_S = pcm_S if sample_rate == SAMPLE_RATE else decode_audio(audio, sample_rate)
                as_sharded = as_sharded.plus(log_mel_sums(pcm_S, SAMPLE_RATE))
                as_seen = as_seen.plus(log_mel_sums(resampled_S, sample_rate, mels))
        except (DecodeError, StorageError):
            continue  # training meets it again, counts it and says so
    if not as_sharded.variance or not as_seen.variance:
        return mean, std
    return mean + as_seen.mean - as_sharded.mean, std * (as_seen.variance / as_sharded.variance) ** 0.5
