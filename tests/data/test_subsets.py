"""Parts of CIFAR-100: which classes and images stay, under the labels of all 100, and what an encoder is judged on."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import tiny

from sagkit.data import load
from sagkit.data.load import SUBSETS, ImageSet, family, kept_rows, left_out, load_bank, load_images
from sagkit.data.taxonomy import CIFAR100_SUPERCLASSES, superclasses
from sagkit.metrics.evaluate import evaluate, references
from sagkit.model import make_encoder
from sagkit.train import trainer
from sagkit.train.build import known_of
from sagkit.train.record import record_path
from sagkit.train.trainer import fit

NAMES = tuple(sorted(" ".join(CIFAR100_SUPERCLASSES.values()).split()))
PER_CLASS = {"train": 500, "test": 100}


@pytest.fixture
def cifar(monkeypatch):
    """A stand-in for CIFAR-100: as many images, of which row i of class c has the grey values c and i."""

    def stand_in(name, split, root, download):
        assert name == "cifar100"
        label = torch.arange(100).repeat_interleave(PER_CLASS[split])
        number = torch.arange(PER_CLASS[split]).repeat(100)
        pixels = torch.stack([label, number % 256, number // 256], dim=1).to(torch.uint8)
        return ImageSet(pixels[:, :, None, None].expand(-1, 3, 2, 2).contiguous(), label, NAMES)

    monkeypatch.setattr(load, "_cifar", stand_in)


def test_80a_leaves_four_whole_superclasses_out_and_80b_one_class_of_each():
    names, group = superclasses("cifar100")
    a, b = (np.bincount(group[left_out(f"cifar100-80{x}").numpy()], minlength=20) for x in "ab")
    assert sorted(a.tolist()) == [0] * 16 + [5] * 4
    assert [names[i] for i in a.nonzero()[0]] == [
        "fruit_and_vegetables",
        "large_man-made_outdoor_things",
        "people",
        "vehicles_2",
    ]
    assert b.tolist() == [1] * 20
    # By hand: class i mod 5 of the i-th superclass, for the first six.
    gone = {NAMES[i] for i in left_out("cifar100-80b").tolist()}
    assert {"beaver", "flatfish", "rose", "cup", "sweet_pepper", "clock"} <= gone
    assert not len(left_out("cifar100-lt"))
    assert not len(left_out("shapes"))


@pytest.mark.parametrize("name", ["cifar100-80a", "cifar100-80b"])
def test_the_eighty_keep_every_image_of_their_classes_under_the_labels_of_all(cifar, name):
    gone = set(left_out(name).tolist())
    images, test, unseen = (load_images(name, split) for split in ("train", "test", "unseen"))
    counts = torch.bincount(images.labels, minlength=100)
    assert counts.tolist() == [0 if c in gone else 500 for c in range(100)]
    assert torch.equal(images.images[:, 0, 0, 0].long(), images.labels)
    assert images.class_names == test.class_names == unseen.class_names == NAMES
    assert len(test) == 10_000
    assert torch.bincount(unseen.labels, minlength=100).tolist() == [100 if c in gone else 0 for c in range(100)]
    fit_part, val = (load_images(name, split) for split in ("fit", "val"))
    assert len(fit_part) + len(val) == 40_000
    assert set(val.labels.tolist()) == set(range(100)) - gone


def test_the_long_tail_is_exponential_from_500_down_to_5_and_the_same_each_time(cifar):
    images, again = load_images("cifar100-lt"), load_images("cifar100-lt")
    counts = torch.bincount(images.labels, minlength=100)
    assert counts[0] == 500
    assert counts[99] == 5
    # Cao et al. 2019: 500 * 0.01^(c / 99), and 10,847 images in all.
    exact = 500 * np.exp(np.log(0.01) * np.arange(100) / 99)
    assert np.abs(counts.numpy() - exact).max() <= 1
    assert len(images) == 10_847
    assert torch.equal(images.images, again.images)
    shown = images.images[images.labels == 50, :, 0, 0].long()
    number = shown[:, 1] + 256 * shown[:, 2]
    assert len(number.unique()) == len(number)
    assert number.max() > len(number) + 100  # drawn, not the first ones
    assert load_images("cifar100-lt", "test").labels.bincount().tolist() == [100] * 100
    assert len(load_images("cifar100-lt", "val")) == 1085


def test_rows_do_not_depend_on_the_order_of_images_of_the_eighty():
    labels = torch.arange(100).repeat(3)
    kept = kept_rows("cifar100-80b", labels)
    assert torch.equal(
        labels[kept].unique(), torch.tensor(sorted(set(range(100)) - set(left_out("cifar100-80b").tolist())))
    )
    assert len(kept) == 240


@pytest.mark.parametrize("name", ["cifar100", "cifar100-lt", "shapes"])
def test_nothing_is_unseen_where_no_class_is_left_out(cifar, name):
    with pytest.raises(ValueError, match="leaves no class out"):
        load_images(name, "unseen")


@pytest.mark.slow
def test_subsets_have_the_references_superclasses_and_folder_of_records_of_their_own(tmp_path, cifar):
    assert family("cifar10") == "cifar10"
    for name in SUBSETS:
        images = load_images(name, "train")
        whole = references("cifar100", NAMES)
        for key, matrix in references(name, NAMES).items():
            np.testing.assert_array_equal(matrix, whole[key])
        group = superclasses("cifar100")[1]
        assert known_of(name, images)["superclass"].tolist() == [group[c] for c in images.labels.tolist()]
        assert record_path(tmp_path, "laptop", name, "vicreg", "default", 0).parent.name == name
        assert len(load_bank(name)) == 50_000
        assert len(load_bank(name, "fit")) == len(load_images(name, "fit"))
    assert len(load_bank("cifar100")) == 50_000


def noisy(per_class: int, seed: int) -> ImageSet:
    """Images whose colour tells their class, with noise, for all 100 classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(100).repeat_interleave(per_class)
    colour = torch.stack([labels % 5, labels // 5 % 5, labels // 25], dim=1)[:, :, None, None] * 50 + 20
    noise = torch.randint(0, 20, (len(labels), 3, 8, 8), generator=generator)
    return ImageSet((colour + noise).to(torch.uint8), labels, NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar100-80a", "cifar100-80b"])
def test_unseen_figures_are_those_of_the_left_out_classes_alone(name):
    encoder = make_encoder("resnet10-w4").eval()
    bank, queries = noisy(4, 0), noisy(4, 1)
    figures = evaluate(encoder, bank, queries, name, probe=False, resamplings=100)
    whole = evaluate(encoder, bank, queries, "cifar100", probe=False, resamplings=100)
    assert {k: v for k, v in figures.items() if not k.startswith("unseen_")} == whole
    few = queries.subset(torch.isin(queries.labels, left_out(name)))
    apart = evaluate(encoder, bank, few, "cifar100", probe=False, resamplings=100)
    unseen = {k.removeprefix("unseen_"): v for k, v in figures.items() if k.startswith("unseen_")}
    assert set(unseen) == set(apart) - {"label_free", "label_free_low", "label_free_high"}
    for key, value in unseen.items():
        assert value == pytest.approx(apart[key], abs=1e-6), key


@pytest.mark.slow
def test_classes_of_which_no_two_share_a_superclass_have_no_figure_of_superclasses():
    names = {"spearman_pairs_superclass", "tree_dendrogram_purity", "tree_adjusted_rand"}
    encoder, (bank, queries) = make_encoder("resnet10-w4").eval(), (noisy(4, seed) for seed in (0, 1))
    for name, expected in (("cifar100-80a", names), ("cifar100-80b", set())):
        figures = evaluate(encoder, bank, queries, name, probe=False, resamplings=0)
        assert {key for key in names if f"unseen_{key}" in figures} == expected
        assert "unseen_spearman_pairs_wordnet_path" in figures
        assert "unseen_tree_cophenetic_spearman" in figures


@pytest.mark.slow
def test_a_run_on_a_subset_is_judged_by_a_bank_of_all_classes(tmp_path, monkeypatch):
    images, judged = noisy(4, 0), []
    seen = images.subset(kept_rows("cifar100-80a", images.labels))
    monkeypatch.setattr(trainer, "load_bank", lambda *given: judged.append(given) or images)
    fields = {"data": "cifar100-80a", "method": "vicreg", "epochs": 1, "view_size": 8, "probe": False}
    run = fit(tiny(tmp_path, **fields), seen, noisy(2, 1), progress=False)
    assert judged == [("cifar100-80a", "train", None)]
    assert run.record["train_set"] == "cifar100-80a"
    assert {"knn", "unseen_knn", "unseen_spearman_pairs"} <= run.record["metrics"].keys()


@pytest.mark.slow
@pytest.mark.cifar100
def test_the_real_thing(cifar_root):
    code = (
        "from sagkit.data import load_images as load\n"
        "print(len(load('cifar100-80a')))\n"
        "unseen = load('cifar100-80a', 'unseen')\n"
        "print(len(unseen), *[unseen.class_names[i] for i in unseen.labels.unique().tolist()])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sizes, unseen = run.stdout.splitlines()
    assert sizes == "40000"
    gone = "apple mushroom orange pear sweet_pepper bridge castle house road skyscraper baby boy girl man woman "
    assert unseen.split() == ["2000", *sorted((gone + "lawn_mower rocket streetcar tank tractor").split())]
