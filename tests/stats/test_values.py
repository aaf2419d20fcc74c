"""The type that statistics are computed from holds every number of the type they came in."""

import pytest
import torch

from normscope.stats.values import exact, in_memory_order

NARROW = [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int16]
WIDE = [torch.float64, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", [*NARROW, *WIDE], ids=str)
def test_no_number_is_changed(dtype):
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    last = 2**53 - 1 if dtype == torch.int64 else int(info.max)
    numbers = (
        [0, 1, last, last - 1, -last] if not dtype.is_floating_point else [0.0, 1 + info.eps, info.tiny, -info.max]
    )
    if dtype == torch.uint8:
        numbers.pop()
    x = torch.tensor(numbers, dtype=torch.float64 if dtype.is_floating_point else torch.int64).to(dtype)
    assert exact(x).double().tolist() == numbers
    assert exact(x).dtype == (torch.float32 if dtype in NARROW else torch.float64)


def test_what_need_not_change_is_not_copied():
    for x in (torch.ones(3), torch.ones(3, dtype=torch.float64)):
        assert exact(x) is x


def test_memory_order_is_a_view_of_every_element_once():
    x = torch.randn(2, 3, 4, 5)
    for dense in (x, x.to(memory_format=torch.channels_last), x.permute(2, 0, 3, 1), x[1:], x[:, :, 0:1, 0:1][:1, :1]):
        flat = in_memory_order(dense)
        assert flat is not None and torch.equal(flat.sort().values, dense.reshape(-1).sort().values)
        assert flat.data_ptr() == dense.data_ptr()
    for other in (x[:, 1:], x[..., ::2], x[:1].expand(3, 3, 4, 5), x.unfold(3, 2, 1)):
        assert in_memory_order(other) is None
