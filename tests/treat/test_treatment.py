"""`treat`: what it reads, and that a model is left alone when it is copied, refused, or broken half way."""

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import normscope as ns
from normscope.terms.finding import Diagnosis, Evidence, Finding, Prescription
from normscope.treat import treatment
from normscope.treat.measure import difference
from normscope.treat.treatment import Change, Treated, Treatment, treat, treatments
from normscope.treat.treatments.convert import convert
from normscope.treat.treatments.recalibrate import recalibrate

NORMS = {
    "BatchNorm": nn.BatchNorm2d,
    "GroupNorm": lambda channels: nn.GroupNorm(2, channels),
    "InstanceNorm": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "none": lambda channels: nn.Identity(),
}
ACTIVATIONS = [nn.ReLU, nn.Tanh, lambda: nn.ReLU(inplace=True), nn.GELU, nn.PReLU]


class Drawn(nn.Module):
    """A small image network with residuals, a module registered twice, and an activation that is called everywhere."""

    def __init__(self, blocks, activation, bias, dtype=torch.float64):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=bias), norm=NORMS[norm](4), act=activation()
                )
            )
            for norm, groups, _ in blocks
        )
        self.residual = [residual for *_, residual in blocks]
        self.act = activation()
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3)
        )
        self.last = nn.Linear(6, 2)
        self.also = self.blocks[0]
        self.to(dtype)
        for module in self.modules():
            if getattr(module, "running_mean", None) is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.3)
                nn.init.normal_(module.bias)

    def forward(self, x):
        x = self.act(self.stem(x))
        for block, residual in zip(self.blocks, self.residual):
            x = self.act(x + block(x)) if residual else block(x)
        return self.last(self.head(self.also(x)))


blocks = st.lists(
    st.tuples(st.sampled_from(sorted(NORMS)), st.sampled_from([1, 2, 4]), st.booleans()), min_size=1, max_size=3
)


@st.composite
def networks(draw):
    torch.manual_seed(draw(st.integers(0, 1000)))
    return Drawn(draw(blocks), draw(st.sampled_from(ACTIVATIONS)), draw(st.booleans())).train(draw(st.booleans()))


