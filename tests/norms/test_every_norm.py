"""What every norm can do: second derivatives, checkpointing, compile, export, copies, functional calls."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import normscope as ns
from normscope.norms import past
from normscope.terms.catalog import ENTRIES

F64 = torch.float64
NORMS = {
    "BatchNorm1d": lambda **k: ns.nn.BatchNorm1d(4, **k),
    "CumulativeBatchNorm": lambda **k: ns.nn.BatchNorm1d(4, momentum=None, **k),
    "GhostBatchNorm": lambda **k: ns.nn.GhostBatchNorm(4, 2, **k),
    "BatchRenorm": lambda **k: ns.nn.BatchRenorm(4, r_max=(3.0, 0, 1), d_max=(5.0, 0, 1), **k),
    "SyncBatchNorm": lambda **k: ns.nn.SyncBatchNorm(4, **k),
    "FrozenBatchNorm": lambda **k: ns.nn.FrozenBatchNorm(4, **k),
    "PopulationBatchNorm": lambda **k: ns.nn.build(ns.catalog["PopulationBatchNorm"], 4, **k),
    "AccumulatedBatchNorm": lambda **k: ns.nn.build(ns.catalog["BatchNorm"].but(accumulate=3), 4, **k),
    "EstimatedBatchNorm": lambda **k: ns.nn.build(ns.catalog["EstimatedBatchNorm"], 4, **k),
    "OnlineNorm": lambda **k: ns.nn.OnlineNorm(4, **k),
    "InstanceNorm1d": lambda **k: ns.nn.InstanceNorm1d(4, affine=True, track_running_stats=True, **k),
    "GroupNorm": lambda **k: ns.nn.GroupNorm(2, 4, **k),
    "LayerNorm": lambda **k: ns.nn.LayerNorm((4, 3), **k),
    "LayerNorm2d": lambda **k: ns.nn.LayerNorm2d(4, **k),
    "RMSNorm": lambda **k: ns.nn.RMSNorm(3, **k),
    "GemmaRMSNorm": lambda **k: ns.nn.build(ns.catalog["GemmaRMSNorm"], 3, **k),
    "PositionalNorm": lambda **k: ns.nn.PositionalNorm(4, affine=True, **k),
    "FilterResponseNorm": lambda **k: ns.nn.FilterResponseNorm(4, learned_eps=True, **k),
    "EvoNormB0": lambda **k: ns.nn.EvoNormB0(4, **k),
    "EvoNormS0": lambda **k: ns.nn.EvoNormS0(4, 2, **k),
    "DynamicTanh": lambda **k: ns.nn.DynamicTanh(4, layout="channels_first", **k),
    "SwitchableNorm": lambda **k: ns.nn.SwitchableNorm(4, **k),
    "BatchChannelNorm": lambda **k: ns.nn.BatchChannelNorm(4, 2, **k),
    "DecorrelatedBatchNorm": lambda **k: ns.nn.DecorrelatedBatchNorm(4, 2, **k),
    "IterNorm": lambda **k: ns.nn.IterNorm(4, 2, 3, **k),
    "L1BatchNorm": lambda **k: ns.nn.build(ns.catalog["BatchNorm"].but(scale="l1"), 4, **k),
    "TemporalBatchNorm": lambda **k: ns.nn.TemporalBatchNorm(3, 6, **k),
    "LlamaRMSNorm": lambda **k: ns.nn.build(ns.catalog["LlamaRMSNorm"], 3, **k),
    "LocalResponseNorm": lambda **k: ns.nn.LocalResponseNorm(3),
    "CosineLinear": lambda **k: ns.nn.CosineLinear(3, 2, **k),
    "CosineConv1d": lambda **k: ns.nn.CosineConv1d(4, 4, 3, padding=1, **k),
    **{
        f"{kind} {norm}": lambda kind=kind, norm=norm, **k: getattr(ns.nn, kind)(3, 4, norm=norm, max_steps=6, **k)
        for kind in ("LSTM", "GRU", "RNN")
        for norm in (None, "batch", "layer", "weight", "rms")
    },
    **{
        way: lambda way=way, **k: getattr(ns.nn, way)(torch.nn.Linear(3, 2, **k))
        for way in ("weight_norm", "centered_weight_norm", "weight_standardization", "spectral_norm", "cosine")
    },
}
PER_SAMPLE = ["GroupNorm", "LayerNorm", "LayerNorm2d", "RMSNorm", "GemmaRMSNorm", "LlamaRMSNorm", "PositionalNorm"]
PER_SAMPLE += ["EvoNormS0", "FilterResponseNorm", "LocalResponseNorm", "DynamicTanh", "InstanceNorm", "CosineConv1d"]
NORMS["InstanceNorm"] = lambda **k: ns.nn.InstanceNorm(4, affine=True, **k)
# while training, the gradient leaves out part of the derivative, as their papers say; their own tests hold them to it
PARTIAL = {"OnlineNorm", "EstimatedBatchNorm", "BatchChannelNorm"}
PARAMETRIZED = [name for name in NORMS if "weight" in name or name in ("spectral_norm", "cosine")]


def test_every_class_is_here():
    """What is in `normscope.nn` and takes a tensor is tested below, by its own name or by that of any rank."""
    kinds = {name.rstrip("123d") if name[-2:] in ("1d", "2d", "3d") else name for name in ns.nn.__all__}
    here = {name.split()[0].removesuffix("1d") for name in NORMS} | {"LayerNorm2d", "LayerNorm"}
    assert kinds - here == {"Norm", "build", "init"}
    assert {entry.name for entry in ENTRIES} <= here
    drop_ins = {name for name in ns.nn.__all__ if hasattr(torch.nn, name)} - {"init"}
    assert drop_ins <= EXPORTED.keys() - NO_ONNX


def made(name, dtype=F64):
    torch.manual_seed(0)
    layer = NORMS[name](dtype=dtype)
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(torch.randn_like(value) * 0.3)
    return layer


def batch(dtype=F64):
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 + 0.5


def first(output):
    """The tensor; of a recurrent layer, its outputs."""
    return output[0] if isinstance(output, tuple) else output


def frozen_state(layer):
    """The layer as a function of its input alone: every call starts from the same buffers."""
    state = {name: value.clone() for name, value in layer.state_dict(keep_vars=True).items()}

    def call(x):
        twin = {k: v if v.requires_grad else v.clone() for k, v in state.items()}
        return first(functional_call(layer, twin, (x,)))

    return call


@pytest.mark.parametrize(
    ("name", "training"), [(name, mode) for name in NORMS for mode in (True, False) if not (mode and name in PARTIAL)]
)
def test_gradients_twice(name, training):
    call = frozen_state(made(name).train(training))
    x = batch()[:3].requires_grad_()
    assert torch.autograd.gradcheck(call, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x,), fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("name", NORMS)
def test_copies_and_pickles(name):
    layer = made(name)
    layer(batch())
    twins = [copy.deepcopy(layer)]
    if name not in PARAMETRIZED:  # torch pickles the state_dict alone of what is parametrized, and says so
        twins.append(pickle.loads(pickle.dumps(layer)))
    for twin in twins:
        torch.testing.assert_close(twin.eval()(batch()), copy.deepcopy(layer).eval()(batch()))
    fresh = NORMS[name](dtype=F64)
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh.eval()(batch()), layer.eval()(batch()))


NO_MIXING = [name for name in NORMS if " " in name or name.islower() or name.startswith("Cosine")]  # matrix products


@pytest.mark.parametrize("name", [name for name in NORMS if name not in ("RMSNorm", *NO_MIXING)])
def test_half_types_keep_their_dtype(name):
    """Also by a float32 weight. torch's RMSNorm promotes then, and so does ours."""
    layer = made(name, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        assert layer(batch(dtype)).dtype is dtype
        assert copy.deepcopy(layer).eval()(batch(dtype)).dtype is dtype


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_vmap_and_per_sample_gradients(name):
    layer = made(name)
    parameters = dict(layer.named_parameters())
    x = batch()

    def loss(values, sample):
        return functional_call(layer, values, (sample[None],)).square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x)
    for n in range(2):
        one = grad(loss)(parameters, x[n])
        for key, value in one.items():
            torch.testing.assert_close(each[key][n], value)


