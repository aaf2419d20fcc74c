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

pytest.importorskip("normscope.stats._reading", reason="it was installed without a C compiler", exc_type=ImportError)


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
        np.testing.assert_array_equal(compiled.values(found), x.float().numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "skipping"])
def test_a_sample_is_kept_and_a_change_is_told_from_it(dtype, layout):
    x = LAYOUTS[layout](spread(dtype)).clone()
    kept = compiled.gathered(x, 1000)
    assert kept is not None and kept.size == x.numel()
    np.testing.assert_array_equal(compiled.values(kept), exact(strided(x, 1000)).numpy())
    x += 0.125
    now = compiled.gathered(x, 1000)
    assert now is not None
    (found,) = compiled.digests([now], [kept])
    assert_same(found, Summary.of(exact(strided(x, 1000)) - torch.from_numpy(compiled.values(kept).copy())))


@pytest.mark.parametrize("threads", [1, 2])
def test_many_are_told_at_once_by_any_number_of_threads(threads):
    if not pool.runtime():
        pytest.skip("torch has no OpenMP runtime that takes C functions")
    tensors = [torch.randn(20 + 13 * at).to(DTYPES[at % 4]) for at in range(40)]
    alone = [compiled.gathered(x) for x in tensors]
    team = pool.runtime(), threads
    at_once = compiled.gathered_all([*tensors, torch.ones(2, dtype=torch.int8)], team=team)
    assert at_once[-1] is None
    for one, other in zip(at_once[:-1], alone, strict=True):
        np.testing.assert_array_equal(compiled.values(one), compiled.values(other))
    before = [None if at % 3 else sample for at, sample in enumerate(alone)]
    told = compiled.digests(alone, before, team)
    assert list(told) == [compiled.digests([now], [then])[0] for now, then in zip(alone, before)]
    assert told[0].zeros == told[0].seen == 20


def test_room_is_used_again_and_no_sample_writes_to_that_of_another():
    tensors = [torch.full((100 * at + 1,), float(at)) for at in range(9)]
    for _ in range(2):
        samples = [compiled.gathered(x) for x in tensors]
        places = {sample.__array_interface__["data"][0] for sample in samples}
        assert len(places) == len(samples)
        for sample, x in zip(samples, tensors):
            np.testing.assert_array_equal(compiled.values(sample), x.numpy())
    kept = compiled.values(samples[3])
    del samples, sample
    again = [compiled.gathered(x) for x in tensors]
    assert len(places & {sample.__array_interface__["data"][0] for sample in again}) == len(places) - 1
    np.testing.assert_array_equal(kept, tensors[3].numpy())
    compiled.release()
    np.testing.assert_array_equal(compiled.values(again[5]), tensors[5].numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sample_is_divided_in_its_own_type(dtype):
    x = torch.randn(50, dtype=dtype)
    x[3] = torch.inf
    found = compiled.gathered(x)
    assert not found.finite and compiled.gathered(x[:3]).finite
    np.testing.assert_array_equal(compiled.values(compiled.over(found, 3.0)), (x / 3.0).numpy())


def test_what_is_no_sample_and_what_does_not_fit_is_refused():
    short, long = compiled.gathered(torch.ones(3)), compiled.gathered(torch.ones(4))
    for now, before in ((short, long), (long, compiled.gathered(torch.ones(4).double())), (torch.ones(3), None)):
        with pytest.raises(TypeError, match="less"):
            compiled.digests([now], [before])
    with pytest.raises(ValueError, match="262141 elements, where 262140 is the most"):
        compiled.gathered(torch.ones(2**18 - 3), 2**20)
    with pytest.raises(TypeError, match="no sample"):
        compiled.over(torch.ones(3), 2.0)


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


def test_without_the_loops_everything_is_none_and_the_reason_is_told():
    code = (
        "import sys; sys.modules['normscope.stats._reading'] = None; import torch\n"
        "from normscope.stats import compiled;"
        "print(compiled.prepare()); x = torch.ones(3);"
        "assert compiled.digest(x) is compiled.gathered(x) is None and not compiled.serves(x);"
        "assert compiled.gathered_all([x]) == [None] and not compiled.digests([], [])"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.startswith(("ImportError: ", "ModuleNotFoundError: "))


def test_watching_loads_no_compiler():
    code = (
        "import sys, torch, normscope as ns, tempfile; model = torch.nn.Linear(3, 2);"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "with tempfile.TemporaryDirectory() as place, ns.watch(model, optimizer, place, every=1) as watcher:\n"
        "    model(torch.randn(4, 3)).sum().backward(); optimizer.step()\n"
        "assert watcher.path and 'numba' not in sys.modules and 'llvmlite' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
