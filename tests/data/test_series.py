"""Vectors and series under a user's view: the laws of the views, training, resuming, scores, and refusals."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_wine

from sagkit.data.load import make_shapes
from sagkit.data.series import WAVE_CLASSES, SeriesView, TableView, VectorSet, stretch, waves
from sagkit.metrics.evaluate import evaluate
from sagkit.metrics.labelfree import structure_score
from sagkit.metrics.semantic import rank_correlation
from sagkit.model import extract_features, make_encoder
from sagkit.train.build import build_encoder
from sagkit.train.config import configure
from sagkit.train.record import load_encoder, save_encoder
from sagkit.train.trainer import fit, replay


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def keep(x, generator):
    return x


def wine(view=None) -> VectorSet:
    x, y = load_wine(return_X_y=True)
    return VectorSet(x, view or TableView(x), y, ("a", "b", "c"))


def settings(tmp_path, method="sag-vicreg", **fields):
    small = {
        "encoder": "mlp-w16-l2",
        "projector_hidden": 16,
        "projector_out": 16,
        "batch_size": 32,
        "epochs": 3,
        "k": 4,
        "walk_start": 0.0,
        "precision": "32-true",
        "accelerator": "cpu",
        "resamplings": 0,
        "data": "wine",
        "results": str(tmp_path / "results"),
        "runs": str(tmp_path / "runs"),
    }
    return configure(method, "vectors", **{**small, **fields})


# The views


def test_a_table_view_replaces_the_asked_share_of_cells_by_values_of_their_column():
    bank = torch.stack([torch.arange(50.0), 100 + torch.arange(50.0)], dim=1)
    x = torch.full((20_000, 2), -1.0)
    seen = TableView(bank, mask=0.3, noise=0.0)(x, stream(0))
    for column, values in enumerate(bank.T):
        replaced = seen[:, column][seen[:, column] != -1]
        assert stats.binomtest(len(replaced), len(x), 0.3).pvalue > 1e-4
        counts = [int((replaced == value).sum()) for value in values]
        assert sum(counts) == len(replaced), "a value of another column, or of no row"
        assert stats.chisquare(counts).pvalue > 1e-4
    both = (seen != -1).all(dim=1).float().mean()
    assert float(both) == pytest.approx(0.09, abs=0.01)  # cells are drawn apart
    agree = (seen[:, 1] - seen[:, 0] == 100)[(seen != -1).all(dim=1)].float().mean()
    assert float(agree) == pytest.approx(1 / 50, abs=0.02)  # and from rows drawn apart


def test_noise_is_in_standard_deviations_of_the_column_and_leaves_constant_columns_alone():
    bank = torch.tensor([[0.0, 5.0, 1000.0], [2.0, 5.0, 3000.0]])  # deviations 1, 0, 1000
    seen = TableView(bank, mask=0.0, noise=0.1)(torch.zeros(50_000, 3), stream(1))
    np.testing.assert_allclose(seen.std(dim=0), [0.1, 0.0, 100.0], rtol=0.02)
    np.testing.assert_allclose(seen.mean(dim=0), [0, 0, 0], atol=2)


def test_a_stretched_window_is_numpys_interpolation():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(5, 2, 33))).float()
    start, share = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.75]), torch.tensor([1.0, 0.5, 0.3, 0.1, 0.25])
    found = stretch(x, start, share)
    for i in range(5):
        places = 32 * np.linspace(float(start[i]), float(start[i] + share[i]), 33)
        for channel in range(2):
            expected = np.interp(places, np.arange(33), x[i, channel].numpy())
            np.testing.assert_allclose(found[i, channel], expected, atol=1e-5)
    torch.testing.assert_close(found[0], x[0])  # the whole window is the series


def test_a_series_view_crops_scales_and_jitters_within_its_ranges():
    ramp = torch.linspace(0, 1, 101).expand(4000, 1, 101)
    seen = SeriesView(crop=(0.5, 0.8), scale=0.0, jitter=0.0)(ramp, stream(2))[:, 0]
    share, start = seen[:, -1] - seen[:, 0], seen[:, 0]
    assert stats.kstest(share, stats.uniform(0.5, 0.3).cdf).pvalue > 1e-4
    assert stats.kstest(start / (1 - share), stats.uniform(0, 1).cdf).pvalue > 1e-4
    flat = SeriesView(crop=(1.0, 1.0), scale=0.2, jitter=0.0)(torch.ones(4000, 2, 9), stream(3))
    assert stats.kstest(flat[:, 0, 0], stats.uniform(0.8, 0.4).cdf).pvalue > 1e-4
    assert float((flat - flat[:, :1, :1]).abs().max()) < 1e-6  # one factor a series
    loud = torch.cat([torch.ones(300, 1, 200), 10 * torch.ones(300, 1, 200)], dim=1) * (torch.arange(200) % 2 * 2.0 - 1)
    noise = SeriesView(crop=(1.0, 1.0), scale=0.0, jitter=0.1)(loud, stream(4)) - loud
    np.testing.assert_allclose(noise.std(dim=(0, 2)), [0.1, 1.0], rtol=0.02)


@pytest.mark.parametrize("view", [TableView(torch.randn(9, 4)), SeriesView()])
def test_views_repeat_by_generator_and_change_nothing_in_place(view):
    x = torch.randn(6, 4) if isinstance(view, TableView) else torch.randn(6, 4, 20)
    before = x.clone()
    assert torch.equal(view(x, stream(0)), view(x, stream(0)))
    assert not torch.equal(view(x, stream(0)), view(x, stream(1)))
    assert torch.equal(x, before)


# Sets


def test_columns_of_any_scale_are_standardised_and_constant_ones_do_no_harm(tmp_path):
    x = torch.tensor([[2020.0, 7.0, 1e-6], [2024.0, 7.0, 3e-6], [2028.0, 7.0, 2e-6]])
    mean, std = VectorSet(x, keep).statistics()
    torch.testing.assert_close(mean, torch.tensor([2024.0, 7.0, 2e-6]))
    torch.testing.assert_close(std, torch.tensor([(32 / 3) ** 0.5, 1.0, (2 / 3) ** 0.5 * 1e-6]))
    # Stored, the statistics are whole: in float16 years lose their differences, and 1e-6 becomes 0.
    encoder = make_encoder("mlp-w8-l1", mean, std).eval()
    save_encoder(tmp_path / "e", encoder, "mlp-w8-l1")
    loaded = load_encoder(tmp_path / "e")
    torch.testing.assert_close(extract_features(loaded, x), extract_features(encoder, x), rtol=1e-2, atol=1e-3)
    series = torch.randn(5, 3, 40) * torch.tensor([1.0, 10.0, 100.0])[:, None]
    np.testing.assert_allclose(
        VectorSet(series, keep).statistics()[1],
        series.permute(1, 0, 2).flatten(1).std(dim=1, unbiased=False),
        rtol=1e-5,
    )


def test_a_subset_keeps_rows_together():
    rows = wine().subset([3, 100])
    np.testing.assert_allclose(rows.values, load_wine().data[[3, 100]], rtol=1e-6)
    assert rows.labels.tolist() == load_wine().target[[3, 100]].tolist()


X = torch.randn(10, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.randn(4), keep), r"values must be numbers \(N, F\) or \(N, C, T\) with N >= 1, got \(4,\)"),
        ((torch.randn(2, 3, 4, 5), keep), r"got \(2, 3, 4, 5\)"),
        ((torch.zeros(0, 4), keep), r"N >= 1, got \(0, 4\)"),
        ((torch.tensor([[1.0, 2.0], [np.nan, np.inf]]), keep), "2 numbers that are not finite, the first in row 1"),
        ((X, lambda x, g: x[:, :2]), r"view makes torch.float32 \(8, 2\) of float32 \(8, 4\)"),
        ((X, lambda x, g: x[:5]), r"view makes torch.float32 \(5, 4\)"),
        ((X, lambda x, g: x.double()), "view makes torch.float64"),
        ((X, lambda x, g: x.numpy()), "view makes ndarray"),
        ((X, lambda x, g: x / 0), "a view's values hold 32 numbers that are not finite"),
        ((X, TableView(torch.randn(9, 3))), r"rows of \(4,\) columns and a bank of \(3,\)"),
        ((X, keep, torch.zeros(9, dtype=torch.int64), ("a",)), r"labels must be int64 \(10,\)"),
        ((X, keep, torch.ones(10, dtype=torch.int64), ("a",)), r"labels must lie in \[0, 0\]"),
    ],
)
def test_sets_refuse(arguments, words):
    with pytest.raises(ValueError, match=words) as refusal:
        VectorSet(*arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TableView(X, mask=1.5), r"mask must be in \[0, 1\], got 1.5"),
        (lambda: TableView(X, noise=-1), "noise must be at least 0, got -1"),
        (lambda: TableView(torch.zeros(0, 3)), "M >= 1"),
        (lambda: SeriesView(crop=(0.0, 1.0)), r"crop must be in \(0, 1\], got 0.0"),
        (lambda: SeriesView(crop=(0.9, 0.5)), "crop must be a range"),
        (lambda: SeriesView(scale=1.0), r"scale must be in \[0, 1\), got 1.0"),
        (lambda: TableView(torch.tensor([[1.0, np.nan]])), "bank hold 1 numbers that are not finite"),
        (lambda: waves(10, length=16), "length must be at least 32, got 16"),
        (lambda: SeriesView(jitter=float("nan")), "jitter must be at least 0, got nan"),
        (lambda: SeriesView(crop=(0.9, 0.5)), "crop must be a range within"),
        (lambda: TableView(X, noise=float("inf")), "noise must be at least 0, got inf"),
        (lambda: waves(10, seed=-1), "seed must be at least 0, got -1"),
        (lambda: waves(0), "n must be at least 1, got 0"),
    ],
)
def test_views_refuse(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# Training


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoder": "resnet10-w16"}, "resnet10-w16 encodes images: of vectors, use mlp"),
        ({"encoder": "conv1d-w8-l1"}, r"cannot encode values \(178, 13\).*: mlp takes \(N, F\)"),
        ({"encoder": "mlp-w16"}, "mlp-w16 encodes images: of vectors, use mlp-w128-l2"),
        ({"method": "dino"}, "dino needs images"),
        ({"batch_size": 179}, "batch_size 179 exceeds the 178 training images"),
    ],
)
def test_training_refuses_in_one_line(tmp_path, fields, words):
    with pytest.raises(ValueError, match=words):
        fit(settings(tmp_path, **fields), wine(), wine(), progress=False)


def test_vectors_need_vectors_to_be_judged_on(tmp_path):
    with pytest.raises(ValueError, match=r"train is of type VectorSet and .* give queries as VectorSet"):
        fit(settings(tmp_path), wine(), progress=False)
    images = make_shapes(54, size=16, seed=0)
    with pytest.raises(ValueError, match=r"train is of type ImageSet and .* give queries as ImageSet"):
        fit(settings(tmp_path), images, wine(), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("vicreg", {}),
        ("sag-vicreg", {}),
        ("sag-vicreg", {"scope": "queue"}),
        ("sag-vicreg", {"scope": "dataset"}),
        ("barlow-twins", {"alpha": 0.3}),
    ],
    ids=["vicreg", "batch", "queue", "dataset", "barlow"],
)
def test_a_resumed_run_on_a_table_is_the_uninterrupted_one(tmp_path, method, fields):
    class Stop(Exception):
        pass

    def stop(trainer):
        if trainer.epoch == 3:
            raise Stop

    whole = fit(settings(tmp_path / "a", method, **fields), wine(), wine(), progress=False)
    config = settings(tmp_path / "b", method, **fields)
    with pytest.raises(Stop):
        fit(config, wine(), wine(), progress=False, after_epoch=stop)
    resumed = fit(config, wine(), wine(), progress=False)
    assert [entry["epoch"] for entry in resumed.record["log"]] == [1, 2, 3]
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(resumed.encoder.state_dict()[name], value), name
    assert resumed.record["metrics"] == whole.record["metrics"]
    still = fit(settings(tmp_path / "c", method, **{**fields, "alpha": 0.0}), wine(), wine(), progress=False)
    last = [run.record["log"][-1]["invariance"] for run in (whole, still)]
    assert (last[0] == last[1]) == (method == "vicreg")  # walks take part


@pytest.mark.slow
def test_a_checkpoint_of_another_view_is_not_continued(tmp_path):
    class Stop(Exception):
        pass

    def stop(trainer):
        if trainer.epoch == 2:
            raise Stop

    config = settings(tmp_path)
    with pytest.raises(Stop):
        fit(config, wine(), wine(), progress=False, after_epoch=stop)
    other = wine(TableView(load_wine().data, mask=0.5))
    with pytest.raises(ValueError, match="trained on other images"):
        fit(config, other, other, progress=False)


def test_a_step_on_a_table_that_failed_is_kept_and_repeated(tmp_path):
    with pytest.raises(ValueError, match=r"not finite.*kept for replay at") as failure:
        fit(settings(tmp_path, lr=1e25, warmup_epochs=0), wine(), wine(), progress=False)
    (kept,) = (tmp_path / "runs").rglob("*.step*.safetensors")
    assert str(kept) in str(failure.value)
    with pytest.raises(ValueError, match="not finite"):
        replay(kept, wine())
    with pytest.raises(ValueError, match="kept of other images"):
        replay(kept, wine(TableView(load_wine().data, mask=0.5)))


@pytest.mark.slow
def test_another_seed_is_another_run(tmp_path):
    one, two = (fit(settings(tmp_path, seed=seed), wine(), wine(), progress=False) for seed in (0, 1))
    assert one.record["log"][0]["loss"] != two.record["log"][0]["loss"]


@pytest.mark.slow
def test_each_training_step_asks_the_view_twice_for_the_batch_of_its_seed(tmp_path):
    asked = []

    def watched(x, generator):
        asked.append(x.clone())
        return x + 0.01 * torch.randn(x.shape, generator=generator)

    train = wine(watched)
    asked.clear()
    fit(settings(tmp_path, "vicreg", epochs=1), train, wine(), progress=False)
    steps = [x for x in asked if len(x) == 32]
    assert len(steps) == 2 * (178 // 32)
    seen = torch.cat(steps[::2])
    assert all(torch.equal(a, b) for a, b in zip(steps[::2], steps[1::2], strict=True))
    assert len(seen.unique(dim=0)) == len(seen)  # no row twice in an epoch


def test_the_record_holds_the_figures_of_the_stored_encoder(tmp_path):
    series = waves(216, length=64, seed=0), waves(108, length=64, seed=1)
    config = settings(tmp_path, encoder="conv1d-w8-l2", epochs=1, data="waves", probe=False)
    run = fit(config, *series, progress=False)
    encoder = load_encoder(run.path.with_suffix(".safetensors"))
    bank, queries = (extract_features(encoder, of.values) for of in series)
    labels = series[1].labels
    # kNN by its definition, the tree by the names, and the label-free score by the set's own view.
    unit = [x / x.norm(dim=1, keepdim=True) for x in (bank, queries)]
    votes = torch.zeros(108, len(WAVE_CLASSES))
    value, row = (unit[1] @ unit[0].T).topk(20, dim=1)
    votes.scatter_add_(1, series[0].labels[row], (value / 0.07).exp())
    assert run.record["metrics"]["knn"] == pytest.approx(float((votes.argmax(1) == labels).float().mean()), abs=1e-4)
    parts = [name.split("/") for name in WAVE_CLASSES]
    tree = np.array([[1 - next((i for i in range(3) if a[i] != b[i]), 3) / 3 for b in parts] for a in parts])
    expected = rank_correlation(queries, labels, tree, kind="pairs")
    assert run.record["metrics"]["spearman_pairs"] == pytest.approx(expected.spearman, abs=1e-4)
    draw = stream(config.seed)
    order = torch.randperm(108, generator=draw)
    seen = extract_features(encoder, series[1].view(series[1].values[order], draw))
    score = structure_score(queries[order], seen, seed=config.seed).score
    assert run.record["metrics"]["label_free"] == pytest.approx(score, abs=1e-4)


@pytest.mark.slow
def test_training_on_series_arranges_classes_by_their_tree_as_raw_values_do_not(tmp_path):
    series = waves(540, length=64, seed=0), waves(216, length=64, seed=1)
    config = settings(tmp_path, encoder="conv1d-w16-l3", epochs=15, data="waves", probe=False, batch_size=64)
    trained = fit(config, *series, progress=False).record["metrics"]
    raw = evaluate(torch.nn.Flatten(), *series, "waves", probe=False, resamplings=0)
    assert trained["spearman_pairs"] > raw["spearman_pairs"] + 0.1
    assert trained["label_free"] > raw["label_free"] + 0.3


def test_an_untried_encoder_of_a_set_is_the_one_its_statistics_give(tmp_path):
    data = wine()
    torch.manual_seed(3)
    built = build_encoder(settings(tmp_path), data).eval()
    torch.manual_seed(3)
    made = make_encoder("mlp-w16-l2", *data.statistics()).eval()
    torch.testing.assert_close(extract_features(built, data.values), extract_features(made, data.values))
    x = (data.values - data.values.mean(0)) / data.values.std(0, unbiased=False)
    hidden = torch.relu(made.backbone[1](made.backbone[0](x)))
    torch.testing.assert_close(
        torch.relu(made.backbone[4](made.backbone[3](hidden))), extract_features(made, data.values)
    )


# Waves


def test_waves_are_fixed_by_seed_balanced_and_as_fast_as_their_name_says():
    one, two = waves(180, seed=0), waves(180, seed=0)
    assert torch.equal(one.values, two.values)
    assert not torch.equal(one.values, waves(180, seed=1).values)
    assert torch.bincount(one.labels).tolist() == [10] * 18
    many = waves(360, length=256, seed=2)
    steady = [i for i, name in enumerate(WAVE_CLASSES) if name.startswith("steady")]
    for label in steady:
        rows = many.values[many.labels == label][:, 0]
        peak = torch.fft.rfft(rows).abs()[:, 1:].argmax(dim=1) + 1  # cycles in [0, 1)
        low, high = (9, 15) if WAVE_CLASSES[label].endswith("fast") else (3, 5)
        assert int(peak.min()) >= low
        assert int(peak.max()) <= high