@pytest.mark.parametrize("name", NORMS)
def test_fx_keeps_the_layer_whole(name):
    layer = made(name).eval()
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert calls == ["0"] or isinstance(layer, torch.nn.Linear)  # torch looks into its parametrized layers
    torch.testing.assert_close(graph(batch()), layer(batch()))


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_checkpointing_changes_nothing(name, reentrant):
    """Three batches go through before the first comes back, and a fourth equals the first."""
    found = []
    for checkpointed in (False, True):
        layer, total = made(name), 0.0
        inputs = [(batch() * scale + shift).requires_grad_() for scale, shift in ((1, 0), (2, 1), (0.5, -1), (1, 0))]
        for x in inputs:
            y = first(checkpoint(layer, x, use_reentrant=reentrant) if checkpointed else layer(x))
            total = total + (y * torch.linspace(-1, 2, y.numel(), dtype=F64).view(y.shape)).sum()
        total.backward()
        found.append([[x.grad for x in inputs], [p.grad for p in layer.parameters()], layer.state_dict()])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchRenorm", "EstimatedBatchNorm", "OnlineNorm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.skipif(torch.__version__ < "2.8", reason="such checkpoints teach torch's own batch norm twice, too")
def test_a_compiled_checkpoint_is_right_or_refused(name):
    torch._dynamo.reset()
    eager = made(name, torch.float32)
    layer = copy.deepcopy(eager)
    run = torch.compile(lambda x: checkpoint(layer, x, use_reentrant=False).sin(), backend="aot_eager")
    x, y = (batch(torch.float32).requires_grad_() for _ in range(2))
    if name == "BatchNorm1d":
        eager(x).sin().sum().backward()
        run(y).sum().backward()
        torch.testing.assert_close(y.grad, x.grad)
        torch.testing.assert_close(layer.state_dict(), eager.state_dict())
    else:
        with pytest.raises(ns.NormscopeError, match="leave this layer outside of the checkpoint"):
            run(y).sum().backward()


