"""Every layout of images, the splits, and what a folder that is none of them says."""

import gzip
import io

import numpy as np
import pytest
import torch

from normscope.claims import batch_sizes, data, runner
from normscope.claims.bench import Bench, Curve, batches
from normscope.claims.models import mlp, norm_of, pre_activations, residual_mlp, resnet, vgg, vgg16
from normscope.claims.seen import saturated, shifts, unit_shift
from normscope.stats.summary import Summary
from normscope.terms.errors import DataError, SpecError

RED = np.zeros((4, 5, 3), np.uint8) + np.array([255, 0, 7], np.uint8)


def png():
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.fromarray(RED).save(file, "png")
    return file.getvalue()


def test_digits_are_split_once_and_standardized():
    split = data.images()
    assert split.x.shape == (1347, 1, 8, 8) and split.test_x.shape == (450, 1, 8, 8)
    assert split.x.mean().abs() < 1e-5 and (split.x.std() - 1).abs() < 1e-5
    assert split.rows.x.shape == (1347, 8, 8) and split.pixels.x.shape == (1347, 64, 1)
    assert torch.equal(split.rows.x[3, 2], split.x[3, 0, 2])
    assert split.first(7).x.shape[0] == 7 and split.first(7).test_x.shape[0] == 450


def test_idx_files_gzipped_or_not(tmp_path):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    for at, name in enumerate(data._IDX):
        values = pixels if "images" in name else np.array([3, 1], np.uint8)
        raw = (
            bytes([0, 0, 8, values.ndim])
            + b"".join(size.to_bytes(4, "big") for size in values.shape)
            + values.tobytes()
        )
        (tmp_path / (name + ".gz" * (at % 2))).write_bytes(gzip.compress(raw) if at % 2 else raw)
    x, y, _, test_y = data._folder(tmp_path)
    assert torch.equal(x[:, 0], torch.tensor(pixels).float()) and y.tolist() == test_y.tolist() == [3, 1]
    (tmp_path / data._IDX[0]).write_bytes(b"\0\0\x08\x03short")
    with pytest.raises(DataError, match="IDX"):
        data._folder(tmp_path)


def test_a_folder_of_pictures(tmp_path):
    picture = png()
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(picture)
    x, y, _, _ = data._folder(tmp_path)
    assert x.shape == (2, 3, 4, 5) and x[0, :, 0, 0].tolist() == [255, 0, 7] and y.tolist() == [0, 1]


def test_more_than_ten_classes_are_refused(tmp_path):
    picture = png()
    for at in range(11):
        for split in ("train", "test"):
            (tmp_path / split / f"class {at:02}").mkdir(parents=True)
            (tmp_path / split / f"class {at:02}" / "1.png").write_bytes(picture)
    with pytest.raises(DataError) as caught:
        runner.run([], bench=Bench(str(tmp_path)))
    asked, found, because, do = str(caught.value).splitlines()
    assert str(tmp_path) in asked and "11 classes" in found and "10 outputs" in because and "at most 10" in do


def test_a_claim_runs_on_a_folder_of_pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    turns = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("dark", "light"):
            (tmp_path / split / name).mkdir(parents=True)
            for at in range(40):
                pixels = turns.integers(0, 120, (8, 8, 3)).astype(np.uint8) + (120 if name == "light" else 0)
                image.fromarray(pixels.astype(np.uint8)).save(tmp_path / split / name / f"{at}.png")
    bench = Bench(str(tmp_path))
    assert bench.images.x.shape == (80, 3, 8, 8)
    told = batch_sizes.run({"arm": "BatchNorm", "batch": 8, "epochs": 2, "samples": 80, "seed": 0}, bench)
    assert told["final"] > 0.9


def test_parquet_of_the_hub(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"img": [{"bytes": png(), "path": None}] * 2, "label": [4, 2]})
    for name in ("train", "test"):
        frame.to_parquet(tmp_path / f"{name}.parquet")
    x, y, _, _ = data._folder(tmp_path)
    assert x.shape == (2, 3, 4, 5) and y.tolist() == [4, 2]


