"""Models and batches that are not as one would like them: each is watched, or the record says what is missing."""

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from normscope.terms.errors import ModelError, NormscopeWarning


def test_a_model_that_returns_a_dict_a_tuple_or_nothing(train, net, tmp_path):
    class Dict(net):
        def forward(self, x):
            return {"name": "logits", "logits": super().forward(x)}

    class Tuple(net):
        def forward(self, x):
            out = super().forward(x)
            return None, [out, out.exp()]

    class Nothing(net):
        def forward(self, x):
            self.out = super().forward(x)

    losses = {
        Dict: lambda out, model: out["logits"].square().mean(),
        Tuple: lambda out, model: out[1][0].square().mean(),
        Nothing: lambda out, model: model.out.square().mean(),
    }
    for kind, loss in losses.items():
        record = train(kind(), loss=loss)
        assert len(record.series("last", "gradient_norm", source="live")) == 4
        assert len(record.series("norm", "mean", source="probe")) > 0
        assert (":output" in {site.key for site in record.sites}) == (kind is not Nothing)
        for file in record.path.iterdir():
            file.unlink()


def test_modules_that_are_called_several_times_or_never(train, net, notes):
    class Loop(net):
        def __init__(self):
            super().__init__()
            self.never, self.step = nn.Linear(3, 3), nn.Linear(8, 8)

        def forward(self, x):
            h = self.first(x)
            for _ in range(3):
                h = self.norm(self.step(h))
            return self.last(h)

    record = train(Loop())
    calls = {site.call for site in record.sites if site.path == "step" and site.what == "output"}
    assert calls == {0, 1, 2}
    (note,) = notes(record)
    assert note.startswith("Nothing was seen of never at step 0: they were not called")


def test_a_model_on_two_devices(train, net, notes):
    class Two(net):
        def __init__(self):
            super().__init__()
            self.shape_only = nn.Linear(4, 4, device="meta")

        def forward(self, x):
            self.shape_only(torch.empty(8, 4, device="meta"))
            return super().forward(x)

    record = train(Two())
    assert len(record.series("first", "mean", source="live")) == 4
    assert any("shape_only" in note and "meta device" in note for note in notes(record))


def test_integer_inputs(train):
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.LayerNorm(20), nn.Linear(20, 2))
    record = train(model, batch=lambda step: torch.randint(0, 10, (8, 5)))
    indices = record.summary("0:input", 0)
    assert indices is not None and indices.low >= 0 and indices.high <= 9
    assert np.isfinite(record.series("2", "mean").values).all()


def test_integers_where_floats_belong_raise_torchs_own_error(net, tmp_path, notes):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(NormscopeWarning, match="no fixed batch"),
        pytest.raises(RuntimeError, match="dtype"),
        ns.watch(model, optimizer, tmp_path / "run"),
    ):
        model(torch.ones(8, 4, dtype=torch.long))
    record = ns.Record(tmp_path / "run")
    assert record.complete and [event.kind for event in record.events if event.kind == "crash"] == ["crash"]


def test_a_first_batch_that_is_not_finite_is_not_held_as_the_fixed_batch(train, net, notes):
    def batch(step):
        return torch.full((8, 4), float("nan")) if step == 0 else torch.randn(8, 4)

    class Frozen(net):  # so that the one bad batch does not spoil the parameters of all that follow
        def forward(self, x):
            return super().forward(torch.nan_to_num(x))

    record = train(Frozen(), batch=batch)
    assert any("not held as the fixed batch" in note for note in notes(record))
    values = record.series("first", "mean", source="probe").values
    assert len(values) and np.isfinite(values).all()


def test_nan_in_the_first_batch_is_named_with_its_place_and_step(train, net):
    record = train(net(), batch=lambda step: torch.full((8, 4), float("nan")) if step == 0 else torch.randn(8, 4))
    (first, *_) = [event for event in record.events if event.kind == "nonfinite"]
    assert first.step == 0 and first.data["site"] == "first:input"
    (finding,) = ns.diagnose(record, select="nonfinite_values")
    assert finding.since_step == 0 and "first" in finding.sites


def test_an_empty_batch_is_noted(train, notes):
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    record = train(model, batch=lambda step: torch.randn(0, 4), loss=lambda out, model: out.sum())
    assert any("hold no values" in note for note in notes(record))


@pytest.mark.parametrize("model", ["resnet", None, torch.zeros(3)])
def test_what_is_no_model(model, four_lines):
    with pytest.raises(ModelError) as caught:
        ns.watch(model)
    four_lines(caught.value)
