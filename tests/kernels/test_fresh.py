"""Fresh memory: torch's own tensor, of which the system is told that large pages are wanted, and nothing else."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch

from normscope.kernels.cpu import fresh

MB = 1 << 20
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
linux = pytest.mark.skipif(sys.platform != "linux" or not HUGE.exists(), reason="large pages are asked of Linux")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_tensor_that_torch_allocates(memory, dtype):
    x = torch.zeros(4, 8, 256, 256, dtype=dtype).to(memory_format=memory)
    y = fresh.like(x)
    assert (y.shape, y.stride(), y.dtype) == (x.shape, x.stride(), x.dtype)
    assert y.untyped_storage().nbytes() == x.untyped_storage().nbytes() and y.untyped_storage().resizable()
    assert not y._is_view() and y.data_ptr() % 64 == 0


@pytest.mark.parametrize("numbers", [1 << 20, (1 << 20) + 4097, 3_333_333])
def test_the_advice_is_about_whole_pages_of_the_tensor_alone(monkeypatch, numbers):
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(fresh, "_advise", lambda: lambda *told: asked.append(told))
    y = fresh.like(torch.empty(numbers))
    ((start, length, advice),) = asked
    assert start % 4096 == 0 and length % 4096 == 0 and advice == 14
    assert y.data_ptr() <= start < y.data_ptr() + 4096
    assert y.data_ptr() + 4 * numbers - 4096 < start + length <= y.data_ptr() + 4 * numbers


def test_small_tensors_are_left_alone(monkeypatch):
    monkeypatch.setattr(fresh, "_advise", lambda: pytest.fail("the system was asked"))
    fresh.like(torch.empty((1 << 20) - 1))


def test_where_the_system_has_no_such_pages_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert fresh._advise.__wrapped__() is None


@linux
def test_the_system_took_the_advice():
    y = fresh.like(torch.empty(64 * MB // 4))
    found, flags = False, []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0] and not head[0].endswith(":"):
            start, end = (int(part, 16) for part in head[0].split("-"))
            found = start <= y.data_ptr() + 32 * MB < end
        elif found and head[0] == "VmFlags:":
            flags = head[1:]
    assert "hg" in flags


def resident() -> int:
    """Bytes of this process that stand in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@linux
def test_memory_goes_back_when_the_tensor_dies():
    x = torch.empty(64 * MB // 4)
    gc.collect()
    before = resident()
    y = fresh.like(x).fill_(1)
    assert resident() - before > 60 * MB
    for _ in range(5):
        y = fresh.like(x).fill_(1)
    del y
    assert resident() - before < 8 * MB
