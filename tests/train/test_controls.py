"""Controls: each replaces what its name says of the walk's pairs and keeps the rest, in batch and in dataset scope."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from tiny import tiny

from sagkit.data.load import ImageSet, make_shapes
from sagkit.graph import similarity_graph
from sagkit.loss import walk_term
from sagkit.pairing import WalkPairing
from sagkit.train.build import make_fabric
from sagkit.train.controls import PAIRS, OraclePairing, another, another_of_group, make_pairing, unweighted
from sagkit.train.trainer import Trainer, fit

GROUPS = torch.tensor([0, 3, 0, 1, 1, 0, 3, 1, 0, 2, 1, 0])  # group 2 has one image


def views(n: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, 6, generator=generator)
    return h + 0.3 * torch.randn(n, 6, generator=generator), h + 0.3 * torch.randn(n, 6, generator=generator)


def uniform(counts) -> bool:
    return chisquare(counts).pvalue > 0.001


def test_another_image_is_any_other_with_equal_probability():
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(5).repeat(2000)
    found = another(index, None, 5, generator)
    counts = np.zeros((5, 5))
    np.add.at(counts, (index.numpy(), found.numpy()), 1)
    assert np.diag(counts).sum() == 0
    assert all(uniform(np.delete(row, i)) for i, row in enumerate(counts))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        another(torch.zeros(1, dtype=torch.int64), None, 1)


def test_another_of_a_group_is_any_other_member_and_itself_where_there_is_none():
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(12).repeat(2000)
    found = another_of_group(index, GROUPS, generator)
    counts = np.zeros((12, 12))
    np.add.at(counts, (index.numpy(), found.numpy()), 1)
    for i, row in enumerate(counts):
        others = [j for j in range(12) if GROUPS[j] == GROUPS[i] and j != i] or [i]
        assert row[others].sum() == 2000
        assert len(others) == 1 or uniform(row[others])


@pytest.mark.parametrize("mutual", [False, True])
def test_an_unweighted_graph_has_the_same_edges_all_alike(mutual):
    ha, hb = views(30)
    graph = similarity_graph((ha + hb) / 2, 4, temperature=0.1, mutual=mutual)
    before, after = graph.to_dense(), unweighted(graph).to_dense()
    assert torch.equal(before > 0, after > 0)
    for row in after:
        torch.testing.assert_close(row[row > 0], torch.full_like(row[row > 0], 1 / int((row > 0).sum())))


@pytest.mark.slow
def test_random_pairs_are_as_many_and_as_strong_as_the_walks_and_end_anywhere_else():
    ha, hb = views()
    settings = {"k": 3, "length": 2, "walks": 4, "seed": 5}
    walk, random = make_pairing("walk", False, **settings), make_pairing("random", False, **settings)
    counts = np.zeros((12, 12))
    for _ in range(100):
        walked, found = walk(ha, hb), random(ha, hb)
        assert torch.equal(walked.anchor, found.anchor)
        assert torch.equal(walked.weight, found.weight)
        np.add.at(counts, (found.anchor.numpy(), found.positive.numpy()), 1)
    assert np.diag(counts).sum() == 0
    assert uniform(counts[~np.eye(12, dtype=bool)])
    again = make_pairing("random", False, **settings)
    assert torch.equal(again(ha, hb).positive, make_pairing("random", False, **settings)(ha, hb).positive)
    assert not torch.equal(again(ha, hb).positive, again(ha, hb).positive)


def test_own_pairs_are_as_many_and_as_strong_as_the_walks_and_pull_an_images_own_views():
    ha, hb = views()
    settings = {"k": 3, "length": 2, "walks": 4, "seed": 5}
    walked, own = (make_pairing(name, False, **settings)(ha, hb) for name in ("walk", "own"))
    assert torch.equal(walked.anchor, own.anchor)
    assert torch.equal(walked.weight, own.weight)
    each = ((ha - hb) ** 2).mean(dim=1)
    expected = sum(w * each[i] for i, w in zip(walked.anchor, walked.weight, strict=True)) / 48
    torch.testing.assert_close(walk_term(ha, hb, own), expected)
    dataset, index = make_pairing("own", True, k=3), torch.arange(12)
    dataset.begin_epoch(0, lambda: (ha + hb) / 2)
    assert torch.equal(dataset.partners(index, 1.0), index)


@pytest.mark.parametrize("pairs", ["nearest", "unweighted", "oracle"])
def test_a_matched_control_keeps_its_pairs_and_has_the_mean_weight_of_the_walks(pairs):
    settings = {"k": 3, "length": 2, "seed": 5, "every": 2}
    walk, control = make_pairing("walk", False, **settings), make_pairing(pairs, False, GROUPS, **settings)
    matched = make_pairing(pairs, False, GROUPS, matched=True, **settings)
    for call in range(6):
        ha, hb = views(seed=call)
        walked, plain, found = (pairing(ha, hb, torch.arange(12)) for pairing in (walk, control, matched))
        assert torch.equal(plain.anchor, found.anchor)
        assert torch.equal(plain.positive, found.positive)
        if call % 2:
            assert len(found.weight) == 0
            continue
        torch.testing.assert_close(found.weight.mean(), walked.weight.mean())
        assert not torch.allclose(plain.weight.mean(), walked.weight.mean())
        torch.testing.assert_close(found.weight / found.weight.max(), plain.weight / plain.weight.max())


def test_pairs_without_weight_stay_so_and_replaced_views_have_none_to_match():
    ha, hb = views()
    alone = make_pairing("oracle", False, torch.arange(12), matched=True, k=3)
    assert torch.equal(alone(ha, hb, torch.arange(12)).weight, torch.zeros(12))
    with pytest.raises(ValueError, match="matched scales the weights of pairs"):
        make_pairing("random", True, matched=True, k=3)


def test_nearest_is_one_step_to_the_nearest_neighbour_and_mutual_where_both_agree():
    ha, hb = views(40)
    x = (ha + hb) / 2
    x = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    similarity = (x @ x.T).fill_diagonal_(-2)
    best, nearest = similarity.max(dim=1)
    settings = {"k": 10, "length": 4, "walks": 3, "restart": 0.5}
    pairs = make_pairing("nearest", False, **settings)(ha, hb)
    assert torch.equal(pairs.anchor, torch.arange(40))
    assert torch.equal(pairs.positive, nearest)
    torch.testing.assert_close(pairs.weight, best.clamp(min=0))
    mutual = make_pairing("nearest", False, mutual=True, **settings)(ha, hb)
    agreed = nearest[nearest] == torch.arange(40)
    assert torch.equal(mutual.weight > 0, agreed & (best > 0))
    assert torch.equal(mutual.positive[agreed], nearest[agreed])
    assert 0 < int(agreed.sum()) < 40
    dataset = make_pairing("nearest", True, k=10, length=4, restart=0.5)
    dataset.rebuild(x)
    partners = torch.stack([dataset.partners(torch.arange(40), 1.0) for _ in range(50)])
    assert ((partners == nearest) | (partners == torch.arange(40))).all()
    assert (partners == nearest).any(dim=0)[best > 0.2].all()


def test_unweighted_walks_follow_the_unweighted_chain_and_all_weigh_one():
    ha, hb = views()
    pairing = make_pairing("unweighted", False, k=3, length=2, walks=50)
    counts = np.zeros((12, 12))
    for _ in range(20):
        pairs = pairing(ha, hb)
        assert torch.equal(pairs.weight, (pairs.anchor != pairs.positive).float())
        np.add.at(counts, (pairs.anchor.numpy(), pairs.positive.numpy()), 1)
    step = (similarity_graph((ha + hb) / 2, 3).to_dense() > 0).double().numpy() / 3
    law = step @ step * 1000
    assert counts[law == 0].sum() == 0
    assert all(chisquare(seen[p > 0], p[p > 0]).pvalue > 0.001 for seen, p in zip(counts, law, strict=True))
    dataset = make_pairing("unweighted", True, k=3, length=1)
    dataset.rebuild((ha + hb) / 2)
    index = torch.arange(12).repeat(300)
    away = dataset.partners(index, 0.5, torch.Generator().manual_seed(0)) != index
    assert away.float().mean() == pytest.approx(0.5, abs=4 * 0.5 / 60)  # weight 1: alpha alone decides


def test_the_oracle_pairs_within_groups_and_with_weight_one():
    ha, hb = views()
    pairing = make_pairing("oracle", False, GROUPS, walks=3)
    rows = torch.arange(12)
    pairs = pairing(ha, hb, rows)
    assert torch.equal(GROUPS[pairs.anchor], GROUPS[pairs.positive])
    assert torch.equal(pairs.weight, (GROUPS[pairs.anchor] != 2).float())
    assert torch.equal(pairs.anchor, torch.arange(12).repeat_interleave(3))
    assert not torch.equal(pairing(ha, hb, rows).positive, pairs.positive)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))  # rows of the training set in another order
    pairs = pairing(ha, hb, order)
    assert torch.equal(GROUPS[order[pairs.anchor]], GROUPS[order[pairs.positive]])
    with pytest.raises(ValueError, match=r"call pairing\(ha, hb, index\)"):
        pairing(ha, hb)
    every = make_pairing("oracle", False, GROUPS, every=2)
    assert [len(every(ha, hb, rows).anchor) for _ in range(4)] == [12, 0, 12, 0]
    dataset, index = make_pairing("oracle", True, GROUPS), torch.arange(12).repeat(400)
    found = dataset.partners(index, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(GROUPS[found], GROUPS[index])
    assert (found != index)[GROUPS[index] != 2].float().mean() == pytest.approx(0.25, abs=4 * 0.433 / 66)
    with pytest.raises(ValueError, match="superclasses are known"):
        make_pairing("oracle", True)


def test_random_partners_replace_a_view_when_the_walk_would_have():
    ha, hb = views()
    walk, random = make_pairing("walk", True, k=3, length=2), make_pairing("random", True, k=3, length=2)
    index = torch.arange(12).repeat(300)
    assert torch.equal(random.partners(index, 0.9), index)  # before there is a graph
    for pairing in (walk, random):
        pairing.begin_epoch(0, lambda: (ha + hb) / 2)
    walked, found = (p.partners(index, 0.9, torch.Generator().manual_seed(3)) for p in (walk, random))
    assert torch.equal(walked != index, found != index)
    counts = np.bincount(((found - index) % 12)[found != index].numpy(), minlength=12)
    assert uniform(counts[1:])


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["batch", "dataset"])
@pytest.mark.parametrize("pairs", PAIRS)
def test_every_control_trains_in_both_scopes_and_only_the_oracle_reads_labels(tmp_path, scope, pairs):
    train = make_shapes(64, size=16, seed=0)
    shuffled = ImageSet(train.images, train.labels.flip(0), train.class_names)
    queries = ImageSet(make_shapes(8, size=16, seed=1).images)
    fields = {"pairs": pairs, "scope": scope, "epochs": 1, "alpha": 0.9, "walk_warmup": 0.0, "encoder": "resnet10-w2"}
    fields |= {"readout_every": 0, "probe": False}

    def trained(name: str, images: ImageSet, **more) -> torch.Tensor:
        run = fit(tiny(tmp_path / name, **{**fields, **more}), images, queries, progress=False)
        return torch.cat([p.flatten() for p in run.encoder.parameters()])

    own = trained("own", train)
    assert torch.equal(own, trained("flip", shuffled)) is (pairs != "oracle")
    if pairs != "walk":
        assert not torch.equal(own, trained("walk", train, pairs="walk"))


@pytest.mark.slow
def test_a_matched_oracle_trains_with_its_groups_and_at_another_strength(tmp_path):
    train, queries = make_shapes(64, size=16, seed=0), ImageSet(make_shapes(8, size=16, seed=1).images)
    fields = {"pairs": "oracle", "epochs": 1, "alpha": 0.9, "walk_warmup": 0.0, "readout_every": 0, "probe": False}
    terms = [
        fit(tiny(tmp_path / str(matched), matched=matched, **fields), train, queries, progress=False).record["log"][0]
        for matched in (False, True)
    ]
    assert 0 < terms[1]["walk"] < terms[0]["walk"]  # weights of a walk's mean, where the oracle's are all 1


def test_the_oracle_reads_superclasses_of_the_batchs_own_images(tmp_path, monkeypatch):
    train, seen = make_shapes(96, size=16, seed=0), []
    family = train.labels // 9  # the first component of a shape's name; nine classes each
    step, paired = Trainer.step, OraclePairing.forward

    def watched(trainer, number, index):
        def forward(pairing, ha, hb, rows, *rest):
            seen.append(torch.equal(rows, index) and torch.equal(pairing.known[rows], family[index]))
            return paired(pairing, ha, hb, rows, *rest)

        monkeypatch.setattr(OraclePairing, "forward", forward)
        return step(trainer, number, index)

    monkeypatch.setattr(Trainer, "step", watched)
    config = tiny(tmp_path, pairs="oracle", epochs=1, walk_warmup=0.0, readout_every=0, probe=False)
    fit(config, train, ImageSet(make_shapes(8, size=16, seed=1).images), progress=False)
    assert seen == [True] * 3
    unlabelled = ImageSet(train.images)
    with pytest.raises(ValueError, match="superclasses are known"):
        fit(tiny(tmp_path / "none", pairs="oracle"), unlabelled, unlabelled, progress=False)


def test_hub_partners_are_drawn_from_where_the_walks_end_whoever_began():
    ha, hb = views()
    settings = {"k": 3, "length": 2, "walks": 4000, "seed": 5}
    hub, walked = (make_pairing(name, False, **settings)(ha, hb) for name in ("hub", "walk"))
    assert torch.equal(hub.anchor, walked.anchor)
    assert torch.equal(hub.weight, walked.weight)
    counts = np.zeros((12, 12))
    np.add.at(counts, (hub.anchor.numpy(), hub.positive.numpy()), 1)
    ends = WalkPairing(k=3, length=2, expected=True)(ha, hb).to_dense(12).sum(dim=0).double().numpy()
    assert np.diag(counts).sum() == 0
    for i, row in enumerate(counts):
        law = np.delete(ends, i)
        likely = law > 0
        assert np.delete(row, i)[~likely].sum() == 0
        assert chisquare(np.delete(row, i)[likely], law[likely] / law.sum() * 4000).pvalue > 0.001


@pytest.mark.parametrize("pairs", ["random", "hub", "own", "oracle"])
def test_a_control_in_expectation_is_the_mean_of_the_drawn_one(pairs):
    ha, hb = views()
    rows, settings = torch.arange(12), {"k": 3, "length": 2, "weight": 0.4}
    drawn = make_pairing(pairs, False, GROUPS, walks=4000, **settings)(ha, hb, rows).to_dense(12)
    every = make_pairing(pairs, False, GROUPS, expected=True, **settings)(ha, hb, rows).to_dense(12)
    torch.testing.assert_close(drawn, every, rtol=0, atol=0.03)
    assert every.sum() == pytest.approx(0.4 * 12)
    if pairs == "random":  # the null model itself, but for the anchor's own place in it
        less = make_pairing(pairs, False, expected=True, null=1.0, **settings)(ha, hb).to_dense(12)
        torch.testing.assert_close(less, 0.4 * ((1 - torch.eye(12)) / 11 - 1 / 12))


def test_hub_partners_of_the_whole_set_replace_the_views_walks_would_by_the_same_images_in_another_order():
    ha, hb = views()
    walk, hub = make_pairing("walk", True, k=3, length=2), make_pairing("hub", True, k=3, length=2)
    index = torch.arange(12).repeat(300)
    for pairing in (walk, hub):
        pairing.begin_epoch(0, lambda: (ha + hb) / 2)
    walked, found = (p.partners(index, 0.9, torch.Generator().manual_seed(3)) for p in (walk, hub))
    away = walked != index
    assert torch.equal(walked[~away], found[~away])
    assert torch.equal(walked[away].sort().values, found[away].sort().values)
    moved = np.zeros((12, 12))
    np.add.at(moved, (index[away].numpy(), found[away].numpy()), 1)
    assert chi2_contingency(moved[:, moved.sum(axis=0) > 0]).pvalue > 0.001, "whoever began"


@pytest.mark.parametrize(
    ("pairs", "scope", "passes"),
    [("own", "dataset", 0), ("oracle", "dataset", 0), ("random", "dataset", 1), ("walk", "dataset", 1)],
)
def test_a_control_without_a_graph_looks_at_no_features(tmp_path, monkeypatch, pairs, scope, passes):
    """The features of all images are taken before an epoch by pairings that build a graph of them, and by no other."""
    train, seen = make_shapes(96, size=16), []
    features = Trainer.clean_features
    monkeypatch.setattr(Trainer, "clean_features", lambda trainer: seen.append(1) or features(trainer))
    config = tiny(tmp_path, pairs=pairs, scope=scope, walk_warmup=0.0)
    trainer = Trainer(config, make_fabric(config), train)
    trainer.begin_epoch()
    assert len(seen) == passes


@pytest.mark.parametrize(("pairs", "graphs"), [("oracle", 0), ("walk", 1), ("own", 1), ("random", 1)])
def test_a_control_without_a_graph_builds_none_in_a_batch(monkeypatch, pairs, graphs):
    built, graph = [], similarity_graph
    monkeypatch.setattr("sagkit.pairing.similarity_graph", lambda *a, **more: built.append(1) or graph(*a, **more))
    h, index = torch.randn(24, 6), torch.arange(24)
    make_pairing(pairs, False, index % 3, k=4)(h, h, index)
    assert len(built) == graphs