def test_a_checkpoint_with_another_input_is_refused():
    layer, noise = ns.nn.BatchRenorm(4), iter(torch.randn(2, 5, 4, 3))
    y = checkpoint(lambda x: layer(x + next(noise)), batch(torch.float32).requires_grad_(), use_reentrant=False)
    with pytest.raises(ns.NormscopeError, match="let the checkpoint restore the random state"):
        y.sum().backward()


def test_notes_for_checkpoints_go_with_the_graph():
    layer = made("EstimatedBatchNorm")
    x = batch().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda held: held, lambda held: held):  # as a checkpoint sets them
        for _ in range(3):
            layer(x).sum().backward()
        outputs = [layer(x) for _ in range(2)]
    notes = past._OF_LAYER[layer.running_mean]
    assert len([one for one in notes.all if one() is not None]) == 2 == len(outputs) and not notes.without_graph
    for _ in range(past.WITHOUT_GRAPH + 3):
        with torch.no_grad():
            layer(x)
    assert len(notes.without_graph) == past.WITHOUT_GRAPH


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler does
@pytest.mark.parametrize("name", list(NORMS))
def test_compile_equals_eager(name):
    """Also the gradient: a compiled backward pass must not read again a buffer that the forward pass changed."""
    torch._dynamo.reset()
    eager = made(name, torch.float32)
    layer = copy.deepcopy(eager)
    whole = name != "OnlineNorm" or torch.__version__ >= "2.8"  # it makes a description, which breaks a graph before
    compiled = torch.compile(layer, fullgraph=whole, backend="aot_eager")
    length = 2 if " " in name else 5  # a loop over time is unrolled
    for _ in range(2):
        x, y = (batch(torch.float32)[:length].requires_grad_() for _ in range(2))
        one, other = first(eager(x)), first(compiled(y))
        torch.testing.assert_close(other, one)
        upstream = torch.randn(one.shape)
        one.backward(upstream)
        other.backward(upstream)
        torch.testing.assert_close(y.grad, x.grad)
    torch.testing.assert_close(layer.state_dict(), eager.state_dict())


