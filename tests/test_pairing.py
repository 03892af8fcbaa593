"""WalkPairing: the law of its pairs, its randomness as a function of seed and call, and its place in a checkpoint."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import sagkit
from sagkit.checkpoint import load_state, save_state
from sagkit.graph import similarity_graph
from sagkit.pairing import WalkPairing


def views(n: int = 24, f: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, f, generator=generator)
    return h + 0.3 * torch.randn(n, f, generator=generator), h + 0.3 * torch.randn(n, f, generator=generator)


def same(a, b) -> bool:
    return all(map(torch.equal, a, b))


def test_it_is_what_the_package_exports():
    assert sagkit.WalkPairing is WalkPairing


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