def batch(n=6):
    return torch.randn(n, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def fingerprint(model):
    """Everything of a model that a treatment could change: tensors bit for bit, identities, hooks, modes, classes."""
    tensors = [
        (name, id(t), t.detach().clone(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()
    ]
    modules = [
        (name, id(module), type(module), module.training, dict(module._forward_hooks), dict(module._forward_pre_hooks))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    return tensors, modules


def same(one, other):
    tensors = zip(one[0], other[0], strict=True)
    return one[1] == other[1] and all(a[:2] == b[:2] and a[3] == b[3] and torch.equal(a[2], b[2]) for a, b in tensors)


few = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
prescriptions = st.sampled_from(
    [
        Prescription("insert_norm"),
        Prescription("insert_norm", arguments={"norm": "GroupNorm", "position": "after"}),
        Prescription("reinitialize", arguments={"seed": 3}),
        Prescription("recalibrate"),
        Prescription("remove_bias"),
        Prescription("convert", arguments={"to": "GroupNorm"}),
        Prescription("convert", arguments={"to": "BatchNorm"}),
        Prescription("convert", arguments={"to": "GroupNorm+WS"}),
        Prescription("convert", arguments={"to": "none"}),
        Prescription("freeze"),
        Prescription("fold"),
        Prescription("adapt", arguments={"mode": "ema"}),
        Prescription("zero_residuals"),
        Prescription("initialize_on_data", arguments={"method": "lsuv", "seed": 1}),
    ]
)


@few
@given(networks(), prescriptions)
def test_a_copy_is_treated_and_the_original_is_bitwise_untouched(model, prescription):
    model.register_forward_hook(lambda *_: None)
    before = fingerprint(model)
    treated = treat(model, prescription, data=batch())
    assert treated.model is not model and same(fingerprint(model), before)
    treated.model(batch())
    assert same(fingerprint(model), before)
    if prescription.treatment not in ("fold", "adapt"):  # which are for inference
        treated.model(batch()).sum().backward()
        assert same(fingerprint(model), before)
        assert treated.model.training == model.training
    assert set(treated.parameters) == {name for name, _ in model.named_parameters()}
    now = dict(treated.model.named_parameters(remove_duplicate=False))
    assert set(filter(None, treated.parameters.values())) <= now.keys()
    old = dict(model.named_parameters())
    if prescription.treatment in ("freeze", "remove_bias", "insert_norm", "convert"):  # the same numbers, or gone
        kept = {name: new for name, new in treated.parameters.items() if new is not None}
        assert all(old[name].shape == now[new].shape for name, new in kept.items())
        assert prescription.treatment == "remove_bias" or "stem.bias" not in old or "stem.bias" in kept


@few
@given(networks())
def test_what_is_exact_computes_the_same_in_evaluation_mode(model):
    wanted = copy.deepcopy(model).eval()(batch())
    for prescription in (
        Prescription("fold"),
        Prescription("remove_bias"),
        Prescription("freeze"),
        Prescription("convert", arguments={"to": "FrozenBatchNorm"}),
        Prescription("convert", arguments={"to": "BatchRenorm"}),
    ):
        treated = treat(model, prescription, data=batch())
        if treated.preserves == "exact":
            assert difference(treated.model.eval()(batch()), wanted) < 1e-9
            assert treated.error is None or treated.error < 1e-9


@settings(few, max_examples=8)
@given(networks())
def test_nothing_changes_when_a_treatment_is_refused(model):
    before = fingerprint(model)
    refused = [
        Prescription("insert_norm", ("nowhere",)),
        Prescription("convert", arguments={"to": "NoNorm"}),
        Prescription("recalibrate", arguments={"estimator": "none"}),
        Prescription("initialize_on_data", ("stem",)),
        Prescription("suit_stream"),
    ]
    for prescription in refused:
        with pytest.raises(ns.NormscopeError):
            treat(model, prescription, data=batch(), inplace=True)
        assert same(fingerprint(model), before)


@few
@given(networks(), prescriptions, st.booleans())
def test_a_treatment_that_breaks_half_way_leaves_the_model_as_it_was(model, prescription, inplace):
    def broken(patient, sites, *, data=None):
        raise RuntimeError("the scalpel broke")

    before = fingerprint(model)
    handle = model.blocks[0].norm.register_forward_hook(lambda *_: None)
    handle.remove()
    with pytest.MonkeyPatch.context() as patch:
        known = {**treatments(), "broken": Treatment("broken", "exact", broken)}
        patch.setattr(treatment, "treatments", lambda: known)
        with pytest.raises(ns.NormscopeError, match="broke off") as refused:
            treat(model, [prescription, Prescription("broken")], data=batch(), inplace=inplace)
    assert "the scalpel broke" in refused.value.found
    assert same(fingerprint(model), before)


@few
@given(networks(), st.sampled_from(["BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm", "InstanceNorm"]), st.booleans())
def test_conversion_is_idempotent(model, to, fitting):
    once = convert(model, to, data=batch() if fitting else None)
    twice = convert(once.model, to, data=batch() if fitting else None)
    assert twice.changes == () and twice.preserves == "exact"
    x = batch()
    assert torch.equal(once.model.eval()(x), twice.model.eval()(x))


@few
@given(networks())
def test_to_frozen_batch_norm_and_back_is_exact(model):
    frozen = convert(model, "FrozenBatchNorm", where=lambda site: site.kind.startswith("BatchNorm"))
    back = convert(frozen.model, "BatchNorm", where=[change.site for change in frozen.changes])
    assert frozen.preserves == back.preserves == "exact"
    assert len(frozen.changes) == len(back.changes) > 0
    held = [frozen.model.get_submodule(change.site) for change in frozen.changes]
    assert not any(parameter.requires_grad for norm in held for parameter in norm.parameters())
    x, wanted = batch(), copy.deepcopy(model).eval()(batch())
    assert difference(frozen.model.eval()(x), wanted) < 1e-12
    assert difference(back.model.eval()(x), wanted) < 1e-12
    state, returned = model.state_dict(), back.model.state_dict()
    assert all(torch.equal(state[key], returned[key]) for key in state if "num_batches" not in key)
    assert [p.requires_grad for p in back.model.parameters()] == [p.requires_grad for p in model.parameters()]
    torch.manual_seed(0)
    trained = back.model.train()(x)
    torch.manual_seed(0)
    assert difference(trained, copy.deepcopy(model).train()(x)) < 1e-9


def test_in_place_the_same_model_comes_back():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    assert treat(model, Prescription("insert_norm"), inplace=True).model is model


def finding(code, *prescribed, caused_by=()):
    return Finding(
        code, code, "error", ("0",), code, Evidence("x", 1, 0), prescriptions=prescribed, caused_by=caused_by
    )


def test_what_is_prescribed():
    words = Prescription("", words="lower the learning rate")
    first, second = Prescription("reinitialize"), Prescription("insert_norm")
    root = finding("NS201", words, first, second)
    diagnosis = Diagnosis((finding("NS202", second, caused_by=("NS201",)), root))
    assert treatment.prescribed(diagnosis) == treatment.prescribed(root) == (first,)
    assert treatment.prescribed([second, first]) == (second, first)
    assert treatment.prescribed(finding("NS203", words)) == (words,)
    assert treatment.prescribed(Diagnosis()) == ()
    with pytest.raises(ns.NormscopeError, match="Something else than prescriptions"):
        treatment.prescribed([root, "insert_norm"])  # pyright: ignore


def test_words_alone_are_skipped_with_the_words_as_the_reason():
    model = nn.Linear(1, 1)
    treated = treat(model, Prescription("", words="lower the learning rate"))
    assert treated.skipped == (("", "lower the learning rate"),) and treated.changes == ()


def test_an_unknown_treatment_is_an_error_with_the_known_ones():
    with pytest.raises(ns.NormscopeError) as unknown:
        treat(nn.Linear(1, 1), Prescription("insert_nrom"))
    assert isinstance(unknown.value, LookupError)
    assert str(unknown.value).splitlines()[1:] == [
        "  found    `insert_nrom`",
        "  because  a treatment is a file under normscope/treat/treatments",
        f"  do       did you mean `insert_norm`? choose one of {', '.join(sorted(treatments()))}",
    ]


def test_an_argument_that_a_treatment_does_not_know_refuses_it():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    with pytest.raises(ns.NormscopeError, match="broke off") as refused:
        treat(model, Prescription("insert_norm", arguments={"nrom": "BatchNorm"}), inplace=True)
    assert "unexpected keyword argument 'nrom'" in refused.value.found and isinstance(model[1], nn.Tanh)


def test_a_site_that_is_none_is_an_error():
    with pytest.raises(ns.NormscopeError, match="asked for at `encoder`"):
        treat(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), Prescription("insert_norm", ("encoder",)))
    with pytest.raises(ns.NormscopeError, match="asked for at `encoder`"):
        convert(nn.Sequential(nn.BatchNorm1d(2)), "LayerNorm", where="encoder")


def test_a_model_that_cannot_be_copied_says_so():
    model = nn.Linear(1, 1)
    model.lock = open(__file__)  # noqa: SIM115
    with pytest.raises(ns.NormscopeError, match="A copy of Linear") as error:
        treat(model, Prescription("remove_bias"))
    assert "inplace=True" in error.value.do
    model.lock.close()


@pytest.mark.parametrize("name", sorted(treatments()))
def test_every_treatment_says_what_it_does_and_what_it_preserves(name):
    module = __import__(f"normscope.treat.treatments.{name}", fromlist=["TREATMENT"])
    assert module.TREATMENT.name == name
    assert module.TREATMENT.preserves in ("exact", "approximate", "nothing")
    assert "preserve" in module.__doc__ and len(module.__doc__) > 200


def test_treated_reads_as_json():
    treated = Treated(nn.Linear(1, 1), (Change("fc", "a", "b"),), "approximate", 0.1, (("bn", "no"),))
    assert treated.to_dict() == {
        "changes": [{"site": "fc", "before": "a", "after": "b"}],
        "preserves": "approximate",
        "error": 0.1,
        "skipped": [["bn", "no"]],
    }


def test_several_treatments_in_order():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    data = [torch.randn(16, 4) for _ in range(3)]
    done = treat(model, [Prescription("insert_norm"), Prescription("recalibrate")], data=data)
    assert [change.site for change in done.changes] == ["1", "", "1.norm"] and done.preserves == "nothing"
    assert recalibrate(done.model, data, inplace=False).error == pytest.approx(done.error)


class _Remembering(nn.Module):
    """Keeps what it computed, in an attribute and in a cache; `copy.deepcopy` refuses such a model."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.cache = {}

    def forward(self, x):
        self.last = self.layer(x)
        self.cache["last"] = self.last
        return self.norm(self.last)


def test_a_model_that_keeps_what_it_computed_is_treated_on_a_copy():
    model, x = _Remembering().eval(), torch.randn(2, 1, 5, 5)
    answer = model(x)
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(model)
    treated = ns.fold(model, x)
    torch.testing.assert_close(treated.model(x), answer)
    assert model.cache["last"] is model.last
    assert model.last.grad_fn is not None
