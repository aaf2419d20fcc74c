"""Lanes on the host: bfloat16 as torch rounds it, bit by bit."""

from __future__ import annotations

import pytest
import torch

numba = pytest.importorskip("numba")


def test_lanes_round_to_bfloat16_as_torch_does():
    from normscope.kernels.cpu.compiled.lanes import LANES, lanes, put

    @numba.njit
    def rounded(x, y):
        for i in range(0, len(x), LANES):
            put(y, i, lanes(x, i))  # pyright: ignore[reportCallIssue]

    # every upper half with lower halves about the tie; among them zeros, what is below 1e-38, infinities and NaN
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    bits = (torch.arange(-(1 << 15), 1 << 15)[:, None] * 65536 + lower).to(torch.int32).flatten()
    x, y = bits.view(torch.float32), torch.empty(bits.shape, dtype=torch.int16)
    rounded(x.numpy(), y.numpy().view("uint16"))
    found, wanted = y.view(torch.bfloat16), x.bfloat16()
    assert torch.equal(found.isnan(), x.isnan())
    assert torch.equal(found[~x.isnan()].view(torch.int16), wanted[~x.isnan()].view(torch.int16))
