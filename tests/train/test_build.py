"""Optimisers by one step worked out by hand, and the schedule at its landmarks."""

import math

import pytest
import torch
from torch import nn

from sagkit.train.build import learning_rate, make_optimizer
from sagkit.train.config import OPTIMIZERS
from sagkit.train.record import load_state, save_state


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    for p in net.parameters():
        nn.init.normal_(p)
        p.grad = torch.randn_like(p)
    return net


def step(name: str, net: nn.Module, weight_decay: float, lr: float = 0.5) -> list[tuple]:
    """One step from the given gradients: (parameter before, gradient, parameter after) for each."""
    optimizer = make_optimizer(name, net, weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = lr
    before = [(p.detach().clone(), p.grad.clone()) for p in net.parameters()]
    optimizer.step()
    return [(p, g, now.detach()) for (p, g), now in zip(before, net.parameters(), strict=True)]


def test_lars_adapts_and_decays_matrices_and_kernels_only():
    for p, g, after in step("lars", network(), weight_decay=0.1):
        if p.ndim > 1:  # You et al. 2017 with the trust coefficient 0.001
            trust = 0.001 * p.norm() / (g.norm() + 0.1 * p.norm())
            expected = p - 0.5 * trust * (g + 0.1 * p)
        else:
            expected = p - 0.5 * g
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-7)


def test_sgd_decays_matrices_and_kernels_only():
    for p, g, after in step("sgd", network(), weight_decay=0.1):
        g = g + 0.1 * p if p.ndim > 1 else g
        torch.testing.assert_close(after, p - 0.5 * 1.9 * g)  # Nesterov's first step: g + 0.9 g


def test_adamw_decays_matrices_and_kernels_only():
    for p, g, after in step("adamw", network(), weight_decay=0.1):
        kept = 1 - 0.5 * 0.1 * (p.ndim > 1)
        torch.testing.assert_close(after, kept * p - 0.5 * g.sign(), rtol=1e-4, atol=1e-5)  # Adam's first step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_are_left_alone(name):
    net = network()
    net[0].requires_grad_(False)
    found = step(name, net, weight_decay=0.1)
    assert all(torch.equal(p, after) for p, _, after in found[:2])
    assert not any(torch.equal(p, after) for p, _, after in found[2:])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stored_optimiser_goes_on_exactly(tmp_path, name):
    nets = network(), network()
    optimizers = [make_optimizer(name, net, 0.1) for net in nets]
    for optimizer in optimizers * 2:
        optimizer.step()
    save_state(tmp_path / "o.safetensors", optimizers[1].state_dict())
    resumed = make_optimizer(name, nets[1], 0.1)
    resumed.load_state_dict(load_state(tmp_path / "o.safetensors"))
    for optimizer in (optimizers[0], resumed):
        optimizer.step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'adam': choose one of lars, adamw, sgd"):
        make_optimizer("adam", network(), 0.0)


def test_the_schedule_at_its_landmarks():
    peak = 0.3 * 512 / 256
    rate = [learning_rate(step, steps=1010, warmup=10, base=0.3, batch_size=512) for step in range(1011)]
    assert rate[:10] == pytest.approx([peak * (i + 1) / 10 for i in range(10)])
    assert rate[10] == pytest.approx(peak)
    assert rate[10 + 500] == pytest.approx(peak * (1 + 0.001) / 2)  # half way down
    assert rate[10 + 250] == pytest.approx(peak * (0.001 + 0.999 * (1 + math.sqrt(0.5)) / 2))
    assert rate[1010] == pytest.approx(peak * 0.001)
    assert rate[10:] == sorted(rate[10:], reverse=True)


def test_the_schedule_without_warmup_starts_at_the_peak_and_scales_with_the_batch():
    assert learning_rate(0, steps=5, warmup=0, base=0.2, batch_size=256) == pytest.approx(0.2)
    assert learning_rate(0, steps=5, warmup=0, base=0.2, batch_size=64) == pytest.approx(0.05)
    assert learning_rate(0, steps=1, warmup=1, base=0.2, batch_size=256) == pytest.approx(0.2)


def test_lars_without_weight_decay_is_refused_because_it_would_be_plain_sgd():
    with pytest.raises(ValueError, match=r"got weight_decay=0.0: use 1e-4"):
        make_optimizer("lars", network(), 0.0)
