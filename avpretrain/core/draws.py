"""Random numbers as a pure function of (sample, stream, position), so that they depend on no batch, worker or rank.

A counter-based generator: the seed of a sample, the name of a stream ("audio_noise") and the position in the output are
mixed by the 64-bit finaliser of SplitMix64 (Steele et al. 2014). Nothing has to be saved to resume a run exactly, and a
clip meets the same masks and noise on one GPU as on eight. B samples, N draws each.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1
CPU_VALUES = 1 << 16
"""Normal numbers drawn at a time on a CPU: what they need fits its caches."""


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed integer that torch stores."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser. In place after its first step: on a CPU fresh memory costs more than arithmetic."""
    x = (x ^ _shift(x, 30)).mul_(_signed(_MIX1))
    x = x.bitwise_xor_(_shift(x, 27)).mul_(_signed(_MIX2))
    return x.bitwise_xor_(_shift(x, 31))


def _mix_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    return x ^ (x >> 31)


def sample_seed(seed: int, epoch: int, position: int) -> int:
    """Seed of the sample at `position` of `epoch`: a signed 64-bit integer."""
    return _signed(_mix_int(_mix_int(_mix_int(seed + _GOLDEN) + epoch + _GOLDEN) + position + _GOLDEN))


def _stream_offset(stream: str) -> int:
    return _signed(_mix_int(zlib.crc32(stream.encode()) + _GOLDEN))


# torch.compile can't look into zlib. This is all that torch.compiler.assume_constant_result does, but calling that
# would import the compiler, which costs every process seconds.
setattr(_stream_offset, "_dynamo_marked_constant", True)  # noqa: B010


def _bits(seed_B: Tensor, stream: str, count: int) -> Tensor:
    """int64 [B, count]: 64 random bits a place."""
    base_B = _mix(seed_B + _stream_offset(stream))
    counter_N = torch.arange(1, count + 1, device=seed_B.device, dtype=torch.int64)
    # The counter meets the base before the multiplication: compiled, an index times a 64-bit constant would be 32 bits.
    return _mix((base_B[:, None] ^ counter_N).mul_(_signed(_GOLDEN)))


def uniform(seed_B: Tensor, stream: str, shape: Sequence[int] = ()) -> Tensor:
    """float32 [B, *shape], uniform in [0, 1), with 24 random bits."""
    bits_BN = _bits(seed_B, stream, math.prod(shape))
    return (_shift(bits_BN, 40).to(torch.float32) * 2.0**-24).reshape(len(seed_B), *shape)


def uniform_number(seed: int, stream: str) -> float:
    """One number in [0, 1), equal to `uniform` of that seed with no shape; for code that works clip by clip."""
    base = _mix_int(seed + _stream_offset(stream))
    return (_mix_int((base ^ 1) * _GOLDEN) >> 40) * 2.0**-24


def integers(seed_B: Tensor, stream: str, high: int, shape: Sequence[int] = ()) -> Tensor:
    """int64 [B, *shape], uniform in [0, high), for high up to 2**24."""
    return (_shift(_bits(seed_B, stream, math.prod(shape)), 40) * high >> 24).reshape(len(seed_B), *shape)


def normal(seed_B: Tensor, stream: str, shape: Sequence[int]) -> Tensor:
    """float32 [B, *shape], standard normal."""
    count = math.prod(shape)
    rows = len(seed_B) if seed_B.device.type != "cpu" else max(1, CPU_VALUES // max(1, count))
    parts = [_normal(part_B, stream, count) for part_B in seed_B.split(max(1, rows))]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(len(seed_B), *shape)


def _normal(seed_B: Tensor, stream: str, count: int) -> Tensor:
    """float32 [B, count], by Box and Muller: one 64-bit draw gives both uniforms."""
    bits_BN = _bits(seed_B, stream, count)
    radius_BN = _shift(bits_BN, 32).to(torch.float32).add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle_BN = bits_BN.bitwise_and_(0xFFFFFFFF).to(torch.float32).mul_(2 * math.pi * 2.0**-32)
    return radius_BN.mul_(angle_BN.cos_())


def permutation(seed_B: Tensor, stream: str, count: int) -> Tensor:
    """int64 [B, count]: a random order of 0 .. count - 1 in each row."""
    return _bits(seed_B, stream, count).argsort(dim=1, stable=True)
