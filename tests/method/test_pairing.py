"""WalkPairing: the law of its pairs, its randomness as a function of seed and call, and its place in a checkpoint."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import sagkit
from sagkit.graph import similarity_graph
from sagkit.loss import walk_term
from sagkit.pairing import DatasetPairing, Queue, WalkPairing
from sagkit.train.record import load_state, save_state
from sagkit.walk import ends_of


def views(n: int = 24, f: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, f, generator=generator)
    return h + 0.3 * torch.randn(n, f, generator=generator), h + 0.3 * torch.randn(n, f, generator=generator)


def same(a, b) -> bool:
    return all(map(torch.equal, a, b))


def test_it_is_what_the_package_exports():
    assert sagkit.WalkPairing is WalkPairing


@pytest.mark.slow
def test_over_many_calls_the_pairs_follow_the_law_of_the_mean_features_graph():
    ha, hb = views(n=10)
    pairing = WalkPairing(k=4, length=2, walks=5, temperature=0.3)
    counts = np.zeros((10, 10))
    for _ in range(200):
        pairs = pairing(ha, hb)
        np.add.at(counts, (pairs.anchor.numpy(), pairs.positive.numpy()), 1)
    step = similarity_graph((ha + hb) / 2, 4, temperature=0.3).to_dense().double().numpy()
    expected = step @ step * 1000
    assert counts[expected == 0].sum() == 0
    for seen, theory in zip(counts, expected, strict=True):
        likely = theory >= 5  # a chi-square cell needs five; the rest is a handful of walks
        theory = theory[likely] * seen[likely].sum() / theory[likely].sum()
        assert chisquare(seen[likely], theory).pvalue > 0.01 / 10  # ten tests, 1 % together; the seed is fixed


def test_every_mth_call_makes_pairs_and_the_others_none():
    ha, hb = views()
    pairing = WalkPairing(k=3, walks=2, every=3)
    assert [len(pairing(ha, hb).anchor) for _ in range(7)] == [48, 0, 0, 48, 0, 0, 48]


def test_pairs_are_a_function_of_seed_and_call_and_leave_the_global_generator_alone():
    ha, hb = views()
    first, second, other = WalkPairing(seed=3), WalkPairing(seed=3), WalkPairing(seed=4)
    state = torch.get_rng_state()
    runs = [[module(ha, hb) for _ in range(4)] for module in (first, second, other)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(same, runs[0], runs[1]))
    assert not any(map(same, runs[0], runs[2]))
    assert not same(runs[0][0], runs[0][1])


@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_module_goes_on_as_if_it_had_never_stopped(tmp_path, every):
    ha, hb = views()
    whole = WalkPairing(every=every, seed=1)
    expected = [whole(ha, hb) for _ in range(9)][5:]
    part = WalkPairing(every=every, seed=1)
    for _ in range(5):
        part(ha, hb)
    save_state(tmp_path / "state.safetensors", part.state_dict())
    resumed = WalkPairing(every=every, seed=1)
    resumed.load_state_dict(load_state(tmp_path / "state.safetensors"))
    for module in (resumed, copy.deepcopy(part)):
        assert all(map(same, [module(ha, hb) for _ in range(4)], expected))


def test_inside_a_model_it_survives_moves_and_casts_and_adds_no_parameters():
    ha, hb = views()
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), WalkPairing(seed=1))
    plain = WalkPairing(seed=1)
    for cast in (model.double, model.half, model.float, lambda: model.to("cpu")):
        cast()
        assert same(model[1](ha, hb), plain(ha, hb))
    assert not list(model[1].parameters())


@pytest.mark.gpu
def test_on_cuda_pairs_stay_on_the_device_and_the_count_on_the_host():
    ha, hb = (h.cuda() for h in views())
    pairing = WalkPairing(k=4).cuda()
    pairs, again = pairing(ha, hb), WalkPairing(k=4)(ha, hb)
    assert all(x.is_cuda for x in pairs)
    assert same(pairs, again)


def test_views_are_averaged_so_their_order_does_not_matter():
    ha, hb = views()
    mean = (ha + hb) / 2
    assert same(WalkPairing()(ha, hb), WalkPairing()(hb, ha))
    assert same(WalkPairing()(ha, hb), WalkPairing()(mean, mean))


def test_no_gradient_flows_into_the_choice():
    ha, hb = views()
    free = WalkPairing()(ha.requires_grad_(), hb.requires_grad_())
    assert not free.weight.requires_grad
    assert same(free, WalkPairing()(ha.detach(), hb.detach()))


def test_autocast_does_not_change_the_pairs():
    ha, hb = views()
    with torch.autocast("cpu", torch.bfloat16):
        inside = WalkPairing(kernel="gaussian")(ha, hb)
    assert same(inside, WalkPairing(kernel="gaussian")(ha, hb))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_averaged_in_float32(dtype):
    # 40,000 + 40,000 exceeds float16; bfloat16 would round the mean of neighbouring values.
    ha, hb = ((20_000 * h).clamp(-60_000, 60_000).to(dtype) for h in views())
    assert same(WalkPairing()(ha, hb), WalkPairing()(ha.float(), hb.float()))


def test_settings_reach_graph_and_walk():
    ha, hb = views()
    for fields in ({"k": 2}, {"length": 1}, {"temperature": 5.0}, {"kernel": "shared"}, {"mutual": True}):
        assert not same(WalkPairing(**{"k": 4, **fields})(ha, hb), WalkPairing(k=4)(ha, hb)), fields


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="got 0"):
        WalkPairing(every=0)
    with pytest.raises(ValueError, match=r"k = 24 .*nodes = 24"):
        WalkPairing(k=24)(*views())
    with pytest.raises(ValueError, match="got 0"):
        WalkPairing(length=0)(*views())


@pytest.mark.slow
def test_with_a_bank_walks_start_in_the_batch_pass_anywhere_and_follow_the_whole_graphs_law():
    ha, hb = views(n=6)
    bank = views(n=8, seed=1)[0]
    pairing = WalkPairing(k=4, length=2, walks=5, temperature=0.3)
    counts = np.zeros((6, 14))
    for _ in range(400):
        pairs = pairing(ha, hb, bank=bank)
        np.add.at(counts, (pairs.anchor.numpy(), pairs.positive.numpy()), 1)
    step = similarity_graph(torch.cat([(ha + hb) / 2, bank]), 4, temperature=0.3).to_dense().double().numpy()
    expected = (step @ step)[:6] * 2000
    assert counts[expected == 0].sum() == 0
    assert counts[:, 6:].sum() > 0
    for seen, theory in zip(counts, expected, strict=True):
        likely = theory >= 5
        theory = theory[likely] * seen[likely].sum() / theory[likely].sum()
        assert chisquare(seen[likely], theory).pvalue > 0.01 / 6  # six tests, 1 % together; the seed is fixed


def test_a_queue_keeps_the_last_batches_oldest_first_without_gradient():
    queue = Queue(2)
    assert queue.read("cpu") is None
    batches = [tuple(torch.full((3, w), float(i), requires_grad=True) for w in (4, 2, 2)) for i in range(4)]
    for batch in batches:
        queue.push(*batch)
    h, za, zb = queue.read("cpu")
    assert h[:, 0].tolist() == [2.0] * 3 + [3.0] * 3
    assert (za.shape, zb.shape) == ((6, 2), (6, 2))
    assert not any(part.requires_grad for part in (h, za, zb))


def test_dataset_partners_follow_walk_and_confidence():
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    pairing = DatasetPairing(k=4, length=2, temperature=0.3)
    index = torch.tensor([3, 17]).repeat(20_000)
    assert torch.equal(pairing.partners(index, 1.0), index)  # before the first graph
    pairing.rebuild(x)
    partner = pairing.partners(index, 0.7, torch.Generator().manual_seed(1))
    graph = similarity_graph(x, 4, temperature=0.3)
    p = graph.to_dense().double()
    dense_similarity = torch.zeros(30, 30, dtype=torch.float64).scatter_(1, graph.neighbors, graph.similarity.double())
    # Both hops carry probability times max(0, similarity); what does not leave home stays with the image itself.
    step = p * dense_similarity.clamp(min=0)
    law = 0.7 * (step @ step)
    law.fill_diagonal_(0)
    law += torch.diag(1 - law.sum(dim=1))
    for anchor in (3, 17):
        seen = np.bincount(partner[index == anchor].numpy(), minlength=30)
        theory = law[anchor].numpy() * 20_000
        assert seen[theory == 0].sum() == 0
        likely = theory >= 5
        theory = theory[likely] * seen[likely].sum() / theory[likely].sum()
        assert chisquare(seen[likely], theory).pvalue > 0.01 / 2  # two tests, 1 % together; the seed is fixed


def test_only_the_most_confident_pairs_of_a_batch_keep_their_weight():
    ha, hb = views(n=40)
    everything = WalkPairing(k=4, length=2)(ha, hb)
    selected = WalkPairing(k=4, length=2, confident=0.25)(ha, hb)
    assert torch.equal(everything.positive, selected.positive)
    kept = everything.weight.argsort(descending=True)[:10]
    expected = torch.zeros(40)
    expected[kept] = everything.weight[kept]
    assert torch.equal(selected.weight, expected)


def test_only_the_most_confident_walks_over_a_dataset_replace_an_image():
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    pairing = DatasetPairing(k=4, length=1, confident=0.2)
    pairing.rebuild(x)
    index = torch.arange(400).repeat(50)
    partner = pairing.partners(index, 1.0, torch.Generator().manual_seed(1))
    moved = partner != index
    similarity = torch.nn.functional.cosine_similarity((x - x.mean(0))[index], (x - x.mean(0))[partner])
    everything = DatasetPairing(k=4, length=1)
    everything.rebuild(x)
    other = everything.partners(index, 1.0, torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cosine_similarity((x - x.mean(0))[index], (x - x.mean(0))[other])
    replaced = other != index
    # One threshold for all: what stays is exactly what lies above it, about a fifth of the walks.
    assert torch.equal(moved, replaced & (expected >= similarity[moved].min()))
    assert 0.15 < moved.sum() / replaced.sum() < 0.25


def test_a_restored_dataset_graph_gives_the_same_partners(tmp_path):
    whole, other = DatasetPairing(k=4, confident=0.5), DatasetPairing(k=4, confident=0.5)
    whole.rebuild(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)))
    save_state(tmp_path / "state.safetensors", whole.state_dict())
    other.load_state_dict(load_state(tmp_path / "state.safetensors"))
    index = torch.arange(30)
    seeded = [torch.Generator().manual_seed(2) for _ in range(2)]
    assert torch.equal(whole.partners(index, 1.0, seeded[0]), other.partners(index, 1.0, seeded[1]))


def test_restart_and_unique_reach_the_walks():
    ha, hb = views()
    many = WalkPairing(k=3, length=1, walks=8, unique=True, restart=0.4)(ha, hb)
    for anchor in range(24):
        ends = many.positive[many.anchor == anchor].tolist()
        weights = many.weight[many.anchor == anchor].tolist()
        for i, (end, weight) in enumerate(zip(ends, weights, strict=True)):
            if end in ends[:i] or end == anchor:
                assert weight == 0
    assert 0.3 < float((many.anchor == many.positive).float().mean()) < 0.5  # one step of 192 walks, 40 % of them home
    plain = WalkPairing(k=3, length=1, walks=8)(ha, hb)
    assert (plain.anchor != plain.positive).all()


@pytest.mark.parametrize("call", [lambda: Queue(0), lambda: DatasetPairing().partners(torch.arange(3), 1.5)])
def test_impossible_scopes_are_refused(call):
    with pytest.raises(ValueError, match=r"got (0|1\.5)"):
        call()


def test_the_count_of_calls_is_stored_by_safetensors_and_older_counts_still_load_strictly(tmp_path):
    from safetensors.torch import load_model, save_model

    model = torch.nn.Sequential(torch.nn.Linear(6, 6), WalkPairing(k=3, seed=4))
    h = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model[1](h, h)
    save_model(model, tmp_path / "m.safetensors")
    again = torch.nn.Sequential(torch.nn.Linear(6, 6), WalkPairing(k=3, seed=4))
    load_model(again, tmp_path / "m.safetensors", strict=True)
    older = torch.nn.Sequential(torch.nn.Linear(6, 6), WalkPairing(k=3, seed=4))
    older.load_state_dict({**model.state_dict(), "1._extra_state": 3}, strict=True)
    expected = model[1](h, h)
    for loaded in (again, older):
        pairs = loaded[1](h, h)
        assert all(torch.equal(a, b) for a, b in zip(pairs, expected, strict=True))


def dense(pairs, anchors: int, nodes: int) -> torch.Tensor:
    """Mean weight of each pair by anchor and node, in the units of `Ends`."""
    return ends_of(pairs, anchors).to_dense(nodes)


@pytest.mark.parametrize(
    "settings",
    [{}, {"restart": 0.3, "length": 3}, {"kernel": "gaussian", "mutual": True}, {"confident": 0.5, "length": 1}],
    ids=str,
)
@pytest.mark.parametrize("queue", [0, 10])
def test_the_expected_walk_is_the_mean_of_the_sampled_ones(settings, queue):
    ha, hb = views()
    bank = views(queue, seed=1)[0] if queue else None
    settings = {"k": 4, "length": 2} | settings
    ends = WalkPairing(expected=True, **settings)(ha, hb, bank=bank)
    exact = ends.to_dense(24 + queue)
    sampled = WalkPairing(walks=4000, **settings)(ha, hb, bank=bank)  # a confidence of many walks is the expected one
    mean = dense(sampled, 24, 24 + queue)
    spread = (exact * (1 - exact)).clamp(min=1e-4).div(4000).sqrt()  # of a weight in [0, 1], at most that of a coin
    assert ((exact - mean) / spread).abs().max() < 5
    assert torch.equal(ends.node, WalkPairing(expected=True, seed=9, **settings)(ha, hb, bank=bank).node), "no chance"


@pytest.mark.parametrize("expected", [False, True])
def test_a_weight_per_anchor_and_a_null_model_are_those_of_explicit_loops(expected):
    ha, hb = views()
    za, zb = (h.clone().requires_grad_() for h in (ha, hb))
    plain = WalkPairing(k=4, expected=expected)(ha, hb)
    found = WalkPairing(k=4, expected=expected, weight=0.4, null=1.0)(ha, hb)
    w = plain.to_dense(24) if expected else dense(plain, 24, 24)
    some = (w.sum(dim=1) > 0).sum()
    term = torch.zeros(())
    for i in range(24):
        for j in range(24):
            row = 0.4 * 24 / some if w[i].sum() > 0 else 0.0
            wij = (w[i, j] / w[i].sum() - 1 / 24) * row if row else 0.0
            term = term + wij * (((za[i] - zb[j]) ** 2).mean() + ((zb[i] - za[j]) ** 2).mean()) / 2 / 24
    ours = walk_term(za, zb, found)
    torch.testing.assert_close(ours, term)
    grads = zip(torch.autograd.grad(ours, (za, zb)), torch.autograd.grad(term, (za, zb)), strict=True)
    for mine, theirs in grads:
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"expected": True, "walks": 2}, "expected has all walks at once, got walks = 2"),
        ({"null": 1.5}, r"null must be in \[0, 1\], got 1.5"),
        ({"weight": 0.0}, "weight must be greater than 0, got 0.0"),
    ],
)
def test_settings_of_the_expectation_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        WalkPairing(**settings)


def restored(monkeypatch, confident: float) -> tuple[DatasetPairing, list]:
    """A pairing whose graph was read from a checkpoint, and the devices of the graphs that it walks on."""
    features, whole, seen = torch.randn(40, 6), DatasetPairing(k=4, confident=confident), []
    whole.rebuild(features)
    pairing = DatasetPairing(k=4, confident=confident)
    pairing.load_state_dict(whole.state_dict())
    walk = sagkit.pairing.weighted_walk

    def watched(graph, starts, length, restart, generator, tables):
        seen.append((graph.weights.device.type, starts.device.type))
        return walk(graph, starts, length, restart, generator, tables=tables)

    monkeypatch.setattr(sagkit.pairing, "weighted_walk", watched)
    return pairing, seen


def test_a_graph_from_a_checkpoint_goes_where_the_images_are(monkeypatch):
    pairing, seen = restored(monkeypatch, confident=1.0)
    pairing.partners(torch.arange(8), 0.5, torch.Generator())
    assert seen == [("cpu", "cpu")]
    seen.clear()

    def elsewhere(graph, starts, *rest, **tables):  # `meta` has devices and no values
        seen.append((graph.weights.device.type, starts.device.type))
        assert all(t.device.type == "meta" for t in (graph.neighbors, graph.similarity))
        raise RuntimeError

    monkeypatch.setattr(sagkit.pairing, "weighted_walk", elsewhere)
    monkeypatch.setattr(sagkit.pairing, "walk_tables", lambda graph: None)
    with pytest.raises(RuntimeError):
        pairing.partners(torch.arange(8, device="meta"), 0.5)
    assert seen == [("meta", "meta")]


@pytest.mark.gpu
def test_a_graph_from_a_checkpoint_goes_to_the_gpu_with_its_threshold(monkeypatch):
    pairing, seen = restored(monkeypatch, confident=0.5)
    index = torch.arange(40, device="cuda")
    found = pairing.partners(index, 1.0, torch.Generator("cuda").manual_seed(0))
    assert found.is_cuda
    assert set(seen[-2:]) == {("cuda", "cuda")}  # the threshold's walks and the partners'
    fresh = DatasetPairing(k=4, confident=0.5)
    fresh._set(pairing.graph)
    assert torch.equal(fresh.partners(index, 1.0, torch.Generator("cuda").manual_seed(0)), found)


@pytest.mark.parametrize("kind", ["queue", "dataset"])
def test_what_is_remembered_of_images_is_stored_by_safetensors_and_older_lists_still_load(tmp_path, kind):
    from safetensors.torch import load_model, save_model

    h = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))

    def made():
        return torch.nn.ModuleDict({"it": Queue(2) if kind == "queue" else DatasetPairing(k=3)})

    model = made()
    if kind == "queue":
        for rows in (h[:8], h[8:], h[:4]):
            model["it"].push(rows, rows[:, :2], rows[:, 2:4])
        older = [list(batch) for batch in model["it"].stored]
    else:
        model["it"].rebuild(h)
        graph = model["it"].graph
        older = [graph.neighbors, graph.weights, graph.similarity]
    save_model(model, tmp_path / "m.safetensors")
    again, before, copied = made(), made(), copy.deepcopy(model)
    load_model(again, tmp_path / "m.safetensors", strict=True)
    before.load_state_dict({"it._extra_state": older}, strict=True)
    for other in (again, before, copied):
        if kind == "queue":
            assert all(torch.equal(a, b) for a, b in zip(other["it"].read("cpu"), model["it"].read("cpu"), strict=True))
        else:
            drawn = [m["it"].partners(torch.arange(20), 1.0, torch.Generator().manual_seed(1)) for m in (other, model)]
            assert torch.equal(*drawn)
    with pytest.raises(ValueError, match=r"state of a pairing is damaged .*: take another checkpoint"):
        made().load_state_dict({"it._extra_state": torch.arange(9, dtype=torch.uint8)})
