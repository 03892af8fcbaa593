"""Objectives of the zoo by another route: explicit loops for the losses, and what each teaches a small network."""

import numpy as np
import pytest
import torch
from torch import nn

from sagkit.augment import Augmentation
from sagkit.data.load import make_shapes
from sagkit.model import Encoder
from sagkit.studies import objectives, trainings
from sagkit.studies.objectives import OBJECTIVES, learn
from sagkit.studies.trainings import KINDS, Training, labels_of, trained
from sagkit.train.record import load_encoder


def same(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A view that changes nothing."""
    return images.float() / 255


def flat(width: int) -> Encoder:
    return Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, width)), width, (0.5,) * 3, (0.25,) * 3)


def test_contrast_is_the_mean_over_both_views_of_minus_the_log_of_the_partners_share():
    few, encoder = make_shapes(5, size=8, seed=0).images, flat(6)
    head, loss = OBJECTIVES["contrast"](6, 1, 8)
    head.eval()
    changed = [0.0, 0.3]  # of brightness: the two views differ

    def view(images, generator):
        return same(images, generator) * (1 - changed.pop(0))

    found = loss(encoder, head, few, torch.zeros(5, dtype=torch.int64), view, None)
    z = head(encoder(torch.cat([same(few, None), 0.7 * same(few, None)])))
    z = (z / z.norm(dim=1, keepdim=True)).detach().double().numpy()
    wanted = []
    for i in range(10):
        alike = {j: np.exp(z[i] @ z[j] / objectives.TEMPERATURE) for j in range(10) if j != i}
        wanted.append(-np.log(alike[(i + 5) % 10] / sum(alike.values())))
    assert found.item() == pytest.approx(np.mean(wanted), rel=1e-4)


def test_rotation_asks_for_the_turn_that_each_image_was_given():
    few, (head, loss) = make_shapes(7, size=8, seed=1).images, OBJECTIVES["rotation"](192, 1, 8)
    pixels = Encoder(nn.Flatten(), 192, (0.0,) * 3, (1.0,) * 3)
    found = loss(pixels, head, few, torch.zeros(7, dtype=torch.int64), same, None)
    wanted = []
    for i, image in enumerate(same(few, None).numpy()):
        turned = np.rot90(image, i % 4, axes=(1, 2)).reshape(1, -1).copy()
        wanted.append(-head(torch.as_tensor(turned)).log_softmax(dim=1)[0, i % 4].item())
    assert found.item() == pytest.approx(np.mean(wanted), rel=1e-5)


@pytest.mark.slow  # trains
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_is_learnt_and_the_same_seed_gives_the_same_encoder(objective, monkeypatch):
    monkeypatch.setattr(objectives, "BATCH", 64)
    images = make_shapes(256, size=8, seed=2)

    def run(seed):
        torch.manual_seed(0)
        encoder = flat(16)
        log = learn(objective, encoder, images.images, images.labels, 3, Augmentation(size=8, jitter=0.0), seed)
        return log, encoder.state_dict()

    (log, first), (again, second), (_, other) = run(0), run(0), run(1)
    assert log[-1] < log[0]
    assert log == again
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_what_cannot_be_learnt_is_refused():
    images = make_shapes(objectives.BATCH, size=8).images
    with pytest.raises(ValueError, match="no objective 'guess': choose one of contrast"):
        learn("guess", flat(4), images)
    with pytest.raises(ValueError, match="needs labels"):
        learn("labels", flat(4), images)
    with pytest.raises(ValueError, match="5 images are less than a batch"):
        learn("rotation", flat(4), images[:5])


def test_the_runs_cover_all_kinds_first_and_have_names_of_their_own():
    runs = trainings.trainings()
    assert [run.kind for run in runs[: len(KINDS)]] == list(KINDS)
    assert len({run.name for run in runs}) == len(runs) >= 60
    assert len(KINDS) >= 8


def test_random_labels_say_nothing_of_the_classes():
    names = tuple(sorted(f"{a}/{b}" for a in "pq" for b in "rstuv"))
    images = make_shapes(4000, size=8).subset(slice(0, 0))
    images = type(images)(torch.zeros(4000, 3, 8, 8, dtype=torch.uint8), torch.arange(4000) % 10, names)
    drawn = labels_of("random", images, seed=0)
    table = np.zeros((10, 10))
    np.add.at(table, (drawn.numpy(), images.labels.numpy()), 1)
    assert ((table - 40) ** 2 / 40).sum() < 81 + 4 * (2 * 81) ** 0.5  # chi squared of 81 degrees of freedom


@pytest.mark.parametrize("kind", ["VICReg", "random labels"])  # one of sagkit.train, and one that is not
def test_a_run_is_trained_once_and_kept(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(objectives, "BATCH", 64)
    images = make_shapes(300, size=16, seed=0)
    run = Training(kind, 1, 2, 0)
    told = trained(run, images, tmp_path)
    kept = load_encoder(tmp_path / f"{run.name}.safetensors")
    assert kept.architecture == "resnet10-w2"
    assert (told["kind"], told["epochs"], told["seed"]) == (kind, 1, 0)
    assert np.isfinite(told["loss"])
    monkeypatch.setattr(trainings, "train", None)  # calling it would fail
    assert trained(run, images, tmp_path) == told
