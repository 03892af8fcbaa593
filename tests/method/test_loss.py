"""The losses against the authors' formula in float64, value and gradient, and against explicit loops."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from sagkit.loss import barlow_twins_loss, covariance, invariance, sag_vicreg_loss, variance, vicreg_loss, walk_term
from sagkit.walk import Ends, Pairs, ends_of, no_pairs

SIZES = [(37, 19), (19, 37), (8, 8)]  # B > D, B < D (the other Gram matrix), B = D


def projections(rows: int, columns: int, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.1, 2, columns, dtype=dtype)  # some dimensions below the hinge at 1, some above
    mixing = torch.randn(columns, columns, generator=generator, dtype=dtype) / columns**0.5
    x = (torch.randn(rows, columns, generator=generator, dtype=dtype) @ mixing) * scale + 1
    y = x + 0.3 * torch.randn(rows, columns, generator=generator, dtype=dtype)
    return x.requires_grad_(), y.requires_grad_()


def authors(x, y):
    """The objective as the paper's authors compute it, written out from its formula."""
    rows, columns = x.shape
    repr_loss = ((x - y) ** 2).sum() / (rows * columns)
    total = 25 * repr_loss
    for z in (x, y):
        centred = z - z.sum(0) / rows
        matrix = torch.stack([(centred[:, p, None] * centred).sum(0) / (rows - 1) for p in range(columns)])
        std = torch.sqrt(torch.stack([matrix[p, p] for p in range(columns)]) + 0.0001)
        total = total + 25 * torch.clamp(1 - std, min=0).sum() / columns / 2
        off = matrix * (1 - torch.eye(columns, dtype=z.dtype))
        total = total + (off**2).sum() / columns
    return total