EXPORTED = {
    "BatchNorm1d": (lambda: ns.nn.BatchNorm1d(4), (2, 4)),
    "BatchNorm2d": (lambda: ns.nn.BatchNorm2d(4), (2, 4, 5, 3)),
    "BatchNorm3d": (lambda: ns.nn.BatchNorm3d(4), (2, 4, 2, 3, 2)),
    "SyncBatchNorm": (lambda: ns.nn.SyncBatchNorm(4), (2, 4, 5, 3)),
    "GhostBatchNorm": (lambda: ns.nn.GhostBatchNorm(4), (2, 4, 5)),
    "FrozenBatchNorm": (lambda: ns.nn.FrozenBatchNorm(4), (2, 4, 5, 3)),
    "InstanceNorm1d": (lambda: ns.nn.InstanceNorm1d(4, affine=True), (2, 4, 5)),
    "InstanceNorm2d": (lambda: ns.nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (2, 4, 5, 3)),
    "InstanceNorm3d": (lambda: ns.nn.InstanceNorm3d(4), (2, 4, 2, 3, 2)),
    "LocalResponseNorm": (lambda: ns.nn.LocalResponseNorm(3, 0.5), (2, 4, 5, 3)),
    "weight_norm": (lambda: ns.nn.weight_norm(torch.nn.Linear(4, 3)), (2, 4)),
    "spectral_norm": (lambda: ns.nn.spectral_norm(torch.nn.Linear(4, 3)), (2, 4)),
    "IterNorm": (lambda: ns.nn.IterNorm(4), (2, 4, 5)),
    **{
        f"{kind}{said}": (lambda kind=kind, norm=norm: getattr(ns.nn, kind)(4, 3, norm=norm, max_steps=3), (2, 2, 4))
        for kind in ("LSTM", "GRU", "RNN")
        for said, norm in (("", None), (" layer", "layer"))
    },
    "GroupNorm": (lambda: ns.nn.GroupNorm(2, 4), (2, 4, 5, 3)),
    "LayerNorm": (lambda: ns.nn.LayerNorm((5, 3)), (2, 4, 5, 3)),
    "LayerNorm2d": (lambda: ns.nn.LayerNorm2d(4), (2, 4, 5, 3)),
    "RMSNorm": (lambda: ns.nn.RMSNorm(3), (2, 4, 3)),
    "GemmaRMSNorm": (lambda: ns.nn.build(ns.catalog["GemmaRMSNorm"], 3), (2, 4, 3)),
}


NO_ONNX = {"GhostBatchNorm", "FrozenBatchNorm", "GemmaRMSNorm"}  # the graph of another row


def exported(name):
    build, shape = EXPORTED[name]
    torch.manual_seed(0)
    layer = build()
    with torch.no_grad():
        for value in [*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())]:
            value.add_(torch.rand_like(value))
    return layer.eval(), torch.randn(shape)


@pytest.mark.parametrize("name", EXPORTED)
def test_export(name):
    layer, x = exported(name)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(first(program.module()(x)), first(layer(x)))


def test_what_torch_cannot_do_it_says():
    """Named in docs/norms/index.md: no pickle of what is parametrized, no vmap over ATen's recurrent loop."""
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(made("weight_norm"))
    with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::lstm"):
        vmap(made("LSTM None"))(batch()[:, None])
    with pytest.raises(RuntimeError, match="in place, were not batched"):
        vmap(made("BatchNorm1d"))(batch()[:, None])
    x = batch().requires_grad_()
    (slope,) = torch.autograd.grad(made("OnlineNorm")(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_has_no_eigen_decomposition():
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    layer = made("DecorrelatedBatchNorm", torch.float32).eval()
    with pytest.raises(Exception, match="linalg_eigh"):
        torch.onnx.export(layer, (batch(torch.float32),), dynamo=True, verbose=False)


class Together(torch.nn.Module):
    """Several layers, each with an input of its own: one export for all."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, *inputs):
        return tuple(first(layer(x)) for layer, x in zip(self.layers, inputs, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.skipif(torch.__version__ < "2.7", reason="its exporter fails on torch's own batch norm")
def test_onnx(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    names = [name for name in EXPORTED if name not in NO_ONNX]
    layers, inputs = zip(*(exported(name) for name in names), strict=True)
    model, path = Together(layers).eval(), tmp_path / "layers.onnx"
    told = [f"x{n}" for n in range(len(names))]
    torch.onnx.export(model, inputs, path, dynamo=True, input_names=told, verbose=False)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run(None, {key: x.numpy() for key, x in zip(told, inputs, strict=True)})
    for name, one, other in zip(names, found, model(*inputs), strict=True):
        torch.testing.assert_close(
            torch.from_numpy(one), other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
