"""Per-sample and combined norms against their papers' equations, written out here."""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.common_modules import module_db

import normscope as ns

F64 = torch.float64


def image(n=4, c=6, h=3, w=5, seed=0):
    return torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=F64) * 2 + 1


def shuffled(layer):
    """Parameters away from the values at which mistakes hide."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return layer


def along(value):
    return value[:, None, None]


def test_positional_norm():
    layer, x = ns.nn.PositionalNorm(6, dtype=F64), image()
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(layer(x), (x - mean) / (var + 1e-5).sqrt())
    torch.testing.assert_close(layer.moments(x), (mean, (var + 1e-5).sqrt()))
    back = layer(x) * layer.moments(x)[1] + layer.moments(x)[0]  # the moment shortcut undoes the norm
    torch.testing.assert_close(back, x)


@pytest.mark.parametrize("learned", [False, True])
def test_filter_response_norm(learned):
    layer, x = shuffled(ns.nn.FilterResponseNorm(6, learned_eps=learned, dtype=F64)), image()
    nu2 = x.square().sum((2, 3), keepdim=True) / 15
    eps = 1e-6 + (along(layer.eps_learned.abs()) if learned else 0)
    y = along(layer.weight) * x / (nu2 + eps).sqrt() + along(layer.bias)
    torch.testing.assert_close(layer(x), torch.maximum(y, along(layer.tau)))
    if not learned:  # scale of the input does not matter
        torch.testing.assert_close(layer(x * 1e4), layer(x), rtol=1e-5, atol=1e-6)
    assert layer(x[:, :, 0, 0]).shape == (4, 6)


def test_local_response_norm_is_torchs():
    info = next(info for info in module_db if info.module_cls is torch.nn.LocalResponseNorm)
    for case in info.module_inputs_func(info, device="cpu", dtype=F64, requires_grad=False, training=True):
        args, given = case.constructor_input.args, case.forward_input.args
        torch.testing.assert_close(
            ns.nn.LocalResponseNorm(*args)(*given), torch.nn.LocalResponseNorm(*args)(*given), atol=0, rtol=0
        )


def test_evonorm_b0():
    layer, x = shuffled(ns.nn.EvoNormB0(6, dtype=F64)), image()
    for training in (True, False):
        layer.train(training)
        y = layer(x)
        var = x.var((0, 2, 3), unbiased=False) if training else layer.running_var
        den = torch.maximum(
            along(var + 1e-5).sqrt(), along(layer.v) * x + (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        )
        torch.testing.assert_close(y, x / den * along(layer.weight) + along(layer.bias))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * x.var((0, 2, 3)))


def test_evonorm_s0():
    layer, x = shuffled(ns.nn.EvoNormS0(6, 3, dtype=F64)), image()
    var = x.view(4, 3, -1).var(-1, unbiased=False).repeat_interleave(2, 1)[..., None, None]
    wanted = x * torch.sigmoid(along(layer.v) * x) / (var + 1e-5).sqrt() * along(layer.weight) + along(layer.bias)
    torch.testing.assert_close(layer(x), wanted)
    with pytest.raises(ns.NormscopeError, match="choose a divisor of 6"):
        ns.nn.EvoNormS0(6, 4)


def test_dynamic_tanh():
    x = image()
    for layout, y in (("channels_first", x), ("channels_last", x.movedim(1, -1))):
        layer = shuffled(ns.nn.DynamicTanh(6, layout=layout, dtype=F64))
        wanted = along(layer.weight) * torch.tanh(layer.alpha * x) + along(layer.bias)
        torch.testing.assert_close(layer(y), wanted if layout == "channels_first" else wanted.movedim(1, -1))
        loud = layer(y * 1e9)  # squashed, however large the input (section 3)
        loud = loud.movedim(1, -1) if layout == "channels_first" else loud
        assert ((loud - layer.bias).abs() <= layer.weight.abs() * (1 + 1e-12)).all()


def test_switchable_norm():
    layer, x = shuffled(ns.nn.SwitchableNorm(6, dtype=F64)), image()
    y = layer(x)
    for training in (True, False):
        layer.train(training)
        y = layer(x) if not training else y
        means = [x.mean((2, 3), keepdim=True), x.mean((1, 2, 3), keepdim=True), x.mean((0, 2, 3), keepdim=True)]
        variances = [x.var(dims, unbiased=False, keepdim=True) for dims in ((2, 3), (1, 2, 3), (0, 2, 3))]
        if not training:
            means[2], variances[2] = along(layer.running_mean)[None], along(layer.running_var)[None]
        mean = sum(w * m for w, m in zip(layer.mean_weight.softmax(0), means))
        var = sum(w * v for w, v in zip(layer.var_weight.softmax(0), variances))
        torch.testing.assert_close(
            y, (x - mean) / (var + 1e-5).sqrt() * along(layer.weight) + along(layer.bias), msg=str(training)
        )


@pytest.mark.parametrize(("winner", "like"), [*enumerate(["InstanceNorm", "GroupNorm", "BatchNorm"])])
def test_switchable_norm_is_each_of_its_three(winner, like):
    layer, x = ns.nn.SwitchableNorm(6, dtype=F64), image()
    with torch.no_grad():
        for logits in (layer.mean_weight, layer.var_weight):
            logits[winner] = 1000.0
    torch.testing.assert_close(layer(x), ns.nn.build(ns.catalog[like].but(groups=1), 6, dtype=F64)(x))


def test_batch_channel_norm():
    layer, x = shuffled(ns.nn.BatchChannelNorm(6, 3, dtype=F64)), image(n=1)
    y = layer(x)  # one sample trains
    mean, var = 0.1 * x.mean((0, 2, 3)), 0.9 + 0.1 * x.var((0, 2, 3))
    z = (x - along(mean)) / along(var + 1e-5).sqrt() * along(layer.over_batch.weight) + along(layer.over_batch.bias)
    z = torch.nn.functional.group_norm(z, 3)
    torch.testing.assert_close(y, z * along(layer.weight.repeat_interleave(2)) + along(layer.bias.repeat_interleave(2)))
    plain = ns.nn.BatchChannelNorm(6, 3, estimate=False, dtype=F64)
    upstream, leaf = torch.randn_like(x), x.clone().requires_grad_()  # the estimates stand outside the gradient
    fixed = ns.nn.build(ns.catalog["FrozenBatchNorm"], 6, dtype=F64)
    fresh = ns.nn.BatchChannelNorm(6, 3, dtype=F64)
    (found,) = torch.autograd.grad(fresh(leaf), leaf, upstream)
    fixed.load_state_dict(fresh.over_batch.state_dict())
    (wanted,) = torch.autograd.grad(torch.nn.functional.group_norm(fixed(leaf), 3), leaf, upstream)
    torch.testing.assert_close(found, wanted)
    x = image()
    torch.testing.assert_close(
        plain(x), torch.nn.functional.group_norm(torch.nn.BatchNorm2d(6, dtype=F64)(x), 3), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", ["SwitchableNorm", "FilterResponseNorm", "BatchChannelNorm", "EvoNormB0", "EvoNormS0"])
def test_masks_reach_every_part(name):
    x = image(4, 6, 1, 5)[:, :, 0]
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 1])[:, None]
    args = (6, 3) if name in ("BatchChannelNorm", "EvoNormS0") else (6,)
    noise = torch.where(mask[:, None], x, torch.randn_like(x))
    one_sample = getattr(ns.nn, name)(*args, dtype=F64).eval()  # what a sample alone and cut to its length gives
    torch.testing.assert_close(one_sample(x, mask)[1:2, :, :3], one_sample(x[1:2, :, :3]))
    one, other = (getattr(ns.nn, name)(*args, dtype=F64)(data, mask) for data in (x, noise))
    torch.testing.assert_close(torch.where(mask[:, None], one, 0), torch.where(mask[:, None], other, 0))
    torch.testing.assert_close(one.movedim(1, 2)[~mask], x.movedim(1, 2)[~mask])


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # torch's own
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_of_two_dtypes_is_torchs_and_the_other_conventions_keep_the_inputs(weight_dtype):
    x = torch.randn(2, 3, 64).bfloat16()
    ours, theirs = (home.RMSNorm(64, eps=1e-6, dtype=weight_dtype) for home in (ns.nn, torch.nn))
    one, other = ours(x), theirs(x)
    assert one.dtype is other.dtype
    torch.testing.assert_close(one, other, atol=0, rtol=0)
    for name in ("LlamaRMSNorm", "GemmaRMSNorm"):
        layer = ns.nn.build(ns.catalog[name], 64, dtype=weight_dtype)
        assert layer(x).dtype is torch.bfloat16


def test_llama_gemma_and_t5_conventions():
    x = torch.randn(2, 3, 64).bfloat16()
    weight = torch.randn(64).bfloat16()
    hidden = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    llama = ns.nn.build(ns.catalog["LlamaRMSNorm"], 64, dtype=torch.bfloat16)
    gemma = ns.nn.build(ns.catalog["GemmaRMSNorm"], 64, dtype=torch.bfloat16)
    assert torch.equal(gemma.weight, torch.zeros(64).bfloat16())
    with torch.no_grad():
        llama.weight.copy_(weight)
        gemma.weight.copy_(weight)
    assert torch.equal(llama(x), weight * hidden.bfloat16())
    assert torch.equal(gemma(x), (hidden * (1.0 + weight.float())).bfloat16())
