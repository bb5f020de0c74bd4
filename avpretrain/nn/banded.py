"""Banded attention: a frame sees a bounded past and a bounded future; whole sequences, or frame by frame from a ring.

B samples, N heads, L queries, C keys, T frames, D width, H head width, R rows of a ring.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from avpretrain.nn.attend import attend
from avpretrain.nn.causal_block import CausalBlock, Tables
from avpretrain.nn.rotary import rotate


def band(query_L: Tensor, key_C: Tensor, past: int | None, future: int | None) -> Bool[Tensor, "1 1 l c"]:
    """Which query may see which key, by their positions: from `past` before it to `future` after it; none = all."""
    ahead_LC = key_C[None, :] - query_L[:, None]
    allowed_LC = torch.ones_like(ahead_LC, dtype=torch.bool)
    if past is not None:
        allowed_LC &= ahead_LC >= -past
    if future is not None:
        allowed_LC &= ahead_LC <= future
    return allowed_LC[None, None]


def precise_tables(positions_L: Tensor, head_width: int, base: float = 10_000.0) -> Tables:
    """What `rotary_tables` gives, with angles in float64: after a day of a stream float32 no longer tells frames apart.

    Where a device has no float64 (Apple's GPUs), they are worked out on the CPU.
    """
    device = positions_L.device
    where = torch.device("cpu") if device.type == "mps" else device
    exponents_P = torch.arange(0, head_width, 2, dtype=torch.float64, device=where) / head_width
    angles_LP = positions_L.to(where, torch.float64)[:, None] * base**-exponents_P
    angles_LH = torch.cat([angles_LP, angles_LP], dim=1)
    return angles_LH.cos().float().to(device), angles_LH.sin().float().to(device)


TABLES = 256
"""Positions of a stream whose rotary tables are worked out at a time."""


class KeyValueRing:
    """The keys and values of the newest positions of a stream, each position in row `position % rows`.

    Args:
        rows: that are kept; none = all that come, in memory that doubles when it is full.
    """

    def __init__(
        self, rows: int | None, heads: int, head_width: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.bounded, self.written = rows is not None, 0
        """Positions that have been written so far."""
        self._kv = torch.zeros(2, 1, heads, rows or 64, head_width, device=device, dtype=dtype)

    @property
    def rows(self) -> int:
        """Positions that there is memory for."""
        return self._kv.shape[3]

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return self._kv.numel() * self._kv.element_size()

    def write(self, k_1NLH: Tensor, v_1NLH: Tensor) -> None:
        """Takes the next positions, at most `rows` at a time, in place of the oldest."""
        count = k_1NLH.shape[2]
        while not self.bounded and self.written + count > self.rows:
            self._kv = torch.cat([self._kv, torch.zeros_like(self._kv)], dim=3)
        if count > self.rows:
            raise ValueError(f"a ring of {self.rows} rows can't take {count} positions at once")
        start = self.written % self.rows
        first = min(count, self.rows - start)
        for kv, new in zip(self._kv, (k_1NLH, v_1NLH), strict=True):
            kv[:, :, start : start + first] = new[:, :, :first]
            kv[:, :, : count - first] = new[:, :, first:]
        self.written += count

    @property
    def filled(self) -> int:
        """Rows that are written: positions from `written - filled` on are there."""
        return min(self.written, self.rows)

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values [1, N, C, H], views of the rows that are written."""
        return self._kv[0, :, :, : self.filled], self._kv[1, :, :, : self.filled]

    def positions(self) -> Tensor:
        """[C]: the position that each row holds."""
        newest = self.written - 1
        return newest - (newest - torch.arange(self.filled, device=self._kv.device)) % self.rows


class BandedBlock(CausalBlock):
    """A block of grouped-query attention in which position t sees t - `past` to t + `future`.

    Args:
        past: positions before its own that a position sees; none = all.
        future: positions after its own; none = all.
    """

    def __init__(self, width: int, heads: int, hidden: int, past: int | None, future: int | None) -> None:
        super().__init__(width, heads, heads, width // heads, hidden)
        self.past, self.future, self.head_width = past, future, width // heads

    def allowed(self, frames: int, device: torch.device, valid_BT: Tensor | None = None) -> Bool[Tensor, "b 1 t t"]:
        """The mask of a whole sequence.

        Args:
            valid_BT: which positions are real; none = all. A position always sees itself, so that no row is empty.
        """
        position_T = torch.arange(frames, device=device)
        allowed = band(position_T, position_T, self.past, self.future)
        if valid_BT is None:
            return allowed
        return (allowed & valid_BT[:, None, None, :]) | torch.eye(frames, dtype=torch.bool, device=device)

    def stream(self, piece: int = 1) -> BlockStream:
        """An empty state for `BlockStream.push`, where the weights are.

        Args:
            piece: positions that are taken at once.

        Raises:
            ValueError: the future has no end.
        """
        return BlockStream(self, piece)


class BlockStream:
    """A block on a stream: keys and values of the past are kept, and outputs come `future` positions late."""

    def __init__(self, block: BandedBlock, piece: int) -> None:
        if block.future is None:
            raise ValueError("a block that sees all the future can't run on a stream")
        self.block, self.piece, self.future = block, piece, block.future
        weight = block.attn.qkv.weight
        rows = None if block.past is None else block.past + block.future + piece
        self.ring = KeyValueRing(rows, block.attn.heads, block.head_width, weight.device, weight.dtype)
        self._waiting: tuple[Tensor, Tensor] | None = None  # queries [1, N, W, H] and residuals [1, W, D]
        self._known = (0, weight.new_zeros(0, 0), weight.new_zeros(0, 0))  # rotary tables from a position on

    @property
    def bytes(self) -> int:
        """Memory of the ring, and of the positions whose future is not there yet."""
        return self.ring.bytes + sum(x.numel() * x.element_size() for x in self._waiting or ())

    def push(self, x_1LD: Float[Tensor, "1 l d"]) -> Float[Tensor, "1 m d"]:
        """Takes the next positions and returns those that are complete."""
        if x_1LD.shape[1] <= self.piece:
            return self._push(x_1LD) if x_1LD.shape[1] else x_1LD
        return torch.cat([self._push(part) for part in x_1LD.split(self.piece, dim=1)], dim=1)

    def finish(self) -> Float[Tensor, "1 m d"]:
        """The positions that still waited: no more come."""
        if self._waiting is None:
            weight = self.block.attn.qkv.weight
            return weight.new_zeros(1, 0, weight.shape[1])
        return self._answer(self._waiting[1].shape[1])

    def _push(self, x_1LD: Tensor) -> Tensor:
        block, attn, count = self.block, self.block.attn, x_1LD.shape[1]
        heads = attn.qkv(block.norm1(x_1LD)).unflatten(2, (3 * attn.heads, block.head_width)).transpose(1, 2)
        q_1NLH, k_1NLH, v_1NLH = heads.chunk(3, dim=1)
        both = rotate(torch.cat([attn.q_norm(q_1NLH), attn.k_norm(k_1NLH)], dim=1), self._tables(count))
        q_1NLH, k_1NLH = both.chunk(2, dim=1)
        self.ring.write(k_1NLH, v_1NLH)
        if self._waiting is not None:
            q_1NLH = torch.cat([self._waiting[0], q_1NLH], dim=2)
            x_1LD = torch.cat([self._waiting[1], x_1LD], dim=1)
        self._waiting = (q_1NLH, x_1LD)
        return self._answer(max(0, x_1LD.shape[1] - self.future))

    def _tables(self, count: int) -> Tables:
        """Of the next positions; many are worked out at a time."""
        start = self.ring.written - self._known[0]
        if not 0 <= start <= len(self._known[1]) - count:
            start, first = 0, self.ring.written
            position_L = torch.arange(first, first + max(count, TABLES))
            cos_LH, sin_LH = precise_tables(position_L, self.block.head_width)
            device = self.block.attn.qkv.weight.device
            self._known = (first, cos_LH.to(device), sin_LH.to(device))
        return self._known[1][start : start + count], self._known[2][start : start + count]

    def _answer(self, count: int) -> Tensor:
        """Outputs of the first `count` positions that wait."""
        assert self._waiting is not None
        q_1NLH, x_1LD = self._waiting
        self._waiting = (q_1NLH[:, :, count:].clone(), x_1LD[:, count:].clone()) if count < x_1LD.shape[1] else None
        if count == 0:
            return x_1LD[:, :0]
        first = self.ring.written - x_1LD.shape[1]
        q_1NLH, x_1LD = q_1NLH[:, :, :count], x_1LD[:, :count]
        y_1NLH = attend(q_1NLH, *self.ring.read(), self._allowed(first, count))
        x_1LD = x_1LD + self.block.attn.proj(y_1NLH.transpose(1, 2).flatten(2))
        return x_1LD + self.block.mlp(self.block.norm2(x_1LD))

    def _allowed(self, first: int, count: int) -> Tensor | None:
        """Which rows each of `count` positions from `first` on may see; none = all, as in a full ring, one by one."""
        past, oldest, newest = self.block.past, self.ring.written - self.ring.filled, self.ring.written - 1
        if (past is None or first + count - 1 - past <= oldest) and newest <= first + self.future:
            return None
        position_C = self.ring.positions()
        return band(torch.arange(first, first + count, device=position_C.device), position_C, past, self.future)