def test_a_folder_of_something_else_says_what_is_read(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as caught:
        data.images(str(tmp_path))
    assert "  found    notes.txt\n" in str(caught.value) and "train.parquet" in str(caught.value)


def test_the_long_lag_task_hides_its_class_in_the_first_step():
    split = data.far_apart(20, 30)
    assert torch.equal(split.y, (split.x[:, 0, 0] > 0).long())
    assert split.x[:, 0, 1].eq(1).all() and split.x[:, 1:, 1].eq(0).all()
    assert torch.equal(split.x, data.far_apart(20, 30).x)


# the bench -----------------------------------------------------------------------------------------------------------


def test_arms_of_one_seed_see_the_same_batches_and_start_from_the_same_weights():
    bench, seen, starts = Bench(), {}, {}
    for norm in ("none", "BatchNorm"):

        def build(norm=norm):
            model = mlp(64, depth=2, width=8, norm=norm)
            starts[norm] = model[1].weight.detach().clone()
            model.register_forward_pre_hook(lambda module, args: seen.setdefault(norm, []).append(args[0].sum().item()))
            return model

        bench.train(build, seed=3, rate=0.01, epochs=1)
    assert seen["none"] == seen["BatchNorm"] and torch.equal(starts["none"], starts["BatchNorm"])


def test_the_same_seed_gives_the_same_curve_and_a_wild_rate_diverges():
    bench = Bench()
    one, other = (bench.train(lambda: mlp(64, depth=2, width=16), seed=1, rate=0.05, epochs=2)[1] for _ in range(2))
    assert one.accuracy == other.accuracy and one.final > 0.5 and len(one.accuracy) == 3
    wild = bench.train(lambda: mlp(64, depth=2, width=16), seed=1, rate=1e4, epochs=3)[1]
    assert wild.diverged and wild.final == 0.1 and len(wild.accuracy) == 4 and len(wild.loss) == 3
    assert wild.epochs_to(0.5) == 4.0


def test_epochs_to_an_accuracy_are_interpolated():
    curve = Curve((1.0, 1.0), (0.1, 0.5, 0.9), False, 0.0)
    assert [curve.epochs_to(target) for target in (0.05, 0.3, 0.5, 0.7, 0.95)] == pytest.approx([0, 0.5, 1, 1.5, 3])


def test_sorted_batches_hold_neighbouring_classes_and_every_sample_once():
    labels = torch.arange(40) % 4
    groups = batches(labels, 10, "sorted", torch.Generator().manual_seed(0))
    assert [labels[group].unique().tolist() for group in groups] == [[0], [1], [2], [3]]
    assert torch.cat(groups).unique().numel() == 40


@pytest.mark.parametrize("norm", ["none", "BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "weight_norm"])
def test_networks_take_any_norm(norm):
    images = torch.randn(6, 1, 8, 8)
    if norm != "InstanceNorm":
        assert mlp(64, depth=3, width=16, norm=norm)(images).shape == (6, 10)
        assert residual_mlp(64, depth=4, width=16, norm=norm)(images).shape == (6, 10)
    assert vgg(1, depth=2, width=8, norm=norm)(images).shape == (6, 10)


@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (16, 8), (64, 8), (6, 1), (12, 2)])
def test_groups_divide_the_channels_and_hold_two_or_more(channels, groups):
    assert norm_of("GroupNorm", channels).spec.groups == groups


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_residual_networks_have_the_papers_size(depth, parameters):
    """0.27, 0.85 and 1.7 million (He et al. 2016, table 6); our convolutions keep a bias, which the norm makes idle."""
    model = resnet(3, depth=depth, norm="BatchNorm")
    convolutions = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convolutions) == depth - 1
    idle = sum(layer.out_channels for layer in convolutions)
    assert sum(p.numel() for p in model.parameters()) - idle == parameters
    if depth == 20:
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_residual_network_of_any_other_depth_is_refused():
    with pytest.raises(SpecError, match="6n \\+ 2"):
        resnet(3, depth=21)


def test_vgg_16_has_thirteen_convolutions_and_pools_what_there_is():
    for side, pools in ((8, 3), (32, 5)):
        model = vgg16(1, side, width=2, norm="GroupNorm + WS")
        assert sum(isinstance(layer, torch.nn.Conv2d) for layer in model) == 13
        assert sum(isinstance(layer, torch.nn.MaxPool2d) for layer in model) == pools
        assert model(torch.randn(2, 1, side, side)).shape == (2, 10)


def test_a_followed_training_is_the_training():
    bench, build = Bench(), lambda: mlp(64, depth=2, width=16, activation="tanh", norm="BatchNorm")
    _, plain = bench.train(build, seed=1, rate=0.05, epochs=1)
    last = bench.last_step(epochs=1)

    def read(record):
        return shifts(record), saturated(record), record.steps.tolist()

    seen, (moved, ends, steps) = bench.follow(
        build, read, at=lambda step: step == last, probe=bench.images.test_x[:64], seed=1, rate=0.05, epochs=1
    )
    assert seen.accuracy == plain.accuracy and seen.loss == plain.loss
    assert steps == [0, last] and len(moved) == len(ends) == 2
    torch.manual_seed(1)
    start = build()
    given = pre_activations(start, bench.images.test_x[:64])
    assert ends[0][0] == pytest.approx((given[0].abs() > 2.1783).float().mean().item(), abs=0.02)
    assert all(0 < each < 3 for each in moved)


def test_unit_shift_is_in_the_units_own_deviations():
    then, now = torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 3.0]]), torch.tensor([[1.0, 6.0, 2.0], [3.0, 6.0, 8.0]])
    moved = unit_shift(Summary.of(now, channel_axis=1), Summary.of(then, channel_axis=1))
    assert moved == pytest.approx((1 / 2**0.5 + 3 / 2**0.5) / 2)


def test_pre_activations_are_what_the_activations_are_given():
    model = mlp(64, depth=2, width=8, norm="BatchNorm")
    x = torch.randn(16, 1, 8, 8)
    given = pre_activations(model, x)
    assert len(given) == 2
    assert all(layer.mean(0).abs().max() < 1e-5 for layer in given)
    assert model[2].state["num_batches_tracked"] == 0
