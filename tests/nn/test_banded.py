"""Bands, and keys and values in a ring."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from avpretrain.nn.attend import attend
from avpretrain.nn.banded import BandedBlock, KeyValueRing, band, precise_tables
from avpretrain.nn.rotary import rotary_tables, rotate


def test_a_band_is_what_its_definition_says() -> None:
    position = torch.arange(9)
    for past, future in ((0, 0), (2, 1), (None, 0), (3, None), (None, None)):
        allowed = band(position, position, past, future)[0, 0]
        for t in range(9):
            for s in range(9):
                wanted = (past is None or s >= t - past) and (future is None or s <= t + future)
                assert bool(allowed[t, s]) == wanted


def test_without_limits_it_is_plain_attention() -> None:
    torch.manual_seed(0)
    block, x = BandedBlock(16, 2, 32, None, None), torch.randn(2, 11, 16)
    tables, attn = precise_tables(torch.arange(11), 8), block.attn
    q, k, v = rearrange(attn.qkv(block.norm1(x)), "b l (s n h) -> s b n l h", s=3, n=2)
    y = attend(rotate(attn.q_norm(q), tables), rotate(attn.k_norm(k), tables), v)
    wanted = x + attn.proj(rearrange(y, "b n l h -> b l (n h)"))
    wanted = wanted + block.mlp(block.norm2(wanted))
    for past, future in ((None, None), (10, 10)):
        block.past, block.future = past, future
        assert torch.allclose(block(x, tables, block.allowed(11, x.device)), wanted, atol=1e-6)


def test_angles_are_those_of_the_plain_tables_near_the_start_and_exact_far_from_it() -> None:
    near = torch.arange(50)
    for ours, plain in zip(precise_tables(near, 8), rotary_tables(near, 8), strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)
    far = torch.tensor([90_000_017])
    angle = 90_000_017 * 10_000.0 ** (-2 / 8)
    assert precise_tables(far, 8)[0][0, 1].item() == pytest.approx(
        torch.tensor(angle, dtype=torch.float64).cos().item()
    )


@pytest.mark.parametrize("rows", [7, None])
def test_a_ring_holds_the_newest_positions(rows: int | None) -> None:
    ring, all_k, written = KeyValueRing(rows, 2, 4, torch.device("cpu")), torch.randn(1, 2, 200, 4), 0
    for count in (1, 3, 7, 2, 5, 1, 7, 7, 7) + (() if rows else (60, 70)):
        ring.write(all_k[:, :, written : written + count], -all_k[:, :, written : written + count])
        written += count
        (k, v), position = ring.read(), ring.positions()
        kept = min(written, rows or written)
        assert sorted(position.tolist()) == list(range(written - kept, written))
        assert torch.equal(k, all_k[:, :, position]) and torch.equal(v, -k)
    if rows:
        with pytest.raises(ValueError, match="a ring of 7 rows can't take 8"):
            ring.write(all_k[:, :, :8], all_k[:, :, :8])
        assert ring.bytes == 2 * 2 * 7 * 4 * 4
