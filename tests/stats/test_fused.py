"""The compiled loops against the plain definitions: the same elements, the same bins, the same moments."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from normscope.kernels.cpu import pool
from normscope.stats import Summary, compiled, strided
from normscope.stats.code import encode
from normscope.stats.digest import Digest
from normscope.stats.values import exact

pytest.importorskip("numba")


@pytest.fixture(autouse=True, scope="module")
def _loaded():
    assert compiled.prepare() is None


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(3, 0, 2, 1),
    "skipping": lambda x: x[:, ::2],
    "cropped": lambda x: x[:, :, 1:],
    "expanded": lambda x: x[:1].expand(7, -1, -1, -1),
    "overlapping": lambda x: x.unfold(2, 3, 1),
    "small": lambda x: x[0, 0, 0, :5],
    "one": lambda x: x[0, 0, 0, 0],
    "none": lambda x: x[:0],
}


def assert_same(found: Digest, truth: Summary):
    assert found.code == encode(truth.sketch.counts)
    told = found.summary
    assert told.sketch == truth.sketch and found.seen == truth.moments.count
    np.testing.assert_allclose(found.mean, truth.mean, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(found.m2, truth.moments.m2, rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal([told.low, told.high], [truth.low, truth.high])
    assert found.nonfinite == truth.sketch.nonfinite
    np.testing.assert_allclose(told.rms, truth.rms, rtol=1e-12)


def spread(dtype):
    torch.manual_seed(0)
    x = torch.randn(5, 12, 21, 33) * torch.logspace(-30, 30, 33)
    return (x if dtype != torch.float16 else torch.randn(5, 12, 21, 33) * torch.logspace(-7, 4, 33)).to(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1000, 2**17])
def test_it_tells_what_the_definitions_tell(dtype, layout, n):
    x = LAYOUTS[layout](spread(dtype))
    found = compiled.digest(x, n)
    assert found is not None and found.size == x.numel()
    assert_same(found, Summary.of(strided(x, n)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_or_not_normal_is_counted_as_it_should(dtype):
    told = torch.finfo(dtype)
    special = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, told.tiny, -told.tiny, told.smallest_normal / 2]
    special += [told.max, told.min / 2, told.smallest_normal / 8, 2.0**-32, -(2.0**-32), 2.0**31, 1.0, 1.0625, 1.9999]
    for x in (
        torch.tensor(special, dtype=dtype),
        torch.full((9,), torch.nan, dtype=dtype),
        torch.zeros(7, dtype=dtype),
    ):
        found, truth = compiled.digest(x), Summary.of(x)
        assert found is not None
        assert found.code == encode(truth.sketch.counts) and found.summary.sketch == truth.sketch
        np.testing.assert_array_equal([found.low, found.high], [truth.low, truth.high])
        np.testing.assert_allclose([found.mean, found.m2], [truth.mean, float(truth.moments.m2)], rtol=1e-12)


def test_every_float16_and_every_bfloat16_is_read_as_it_is():
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)
        found = compiled.gathered(x, 2**16)
        assert found is not None
        np.testing.assert_array_equal(found.values, x.float().numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "skipping"])
def test_a_sample_is_kept_and_a_change_is_told_from_it(dtype, layout):
    x = LAYOUTS[layout](spread(dtype)).clone()
    kept = compiled.gathered(x, 1000)
    assert kept is not None and kept.size == x.numel()
    np.testing.assert_array_equal(kept.values, exact(strided(x, 1000)).numpy())
    x += 0.125
    now = compiled.gathered(x, 1000)
    assert now is not None
    (found,) = compiled.digests([(now, kept)])
    assert_same(found, Summary.of(exact(strided(x, 1000)) - torch.from_numpy(kept.values)))


@pytest.mark.parametrize("threads", [1, 2])
def test_many_are_told_at_once_by_any_number_of_threads(threads, monkeypatch):
    if pool.missing() is not None:
        pytest.skip(str(pool.missing()))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(compiled, "AT_ONCE", 7)
    tensors = [torch.randn(20 + 13 * at).to(DTYPES[at % 4]) for at in range(40)]
    samples = [(compiled.gathered(x), None) for x in tensors]
    at_once = compiled.gathered_all([*tensors, torch.ones(2, dtype=torch.int8)], pool.launch)
    assert at_once.pop() is None
    for one, (other, _) in zip(at_once, samples, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    assert list(compiled.digests(samples, pool.launch)) == [compiled.digests([sample])[0] for sample in samples]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_have_moments_of_their_own(dtype):
    x = torch.randn(6, 5, dtype=torch.float64).to(dtype)
    x[2, 1], x[:, 3] = torch.nan, torch.inf
    found = compiled.digest_by_channel(x, np.arange(30), 5)
    assert found is not None
    truth = Summary.of(x, 1)
    assert_same(found[0], truth)
    for part in ("count", "mean", "m2"):
        np.testing.assert_allclose(getattr(found[1], part), getattr(truth.channels, part), rtol=1e-12)
    np.testing.assert_array_equal(
        found[2], x.to((found[2].dtype.type is np.float64 and torch.float64) or torch.float32)
    )


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(5),
        torch.ones(3) < 2,
        torch.zeros(3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
        torch.ones(2, dtype=torch.complex64).conj().imag,
        torch.ones(3).as_subclass(type("Own", (torch.Tensor,), {})),
    ],
    ids=["integers", "booleans", "meta", "sparse", "complex", "negated view", "subclass"],
)
def test_what_is_not_served_is_left_to_torch(x):
    assert compiled.digest(x) is None and compiled.gathered(x) is None


def test_moments_are_exact_far_from_zero():
    x = torch.randn(8192) + 1e4
    found = compiled.digest(x)
    truth = x.double()
    assert found is not None
    assert found.m2 == pytest.approx(float((truth - truth.mean()).square().sum()), rel=1e-13)


def test_without_numba_everything_is_none_and_the_reason_is_told():
    code = (
        "import sys; sys.modules['numba'] = None; import torch; from normscope.stats import compiled;"
        "assert compiled.digest(torch.ones(3)) is None; print(compiled.prepare());"
        "assert compiled.digest(torch.ones(3)) is None and compiled.gathered(torch.ones(3)) is None"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.startswith("ModuleNotFoundError: ")


def test_the_package_loads_no_compiler():
    code = "import sys, normscope, normscope.watch.session, normscope.stats.compiled; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
