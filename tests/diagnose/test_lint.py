"""The rules for a model at rest, on data flow that order of registration would get wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normscope.diagnose.engine import lint
from normscope.terms.errors import DataError, ModelError


def sites(model, code, **known):
    found = lint(model, select=code, **known)
    assert not found.faults
    return set(found[0].sites) if found else set()


class Wired(nn.Module):
    """A forward pass of its own over parts given by name."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


def conv(**more):
    return nn.Conv2d(4, 4, 3, padding=1, **more)


IMAGES = torch.zeros(4, 4, 6, 6)


@pytest.mark.parametrize("example", [None, IMAGES], ids=["read", "run"])
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Wired(lambda m, x: m.norm(m.conv(x)), norm=nn.BatchNorm2d(4), conv=conv()), {"conv"}),
        (Wired(lambda m, x: F.relu(m.norm(m.conv(x))), norm=nn.BatchNorm2d(4), conv=conv()), {"conv"}),
        (Wired(lambda m, x: m.norm(F.relu(m.conv(x))), norm=nn.BatchNorm2d(4), conv=conv()), set()),
        (Wired(lambda m, x: (y := m.conv(x)) + m.norm(y), norm=nn.BatchNorm2d(4), conv=conv()), set()),
        (
            Wired(lambda m, x: m.b(y := m.conv(x)) + m.a(y), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4), conv=conv()),
            {"conv"},
        ),
        (Wired(lambda m, x: [y := m.conv(x), m.norm(y)][1] + 0 * y.sum(), norm=nn.BatchNorm2d(4), conv=conv()), set()),
        (Wired(lambda m, x: (y := m.conv(x), m.norm(y)), norm=nn.BatchNorm2d(4), conv=conv()), set()),  # it is returned
        (Wired(lambda m, x: m.norm(m.drop(m.conv(x))), norm=nn.BatchNorm2d(4), conv=conv(), drop=nn.Dropout()), set()),
        (
            Wired(lambda m, x: m.norm(m.same(m.conv(x))), norm=nn.BatchNorm2d(4), conv=conv(), same=nn.Identity()),
            {"conv"},
        ),
        (Wired(lambda m, x: m.conv(m.norm(m.conv(x))), norm=nn.BatchNorm2d(4), conv=conv()), set()),  # its second call
        (nn.Sequential(conv(), nn.GroupNorm(4, 4)), {"0"}),  # one channel a group
        (nn.Sequential(conv(), nn.GroupNorm(2, 4)), set()),
        (nn.Sequential(conv(), nn.InstanceNorm2d(4)), {"0"}),
        (nn.Sequential(conv(), nn.LayerNorm(6)), set()),
        (nn.Sequential(conv(bias=False), nn.BatchNorm2d(4)), set()),
    ],
)
def test_a_bias_is_cancelled_when_every_reader_subtracts_the_mean_of_its_channel(model, expected, example):
    assert sites(model, "NS101", example=example) == expected


def test_removing_what_is_called_cancelled_changes_nothing():
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.GroupNorm(4, 4))
    (found,) = lint(model, select="NS101")
    x = torch.randn(4, 4, 6, 6)
    before = model(x)
    for path in found.sites:
        nn.init.normal_(model.get_submodule(path).bias, std=3.0)
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)


def test_the_features_of_a_linear_layer_are_its_last_axis():
    flat = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    assert sites(flat, "NS101", example=torch.zeros(4, 6)) == {"0"}
    assert sites(flat, "NS101", example=torch.zeros(4, 6, 6)) == set()  # there the norm's channels are the second axis
    assert sites(nn.Sequential(nn.Linear(6, 6), nn.InstanceNorm1d(6)), "NS101", example=torch.zeros(4, 6, 6)) == set()


def test_an_example_that_does_not_fit_is_an_error_and_no_fault():
    with pytest.raises(DataError, match="no model can be called with"):
        lint(nn.Sequential(conv()), example=())
    with pytest.raises(ModelError, match="was run on a batch and raised"):
        lint(nn.Sequential(conv()), example=torch.zeros(4, 5, 6, 6))


def test_a_flow_that_cannot_be_read_is_no_finding():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) if float(x.sum()) >= 0 else x

    assert sites(Loop(), "NS101") == set()
    assert sites(Loop(), "NS101", example=IMAGES) == {"conv"}


@pytest.mark.parametrize(
    ("batch", "severity"),
    [(1, "warning"), (2, "warning"), (4, "warning"), (5, "note"), (8, "note"), (9, None), (32, None)],
)
def test_how_bad_a_batch_is_depends_on_its_size(batch, severity):
    found = lint(nn.Sequential(conv(), nn.BatchNorm2d(4)), select="NS102", batch_size=batch)
    assert [one.severity for one in found] == ([severity] if severity else [])


def test_a_single_value_behind_a_channel_is_an_error_as_it_is_in_torch():
    vectors = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        vectors(torch.zeros(1, 6))
    assert lint(vectors, select="NS102", batch_size=1)[0].severity == "error"
    pooled = nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    assert lint(pooled, select="NS102", example=IMAGES, batch_size=1)[0].severity == "error"
    (found,) = lint(nn.Sequential(conv(), nn.BatchNorm2d(4)), select="NS102", example=IMAGES[:1])
    assert found.severity == "note", "an example need not be a training batch"
    assert "if training batches are like the example" in found.message


def test_only_statistics_over_this_devices_batch_suffer():
    for norm in (nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.SyncBatchNorm(4)):
        assert sites(nn.Sequential(conv(), norm), "NS102", batch_size=2) == set()
    frozen = nn.BatchNorm2d(4).requires_grad_(False).eval()
    assert sites(nn.Sequential(conv(), frozen), "NS102", batch_size=2) == set()
    assert sites(nn.Sequential(conv(), nn.BatchNorm2d(4)), "NS102") == set()  # nothing is known of the batch


def test_maps_get_group_norm_and_vectors_layer_norm():
    both = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8))
    (found,) = lint(both, select="NS102", batch_size=4)
    assert [(one.treatment, one.sites, dict(one.arguments)) for one in found.prescriptions] == [
        ("convert", ("1",), {"to": "GroupNorm"}),
        ("convert", ("4",), {"to": "LayerNorm"}),
        ("", (), {}),
    ]
    assert found.message == (
        "2 normalizations take their statistics from batches of 4: "
        "the mean of a channel is off by 50% of its deviation by chance."
    )
