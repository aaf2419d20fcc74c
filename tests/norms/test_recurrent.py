"""Recurrent layers: torch's without a norm, the papers' equations with one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing._internal.common_modules import module_db

import normscope as ns

F64 = torch.float64
KINDS = ["LSTM", "GRU", "RNN"]
NORMS = ["batch", "layer", "weight", "rms"]


def made(kind, *args, norm, **fields):
    torch.manual_seed(0)
    layer = getattr(ns.nn, kind)(*args, norm=norm, dtype=F64, **fields)
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name.startswith("norms"):
                value.copy_(torch.randn(value.shape) * 0.3 + 1)
    return layer


def sequence(t=5, n=4, c=3, seed=0):
    return torch.randn(t, n, c, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}])
def test_without_a_norm_it_is_torchs(kind, fields):
    ours, theirs = made(kind, 3, 6, norm=None, **fields), getattr(nn, kind)(3, 6, dtype=F64, **fields)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = sequence()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    packed = pack_padded_sequence(sequence(5, 3), [2, 5, 3], enforce_sorted=False)
    _, hx = ours(sequence(5, 3) if not fields.get("batch_first") else sequence(3, 5))
    torch.testing.assert_close(ours(packed, hx), theirs(packed, hx))


def ln(x, weight, eps=1e-5):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt() * weight


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def bn(x, weight):
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * weight


def by_equations(layer, x, norm):
    """One layer in one direction, step by step, as Ba et al. 2016 and Cooijmans et al. 2017 write them."""
    of = {"layer": ln, "rms": rms, "batch": bn}[norm]
    gains = {name.split("_l0")[0]: module for name, module in layer.norms.items()}
    w, u, b, d = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
    size = layer.hidden_size
    h = c = torch.zeros(x.shape[1], size, dtype=F64)
    out = []
    for x_t in x:
        a, r = x_t @ w.T, h @ u.T
        if isinstance(layer, ns.nn.LSTM):
            i, f, g, o = (of(a, gains["ih0"].weight) + b + of(r, gains["hh0"].weight) + d).split(size, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            bias = gains["cell"].bias if gains["cell"].bias is not None else 0
            h = o.sigmoid() * torch.tanh(of(c, gains["cell"].weight) + bias)
        elif isinstance(layer, ns.nn.GRU):
            gates = of(a[:, : 2 * size], gains["ih0"].weight) + of(r[:, : 2 * size], gains["hh0"].weight)
            reset, update = (gates + (b + d)[: 2 * size]).sigmoid().split(size, -1)
            inner = of(r[:, 2 * size :], gains["hh1"].weight) + d[2 * size :]
            candidate = torch.tanh(of(a[:, 2 * size :], gains["ih1"].weight) + b[2 * size :] + reset * inner)
            h = (1 - update) * candidate + update * h
        elif norm == "batch":
            h = torch.tanh(of(a, gains["ih0"].weight) + of(r, gains["hh0"].weight) + b + d)
        else:
            h = torch.tanh(of(a + r, gains["sum"].weight) + b + d)
        out.append(h)
    return torch.stack(out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
def test_follows_the_papers(kind, norm):
    layer, x = made(kind, 3, 6, norm=norm), sequence()
    y, last = layer(x)
    torch.testing.assert_close(y, by_equations(layer, x, norm))
    torch.testing.assert_close((last[0] if kind == "LSTM" else last)[0], y[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
def test_the_scale_of_the_weights_does_not_matter(kind, norm):
    """Ba et al. 2016, table 1, and Cooijmans et al. 2017, section 3."""
    layer, x = made(kind, 3, 6, norm=norm), sequence(n=16)
    with torch.no_grad():
        for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
            weight.mul_(300)
        before = layer(x)[0]
        for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
            weight.mul_(10)
        torch.testing.assert_close(layer(x)[0], before, rtol=1e-3, atol=1e-4)


def test_weight_norm_is_torchs_lstm_with_normalized_weights():
    layer, theirs = made("LSTM", 3, 6, norm="weight"), nn.LSTM(3, 6, dtype=F64)
    with torch.no_grad():
        for side in ("ih", "hh"):
            gain, v = layer.parametrizations[f"weight_{side}_l0"].parameters()
            gain.mul_(1.5)
            getattr(theirs, f"weight_{side}_l0").copy_(gain * v / v.norm(dim=1, keepdim=True))
            getattr(theirs, f"bias_{side}_l0").copy_(getattr(layer, f"bias_{side}_l0"))
    torch.testing.assert_close(layer(sequence()), theirs(sequence()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_variable_lengths_two_ways_two_layers(kind, norm):
    layer = made(kind, 3, 4, 2, norm=norm, bidirectional=True, dropout=0.5).eval()
    x, lengths = sequence(5, 3), [2, 5, 3]
    y, last = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    y, _ = pad_packed_sequence(y)
    last = last if kind == "LSTM" else (last,)
    for n, length in enumerate(lengths):
        alone, end = layer(x[:length, n : n + 1])
        torch.testing.assert_close(y[:length, n : n + 1], alone)
        assert (y[length:, n] == 0).all()
        for one, other in zip(last, end if kind == "LSTM" else (end,)):
            torch.testing.assert_close(one[:, n : n + 1], other)


def test_batch_statistics_count_no_padding():
    layer = made("LSTM", 3, 4, norm="batch", max_steps=5)
    x, lengths = sequence(4, 3), torch.tensor([4, 2, 2])
    layer(pack_padded_sequence(x, lengths))
    product = x @ layer.weight_ih_l0.T
    kept = layer.norms["ih0_l0"]
    torch.testing.assert_close(kept.running_mean[1], 0.1 * product[1].mean(0))
    torch.testing.assert_close(kept.running_var[1], 0.9 + 0.1 * product[1].var(0))
    torch.testing.assert_close(kept.running_mean[2], 0.1 * product[2, 0])
    assert (kept.running_mean[4] == 0).all() and (kept.running_var[4] == 1).all()


def test_temporal_batch_norm_is_batch_norm_of_each_step():
    layer, x = ns.nn.TemporalBatchNorm(3, max_steps=4, dtype=F64), sequence(6)
    steps = [nn.BatchNorm1d(3, dtype=F64) for _ in range(6)]
    y = layer(x)
    torch.testing.assert_close(y, torch.stack([0.1 * step(x_t) for step, x_t in zip(steps, x)]))
    torch.testing.assert_close(layer.running_var, torch.stack([step.running_var for step in steps[:4]]))
    twin = ns.nn.TemporalBatchNorm(3, max_steps=4, dtype=F64)
    torch.testing.assert_close(torch.stack([twin.at(x_t, t) for t, x_t in enumerate(x)]), y)
    torch.testing.assert_close(twin.state_dict(), layer.state_dict())
    layer.eval(), twin.eval()
    limited = [step.eval() for step in steps[:4]] + [steps[3]] * 2  # the time limit rule
    wanted = torch.stack([0.1 * step(x_t) for step, x_t in zip(limited, x)])
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(twin.at(x[5], 5), wanted[5])
    lengths = torch.tensor([6, 2, 4, 1])
    mask = torch.arange(6)[:, None] < lengths
    torch.testing.assert_close(layer(x, lengths), layer(x, mask))
    first = ns.nn.TemporalBatchNorm(3, max_steps=4, batch_first=True, dtype=F64)
    torch.testing.assert_close(first(x.transpose(0, 1)), y.transpose(0, 1))


def test_gain_starts_at_a_tenth():
    layer = ns.nn.LSTM(3, 4, norm="batch")
    assert all((module.weight == 0.1).all() for module in layer.norms.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_gradients(kind, norm):
    layer = made(kind, 2, 3, norm=norm, bidirectional=True)
    torch.autograd.gradcheck(lambda x: layer(x)[0], (sequence(3, 3, 2).requires_grad_(),))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives(kind, norm):
    layer = made(kind, 2, 2, norm=norm)
    x = sequence(2, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], (x,), fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_lie_as_torchs_do_for_cudnn(kind):
    ours, theirs = (getattr(home, kind)(3, 4, 2, bidirectional=True) for home in (ns.nn, nn))
    twin, (weights, *_) = ours._torchs(), ours._settings()
    assert twin._flat_weights_names == theirs._flat_weights_names and twin.mode == theirs.mode
    assert all(one is getattr(ours, name) for one, name in zip(weights, theirs._flat_weights_names))
    ours.flatten_parameters()  # on the host there is nothing to do


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_weights_are_one_piece(kind):
    for layer in (getattr(ns.nn, kind)(3, 4, 2).cuda(), getattr(ns.nn, kind)(3, 4, 2, device="cuda")):
        layer(torch.randn(5, 2, 3, device="cuda"))  # cuDNN warns of weights in pieces, and warnings are errors
        assert len({parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}) == 1


@pytest.mark.parametrize("name", KINDS)
def test_torch_module_inputs_and_errors(name):
    info = next(info for info in module_db if info.module_cls is getattr(nn, name))
    told = {"device": "cpu", "dtype": F64, "requires_grad": False, "training": True}
    met = 0
    for case in info.module_inputs_func(info, **told):
        built, given = case.constructor_input, case.forward_input
        if built.kwargs.get("proj_size"):
            continue
        ours, theirs = (getattr(home, name)(*built.args, **built.kwargs).double() for home in (ns.nn, nn))
        ours.load_state_dict(theirs.state_dict())
        torch.manual_seed(0)
        wanted = theirs(*given.args, **given.kwargs)
        torch.manual_seed(0)
        torch.testing.assert_close(ours(*given.args, **given.kwargs), wanted)
        met += 1
    assert met > 3
    for case in info.module_error_inputs_func(info, **told) if info.module_error_inputs_func else ():
        built, given = case.module_error_input.constructor_input, case.module_error_input.forward_input
        call = (lambda layer: None) if given is None else (lambda layer: layer(*given.args, **given.kwargs))  # noqa: B023
        with pytest.raises(case.error_type):
            call(getattr(ns.nn, name)(*built.args, **built.kwargs))


def test_errors():
    with pytest.raises(ns.NormscopeError, match="leave proj_size at 0"):
        ns.nn.LSTM(3, 4, proj_size=2, norm="layer")
    with pytest.raises(ns.NormscopeError, match='choose None, "batch"'):
        ns.nn.GRU(3, 4, norm="group")
    with pytest.raises(ns.NormscopeError, match=r"pass \(T, N, 3\)"):
        ns.nn.RNN(3, 4)(torch.randn(2, 2, 5))
    with pytest.raises(ns.NormscopeError, match=r"pass 2 of shape \(1, 2, 4\)"):
        ns.nn.LSTM(3, 4)(torch.randn(2, 2, 3), (torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)))
    with pytest.raises(ns.NormscopeError, match='choose "tanh"'):
        ns.nn.RNN(3, 4, nonlinearity="selu")
    with pytest.raises(ns.NormscopeError, match=r"pass input.to\(torch.float32\), or convert"):
        ns.nn.LSTM(3, 4, norm="layer")(torch.randn(2, 2, 3, dtype=F64))
    with pytest.raises(ns.NormscopeError, match="no sequence"):
        ns.nn.TemporalBatchNorm(3)(torch.randn(4, 3))