def some_pairs(rows: int, number: int = 50, seed: int = 1) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    anchor, positive = torch.randint(rows, (2, number), generator=generator)
    return Pairs(anchor, positive, torch.rand(number, generator=generator))


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_vicreg_equals_the_authors_formula_in_value_and_gradient(rows, columns):
    x, y = projections(rows, columns)
    ours, reference = vicreg_loss(x, y).total, authors(x, y)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=0)
    for ours_gradient, gradient in zip(gradients(ours, x, y), gradients(reference, x, y), strict=True):
        torch.testing.assert_close(ours_gradient, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_float32_is_close_to_float64(rows, columns):
    x, y = projections(rows, columns)
    single = vicreg_loss(x.detach().float(), y.detach().float()).total
    torch.testing.assert_close(single.double(), authors(x, y).detach(), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_lightly_gives_the_same_number():
    x, y = projections(37, 19, dtype=torch.float32)
    lightly = pytest.importorskip("lightly.loss")
    torch.testing.assert_close(vicreg_loss(x, y).total, lightly.VICRegLoss()(x, y), rtol=1e-5, atol=0)


def test_covariance_is_divided_by_d_and_not_by_d_times_d_minus_one():
    z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # every covariance is 2; two off-diagonal entries; D = 2
    assert covariance(z) == pytest.approx((4 + 4) / 2)


def test_each_term_in_closed_form():
    z = torch.tensor([[0.3], [-0.3]])  # variance 0.18
    assert variance(z) == pytest.approx(1 - np.sqrt(0.18 + 1e-4), abs=1e-6)
    assert variance(10 * z) == 0
    assert invariance(z, -z) == pytest.approx(0.36)
    assert covariance(torch.randn(9, 1)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_alpha_zero_is_vicreg_bit_for_bit(keep):
    x, y = projections(37, 19, dtype=torch.float32)
    plain, walked = vicreg_loss(x, y).total, sag_vicreg_loss(x, y, some_pairs(37), alpha=0.0, keep=keep).total
    assert torch.equal(plain, walked)
    for a, b in zip(gradients(plain, x, y), gradients(walked, x, y), strict=True):
        assert torch.equal(a, b)


def test_pairs_of_every_image_with_itself_make_the_walk_term_the_invariance_term():
    x, y = projections(37, 19)
    own = torch.arange(37)
    walked = walk_term(x, y, Pairs(own, own, torch.ones(37)))
    torch.testing.assert_close(walked, invariance(x, y), rtol=1e-14, atol=0)
    for a, b in zip(gradients(walked, x, y), gradients(invariance(x, y), x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_the_walk_term_equals_a_loop_over_pairs_divided_by_their_number():
    x, y = projections(12, 5)
    pairs = some_pairs(12)
    expected = 0.0
    for i, j, w in zip(*(column.tolist() for column in pairs), strict=True):
        forth = sum((x[i, d] - y[j, d]) ** 2 for d in range(5)) / 5
        back = sum((y[i, d] - x[j, d]) ** 2 for d in range(5)) / 5
        expected = expected + w * (forth + back) / 2
    torch.testing.assert_close(walk_term(x, y, pairs), expected / 50)
    doubtful = pairs._replace(weight=pairs.weight / 10)  # not divided by the sum of weights: ten times weaker
    torch.testing.assert_close(walk_term(x, y, doubtful) * 10, walk_term(x, y, pairs))


@pytest.mark.parametrize("null", [0.0, 1.0])
@pytest.mark.parametrize("stored", [0, 11])
def test_the_term_of_all_ends_and_its_gradient_are_those_of_a_loop_over_anchors_and_nodes(null, stored):
    za, zb = projections(9, 5)
    bank = tuple(z.detach() for z in projections(stored, 5, seed=2)) if stored else None
    generator = torch.Generator().manual_seed(3)
    node = torch.randint(9 + stored, (9, 7), generator=generator)  # some twice
    ends = Ends(node, torch.rand(9, 7, generator=generator, dtype=torch.float64), torch.zeros(9).double())
    ends = ends.scaled(0.4).against_null(null, 9 + stored)
    to_a, to_b = (torch.cat([z, kept]) for z, kept in zip((za, zb), bank, strict=True)) if stored else (za, zb)
    by_hand = torch.zeros((), dtype=torch.float64)
    for i in range(9):
        for j in range(9 + stored):
            w = ends.weight[i][node[i] == j].sum() - null * 0.4 / (9 + stored)
            by_hand = by_hand + w * (((za[i] - to_b[j]) ** 2).mean() + ((zb[i] - to_a[j]) ** 2).mean()) / 2 / 9
    found = walk_term(za, zb, ends, bank)
    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(gradients(found, za, zb), gradients(by_hand, za, zb), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_drawn_pairs_as_ends_have_the_same_term_far_from_the_origin_too():
    za, zb = (z.detach().float() + 100 for z in projections(20, 30))
    anchor = torch.arange(20).repeat_interleave(3)
    positive, weight = torch.randint(20, (60,), generator=torch.Generator().manual_seed(0)), torch.rand(60)
    pairs = Pairs(anchor, positive, weight)
    torch.testing.assert_close(walk_term(za, zb, ends_of(pairs, 20)), walk_term(za, zb, pairs), rtol=1e-4, atol=0)


def test_pairs_that_end_on_a_bank_pull_towards_its_rows_and_not_back():
    x, y = projections(12, 5)
    qa, qb = (q.detach() for q in projections(4, 5))
    pairs = Pairs(torch.tensor([0, 3, 7]), torch.tensor([13, 2, 15]), torch.tensor([0.5, 1.0, 0.25]))
    ends_a, ends_b = torch.cat([x, qa]), torch.cat([y, qb])
    expected = 0.0
    for i, j, w in zip(*(column.tolist() for column in pairs), strict=True):
        expected = expected + w * ((x[i] - ends_b[j]).square().mean() + (y[i] - ends_a[j]).square().mean()) / 2
    torch.testing.assert_close(walk_term(x, y, pairs, (qa, qb)), expected / 3)


@pytest.mark.parametrize(("keep", "own"), [(True, 1.0), (False, 0.6)])
def test_the_sum_is_put_together_as_keep_or_mix_says(keep, own):
    x, y = projections(20, 7)
    pairs = some_pairs(20)
    spread = (variance(x) + variance(y)) / 2
    expected = 10 * (own * invariance(x, y) + 0.4 * walk_term(x, y, pairs)) + 7 * spread
    expected = expected + 3 * (covariance(x) + covariance(y))
    loss = sag_vicreg_loss(x, y, pairs, alpha=0.4, keep=keep, sim=10, var=7, cov=3)
    torch.testing.assert_close(loss.total, expected)
    assert set(loss.terms) == {"invariance", "variance", "covariance", "walk"}
    assert not any(term.requires_grad for term in loss.terms.values())


def test_no_pairs_give_no_pull():
    x, y = projections(9, 4)
    assert walk_term(x, y, no_pairs()) == 0
    torch.testing.assert_close(sag_vicreg_loss(x, y, no_pairs(), alpha=0.5).total, vicreg_loss(x, y).total)


@pytest.mark.parametrize(
    ("rows", "alpha", "keep", "words"),
    [(1, 0.1, True, "at least 2 rows, got 1"), (4, -0.1, True, "got -0.1"), (4, 1.5, False, r"in \[0, 1\], got 1.5")],
)
def test_what_cannot_be_is_refused(rows, alpha, keep, words):
    z = torch.randn(rows, 3)
    with pytest.raises(ValueError, match=words):
        sag_vicreg_loss(z, z, no_pairs(), alpha, keep)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(4, 7), (7, 4)])
def test_gradients_agree_with_finite_differences(rows, columns):
    x, y = projections(rows, columns)
    pairs = some_pairs(rows, 9)
    assert gradcheck(lambda a, b: vicreg_loss(a, b).total, (x, y))
    for keep in (True, False):
        assert gradcheck(lambda a, b, keep=keep: sag_vicreg_loss(a, b, pairs, 0.4, keep).total, (x, y))


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_float32_gradients_are_close_to_float64(rows, columns):
    x, y = projections(rows, columns)
    single = [z.detach().float().requires_grad_() for z in (x, y)]
    expected = gradients(authors(x, y), x, y)
    for ours, reference in zip(gradients(vicreg_loss(*single).total, *single), expected, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=2e-6 * float(reference.abs().max()))


def test_own_pairs_are_the_invariance_term_to_the_last_bit_where_nothing_rounds():
    x, y = (torch.randint(-8, 9, (32, 16), generator=torch.Generator().manual_seed(i)).float() for i in (0, 1))
    pairs = Pairs(torch.arange(32), torch.arange(32), torch.ones(32))
    assert torch.equal(walk_term(x, y, pairs), invariance(x, y))


def test_covariance_of_uncorrelated_columns_vanishes_in_float32():
    walsh = torch.ones(1, 1)  # Walsh functions: orthogonal, of mean 0, variance 1
    for _ in range(8):
        walsh = torch.cat([torch.cat([walsh, walsh], 1), torch.cat([walsh, -walsh], 1)])
    z = (walsh[:, 1:65] + 3).requires_grad_()
    value = covariance(z)
    value.backward()
    assert abs(value.item()) < 1e-6
    assert z.grad.abs().max() < 1e-6


@pytest.mark.parametrize("rows", [256, 24])
def test_autocast_around_the_loss_does_not_touch_its_precision(rows):
    x, y = projections(rows, 48, dtype=torch.float32)
    outside = vicreg_loss(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        inside = vicreg_loss(x, y)
    for name, term in outside.terms.items():
        assert inside.terms[name].item() == pytest.approx(term.item(), rel=1e-5), name


def barlow_by_loops(x, y, scale=0.1, redundancy=0.005):
    """Barlow Twins entry by entry of its correlation matrix."""
    columns, total = x.shape[1], 0
    for d in range(columns):
        for e in range(columns):
            p, q = x[:, d] - x[:, d].mean(), y[:, e] - y[:, e].mean()
            c = (p * q).mean() / torch.sqrt((p.square().mean() + 1e-5) * (q.square().mean() + 1e-5))
            total = total + ((1 - c) ** 2 if d == e else redundancy * c**2)
    return scale * total


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_barlow_twins_equals_explicit_loops_in_value_and_gradient(rows, columns):
    x, y = projections(rows, columns)
    ours, reference = barlow_twins_loss(x, y).total, barlow_by_loops(x, y)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=0)
    for ours_gradient, gradient in zip(gradients(ours, x, y), gradients(reference, x, y), strict=True):
        torch.testing.assert_close(ours_gradient, gradient, rtol=1e-9, atol=1e-12)


def test_barlow_twins_is_lightlys_times_solo_learns_scale():
    x, y = projections(37, 19, dtype=torch.float32)
    lightly = pytest.importorskip("lightly.loss")
    theirs = 0.1 * lightly.BarlowTwinsLoss()(x.detach(), y.detach())
    torch.testing.assert_close(barlow_twins_loss(x, y).total, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("keep", [True, False])
def test_the_walk_term_of_barlow_twins_by_loops_with_a_bank(keep):
    x, y = projections(11, 7)
    stored = tuple(z.detach() for z in projections(5, 7, seed=3))
    pairs = Pairs(torch.tensor([0, 4, 10, 2]), torch.tensor([3, 12, 15, 2]), torch.tensor([0.5, 1.0, 0.2, 0.0]))
    walked = 0
    for i, j, w in zip(*pairs, strict=True):
        for d in range(7):
            (ax, ay), (bx, by) = (
                tuple(
                    (v - z[:, d].mean()) / torch.sqrt(z[:, d].var(correction=0) + 1e-5) for v in (z[i, d], other[j, d])
                )
                for z, other in ((x, torch.cat([x, stored[0]])), (y, torch.cat([y, stored[1]])))
            )
            walked = walked + w * ((ax - by) ** 2 + (bx - ay) ** 2) / 2 / 7 / 4
    own = 1 if keep else 0.6
    plain = barlow_twins_loss(x, y)
    expected = 0.1 * (own * plain.terms["invariance"] + 0.4 * 7 / 2 * walked + 0.005 * plain.terms["redundancy"])
    loss = barlow_twins_loss(x, y, pairs, 0.4, keep, bank=stored)
    torch.testing.assert_close(loss.total, expected, rtol=1e-6, atol=0)  # the pairs' weights are float32


def test_own_pairs_pull_barlow_twins_by_the_sum_of_what_the_diagonal_lacks():
    x, y = projections(37, 19)
    own = torch.arange(37)
    found = barlow_twins_loss(x, y, Pairs(own, own, torch.ones(37, dtype=torch.float64)), 1.0).terms["walk"]
    standard = [(z - z.mean(0)) / z.std(0, correction=0) for z in (x, y)]
    lacking = (1 - (standard[0] * standard[1]).mean(0)).sum()
    torch.testing.assert_close(found, lacking.detach(), rtol=1e-3, atol=0)  # the 1e-5 in the standard deviation


@pytest.mark.parametrize("keep", [True, False])
def test_barlow_twins_at_alpha_zero_is_itself_bit_for_bit(keep):
    x, y = projections(19, 37)
    assert torch.equal(barlow_twins_loss(x, y, some_pairs(19), 0.0, keep).total, barlow_twins_loss(x, y).total)
    with pytest.raises(ValueError, match="alpha must be"):
        barlow_twins_loss(x, y, some_pairs(19), -0.1, keep)
