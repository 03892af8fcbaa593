"""Purity of walk pairs against explicit loops, by hand and at its chance level."""

import math

import pytest
import torch

from sagkit.graph import Graph, similarity_graph
from sagkit.metrics.purity import Purity, chance_level, pair_purity
from sagkit.studies.purity import batch_nodes, heaviest_pairs, purity_table, walk_purity
from sagkit.walk import Pairs, sample_pairs

LABELS = torch.tensor([0, 0, 1, 2, 2])
COARSE = torch.tensor([0, 0, 0, 1, 1])
PAIRS = Pairs(torch.tensor([0, 0, 1, 3, 4]), torch.tensor([1, 2, 3, 4, 4]), torch.tensor([0.5, 0.25, 1.0, 0.75, 0.0]))


def by_loop(pairs: Pairs, labels, coarse) -> Purity:
    """The definition, pair by pair."""
    sums = dict.fromkeys(("away", "class", "super", "w", "w class", "w super"), 0.0)
    for i, j, w in zip(*(part.tolist() for part in pairs), strict=True):
        if i != j:
            sums["away"] += 1
            sums["class"] += labels[i] == labels[j]
            sums["super"] += coarse[i] == coarse[j]
            sums["w"] += w
            sums["w class"] += w * (labels[i] == labels[j])
            sums["w super"] += w * (coarse[i] == coarse[j])
    n = len(pairs.anchor)
    plain = (sums["class"] / sums["away"], sums["super"] / sums["away"])
    weighted = (sums["w class"] / sums["w"], sums["w super"] / sums["w"])
    return Purity(*map(float, (*plain, *weighted, sums["w"] / n, sums["away"] / n)))


def test_five_pairs_by_hand():
    # Four pairs left home: two of one class, three of one superclass; weights 0.5 + 0.25 + 1 + 0.75 = 2.5.
    expected = Purity(2 / 4, 3 / 4, 1.25 / 2.5, 1.5 / 2.5, 2.5 / 5, 4 / 5)
    assert pair_purity(PAIRS, LABELS, COARSE) == pytest.approx(expected)
    assert by_loop(PAIRS, LABELS, COARSE) == pytest.approx(expected)


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("length", [1, 3])
def test_walk_pairs_equal_the_loop(length, mutual):
    generator = torch.Generator().manual_seed(3)
    graph = similarity_graph(torch.randn(40, 5, generator=generator), k=4, mutual=mutual)
    labels = torch.randint(6, (40,), generator=generator)
    pairs = sample_pairs(graph, length, 3, torch.Generator().manual_seed(11), anchors=torch.arange(25))
    (found,) = walk_purity(graph, labels, labels // 2, length, 3, seed=11, anchors=torch.arange(25))
    assert found == pytest.approx(by_loop(pairs, labels, labels // 2), abs=1e-6)


def test_chance_equals_a_count_over_all_ordered_pairs():
    hits = [LABELS[i] == LABELS[j] for i in range(5) for j in range(5) if i != j]
    assert chance_level(LABELS) == pytest.approx(sum(hits).item() / 20)
    few = [LABELS[i] == LABELS[j] for i in (0, 2) for j in range(5) if i != j]
    assert chance_level(LABELS, torch.tensor([0, 2])) == pytest.approx(sum(few).item() / 8)
    with pytest.raises(ValueError, match="another node"):
        chance_level(torch.tensor([0]))


def test_walks_on_features_that_ignore_the_labels_are_as_pure_as_chance():
    generator = torch.Generator().manual_seed(0)
    graph = similarity_graph(torch.randn(2000, 16, generator=generator), k=10)
    labels = torch.arange(2000) % 20
    (found,) = walk_purity(graph, labels, labels // 5, length=2, walks=5, seed=1)
    for share, chance in ((found.same_class, 1 / 20), (found.same_superclass, 1 / 4)):
        # Five walks of an anchor are not independent: the error is that of 2,000 anchors, four of them allowed.
        assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / 2000)


def test_the_most_confident_pairs_come_by_weight_and_of_equals_the_earlier():
    assert heaviest_pairs(PAIRS, 0.4).anchor.tolist() == [1, 3]
    tied = Pairs(torch.arange(4), torch.arange(4).flip(0), torch.tensor([0.5, 0.5, 0.9, 0.5]))
    assert heaviest_pairs(tied, 0.5).anchor.tolist() == [2, 0]
    assert heaviest_pairs(tied, 0.01).anchor.tolist() == [2]
    with pytest.raises(ValueError, match="share"):
        heaviest_pairs(PAIRS, 0)


def test_walks_that_all_end_at_home_have_no_purity():
    alone = Graph(torch.arange(3)[:, None], torch.ones(3, 1), torch.ones(3, 1))
    (found,) = walk_purity(alone, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), length=2)
    assert math.isnan(found.same_class)
    assert (found.weight, found.left) == (0, 0)


@pytest.mark.parametrize("queue", [0, 2])
def test_a_queue_keeps_features_and_labels_together_and_walks_start_in_the_newest_batch(queue):
    number = torch.arange(20).view(5, 4)  # 5 batches of 4 images, each image its own feature and label
    nodes = batch_nodes(number[:, :, None].float(), number, torch.arange(20) // 10, queue, first=2)
    assert len(nodes) == 3
    for b, of in enumerate(nodes, start=2):
        expected = [image for batch in range(b, b - queue - 1, -1) for image in number[batch].tolist()]
        assert of.features[:, 0].tolist() == of.labels.tolist() == expected
        assert of.coarse.tolist() == [image // 10 for image in expected]
        assert of.labels[of.anchors].tolist() == number[b].tolist()


def test_the_table_has_a_row_per_scope_kernel_and_k_and_a_column_per_length():
    row = {"scope": "batch", "kernel": "cosine", "k": 3, "confident": 1.0, "same_class": 0.1, "same_superclass": 0.25}
    lines = purity_table([row | {"length": 1}, row | {"length": 2, "same_class": 0.05}]).splitlines()
    assert lines[0] == "| scope | kernel | K | L = 1 | L = 2 |"
    assert lines[2] == "| batch | cosine | 3 | 10.0 / 25.0 | 5.0 / 25.0 |"
    assert {line.count("|") for line in lines} == {6}
    few = row | {"length": 1, "confident": 0.3}
    assert purity_table([few | {"left": 0.8}]).splitlines()[2] == "| batch, top 30% | cosine | 3 | fewer |"
    assert purity_table([few | {"left": 1.0}]).splitlines()[2] == "| batch, top 30% | cosine | 3 | 10.0 / 25.0 |"
