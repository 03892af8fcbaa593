"""VICReg's three terms, the walk term, and their sums; Barlow Twins, with and without the same walk term.

    vicreg      =  sim s(Za, Zb) + var v(Za, Zb) + cov (c(Za) + c(Zb))
    sag_vicreg  =  sim [s + alpha r] + var v + cov c          (keep)
                   sim [(1 - alpha) s + alpha r] + var v + cov c   (mix)
    barlow_twins =  scale (sum over d of (1 - C_dd)^2 + lambda sum over d != e of C_de^2),  C = correlation of Za and Zb

Sources: [R] Bardes, Ponce, LeCun 2022 and the authors' code; [S] Simai, Talmon, Shaham 2025 for the idea of a
weighted invariance term over random-walk pairs; [R] Zbontar et al. 2021 for Barlow Twins, with solo-learn's scale;
[K] the exact form of r and of its weights is this kit's, and so is its place in Barlow Twins.

Differs from the source: nothing where the VICReg paper and its authors' code agree (both divide the covariance term by
D; a port that divides by D (D - 1) is another loss); where they do not, the code is followed: s is averaged over D (the
paper's formula sums) and the variance of the two views is halved (the paper's is not). The squared covariances are
summed through whichever Gram matrix is smaller, (D, D) or (B, B): the same number, at min(B, D) / D of the
multiplications.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sagkit import require
from sagkit.graph import require_tensors
from sagkit.walk import Ends, Pairs

VARIANCE_EPS = 1e-4  # authors' code, inside the square root
BATCHNORM_EPS = 1e-5  # torch's BatchNorm1d, by which Barlow Twins' authors standardise


class Loss(NamedTuple):
    """A total to call backward on, and its unweighted, detached terms by name."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]


def invariance(za: Float[Tensor, "B D"], zb: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean over B and D of the squared difference of the two views."""
    return F.mse_loss(za, zb)


def variance(z: Float[Tensor, "B D"], eps: float = VARIANCE_EPS) -> Float[Tensor, ""]:
    """Mean over D of how far each dimension's standard deviation falls short of 1; in [0, 1]."""
    _check_rows(z)
    require("eps", eps, "[0, inf)", f"{VARIANCE_EPS} is the authors'")
    std = torch.sqrt(z.var(dim=0) + eps)  # (D,)
    return F.relu(1 - std).mean()


def covariance(z: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Sum of the squared off-diagonal covariances, divided by D.

    The sum over all entries is |Z'Z|^2 = |ZZ'|^2 (Frobenius), so the smaller product is formed; the diagonal,
    sum_p var_p^2, is then taken off. Accurate while the off-diagonal sum is not smaller than float precision
    times the diagonal one; for float32 that is a mean squared correlation of about 1e-7.
    """
    _check_rows(z)
    rows, columns = z.shape
    # Under autocast the products would be bfloat16, and the diagonal would no longer cancel.
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        centred = z - z.mean(dim=0)
        gram = centred.T @ centred if columns <= rows else centred @ centred.T
    diagonal = centred.square().sum(dim=0)  # (D,)
    return (gram.square().sum() - diagonal.square().sum()) / ((rows - 1) ** 2 * columns)


def walk_term(
    za: Float[Tensor, "B D"],
    zb: Float[Tensor, "B D"],
    pairs: Pairs | Ends,
    bank: tuple[Float[Tensor, "Q D"], Float[Tensor, "Q D"]] | None = None,
) -> Float[Tensor, ""]:
    """Weighted invariance over walk pairs, r of figures/METHOD.md section 3 [K].

    r = (1 / P) sum over pairs of w (msd(za_i, zb_j) + msd(zb_i, za_j)) / 2, P the number of pairs and not the sum
    of their weights: a batch of doubtful pairs pulls weakly. No pairs: 0. Pairs (i, i) of weight 1: invariance.
    All ends of B anchors: r = (1 / B) sum over i, j of W_ij (msd(za_i, zb_j) + msd(zb_i, za_j)) / 2.
    With a bank (stored projections of the two views, without gradient), a positive of B + m is its row m.

    Raises:
        ValueError: for parts of pairs that differ in length, a bank of another width, and on a CPU for rows that there
            are not.
    """
    if not isinstance(pairs, tuple) or len(pairs) != 3:
        raise ValueError(f"pairs must be walk.Pairs or walk.Ends, got {type(pairs).__name__}: see walk.sample_pairs")
    if bank is not None and {stored.shape[1:] for stored in bank} != {za.shape[1:]}:
        told = " and ".join(str(tuple(stored.shape)) for stored in bank)
        raise ValueError(f"a bank is two of projections (Q, {za.shape[1]}), as wide as the batch's: got {told}")
    nodes = len(za) + (0 if bank is None else len(bank[0]))
    if isinstance(pairs, Ends):
        _check_nodes(pairs.node, nodes)
        return _term_of_ends(za, zb, pairs, bank)
    anchor, positive, weight = pairs
    if not anchor.shape == positive.shape == weight.shape:
        told = ", ".join(str(tuple(part.shape)) for part in pairs)
        raise ValueError(f"pairs are three rows of one length (P,): got {told}")
    _check_nodes(anchor, len(za))
    _check_nodes(positive, nodes)
    if len(anchor) == 0:
        return za.new_zeros(())
    to_a, to_b = (
        (za, zb) if bank is None else (torch.cat([z, stored]) for z, stored in zip((za, zb), bank, strict=True))
    )
    forth = (za[anchor] - to_b[positive]).square().mean(dim=1)  # (P,)
    back = (zb[anchor] - to_a[positive]).square().mean(dim=1)  # (P,)
    return (weight.to(za.dtype) * (forth + back) / 2).mean()


def _check_nodes(index: Tensor, n: int) -> None:
    """Refuse rows that there are not, -1 among them; on a CPU alone, as reading them elsewhere would wait for it."""
    if index.device.type != "cpu" or torch.compiler.is_compiling() or not index.numel():
        return
    low, high = (int(end) for end in index.aminmax())
    if low < 0 or high >= n:
        raise ValueError(
            f"pairs lead to rows {low}..{high}, and there are {n}: give their bank, or pairs of this batch"
        )


def _term_of_ends(za: Tensor, zb: Tensor, ends: Ends, bank: tuple[Tensor, Tensor] | None) -> Tensor:
    """The walk term through row sums, column sums and products of W with z: no difference of two rows is formed.

    Within the batch W and its transpose weigh the same products, za_i zb_j, so that one multiplication by W + W' does
    for the value and one for the gradient.
    """
    # Differences do not see a common shift, and sums of squares are most accurate around the mean.
    centre = torch.cat([za, zb]).detach().mean(dim=0)
    za, zb = za - centre, zb - centre
    square = (za.square() + zb.square()).sum(dim=1)  # (B,)
    inside = ends.node < len(za)
    within = ends._replace(node=ends.node.where(inside, 0), weight=ends.weight.where(inside, 0)).to_dense(len(za))
    both = (within + within.T).to(za.dtype)  # (B, B)
    total = both.sum(dim=1) @ square - 2 * (za * (both @ zb)).sum()
    if bank is not None:
        bank_a, bank_b = (stored - centre for stored in bank)
        node, weight = (ends.node - len(za)).where(~inside, 0), ends.weight.where(~inside, 0).to(za.dtype)
        column = za.new_zeros(len(bank_a)).index_add_(0, node.flatten(), weight.flatten()) - ends.null.sum()
        row = weight.sum(dim=1) - len(bank_a) * ends.null
        to_a, to_b = (
            F.embedding_bag(node, stored, mode="sum", per_sample_weights=weight)
            - ends.null[:, None] * stored.sum(dim=0)
            for stored in (bank_a, bank_b)
        )
        total = total + row @ square + column @ (bank_a.square() + bank_b.square()).sum(dim=1)
        total = total - 2 * (za * to_b + zb * to_a).sum()
    return total / (2 * za.numel())


def vicreg_loss(
    za: Float[Tensor, "B D"], zb: Float[Tensor, "B D"], sim: float = 25, var: float = 25, cov: float = 1
) -> Loss:
    """VICReg as its authors' code computes it.

    Args:
        za: projections of view a.
        zb: projections of view b, row by row the same images.
        sim: weight of the invariance term.
        var: weight of the variance term.
        cov: weight of the covariance term.

    Raises:
        ValueError: for weights that are negative or not finite, shapes that differ, or fewer than two rows.
    """
    return _weighted_sum(za, zb, None, sim=sim, var=var, cov=cov, own=1.0, walked=0.0)


def sag_vicreg_loss(
    za: Float[Tensor, "B D"],
    zb: Float[Tensor, "B D"],
    pairs: Pairs | Ends | None,
    alpha: float,
    keep: bool = True,
    sim: float = 25,
    var: float = 25,
    cov: float = 1,
    bank: tuple[Float[Tensor, "Q D"], Float[Tensor, "Q D"]] | None = None,
) -> Loss:
    """VICReg with the weighted walk term beside (`keep`) or instead of part of (`mix`) the invariance term.

    Args:
        za: projections of view a.
        zb: projections of view b, row by row the same images.
        pairs: walk pairs among the rows, or all ends of walks (`walk.sample_pairs`, `walk.expected_ends`); None where
            alpha is 0.
        alpha: strength of the walk term, at least 0 (at most 1 under `mix`). 0 is VICReg bit for bit.
        keep: keep the augmentation term whole (default), or mix it as (1 - alpha) s + alpha r.
        sim: weight of the invariance term.
        var: weight of the variance term.
        cov: weight of the covariance term.
        bank: stored projections that pairs may end on; see `walk_term`. Variance and covariance are the batch's alone.

    Raises:
        ValueError: for a bad alpha, an alpha without pairs, and as `vicreg_loss`.
    """
    _check_alpha(alpha, keep, pairs)
    own = 1.0 if keep else 1 - alpha
    return _weighted_sum(za, zb, pairs, sim=sim, var=var, cov=cov, own=own, walked=alpha, bank=bank)


def _weighted_sum(za, zb, pairs, *, sim, var, cov, own, walked, bank=None) -> Loss:
    _check_views(za, zb, sim=sim, var=var, cov=cov)
    s = invariance(za, zb)
    v = (variance(za) + variance(zb)) / 2
    c = covariance(za) + covariance(zb)
    terms = {"invariance": s, "variance": v, "covariance": c}
    pull = s if own == 1 else own * s
    if walked > 0:  # skipped at 0, so that the sum below is VICReg's to the last bit
        terms["walk"] = walk_term(za, zb, pairs, bank)
        pull = pull + walked * terms["walk"]
    total = sim * pull + var * v + cov * c
    return Loss(total, {name: term.detach() for name, term in terms.items()})


def barlow_twins_loss(
    za: Float[Tensor, "B D"],
    zb: Float[Tensor, "B D"],
    pairs: Pairs | Ends | None = None,
    alpha: float = 0.0,
    keep: bool = True,
    scale: float = 0.1,
    redundancy: float = 5e-3,
    bank: tuple[Float[Tensor, "Q D"], Float[Tensor, "Q D"]] | None = None,
) -> Loss:
    """Barlow Twins, and with pairs the walk term beside (`keep`) or instead of part of its invariance term.

    The walk term is r of the standardised projections, times D / 2: for pairs (i, i) of weight 1 that is the sum over
    d of (1 - C_dd), so it starts where the invariance term, the sum of (1 - C_dd)^2, does [K].

    Args:
        za: projections of view a.
        zb: projections of view b, row by row the same images.
        pairs: walk pairs among the rows, or all ends of walks (`walk.sample_pairs`, `walk.expected_ends`); None where
            alpha is 0.
        alpha: strength of the walk term, at least 0 (at most 1 under `mix`). 0 is Barlow Twins bit for bit.
        keep: keep the invariance term whole (default), or mix it as (1 - alpha) own + alpha walked.
        scale: of the whole; 0.1 in solo-learn's recipe for CIFAR.
        redundancy: lambda, weight of the off-diagonal correlations; 5e-3 in the paper.
        bank: stored projections that pairs may end on; standardised by the batch's statistics.

    Raises:
        ValueError: for a bad alpha, an alpha without pairs, and as `vicreg_loss`.
    """
    _check_alpha(alpha, keep, pairs)
    _check_views(za, zb, scale=scale, redundancy=redundancy)
    (ua, bank_a), (ub, bank_b) = (
        _standardise(z, stored) for z, stored in zip((za, zb), bank or (None, None), strict=True)
    )
    correlation = ua.T @ ub / len(za)  # (D, D)
    on = correlation.diagonal()
    terms = {"invariance": (1 - on).square().sum(), "redundancy": correlation.square().sum() - on.square().sum()}
    pull = terms["invariance"] if keep or alpha == 0 else (1 - alpha) * terms["invariance"]
    if alpha > 0 and pairs is not None:
        kept = None if bank_a is None or bank_b is None else (bank_a, bank_b)
        terms["walk"] = za.shape[1] / 2 * walk_term(ua, ub, pairs, kept)
        pull = pull + alpha * terms["walk"]
    total = scale * (pull + redundancy * terms["redundancy"])
    return Loss(total, {name: term.detach() for name, term in terms.items()})


def _standardise(z: Tensor, stored: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Columns of mean 0 and variance 1, as BatchNorm makes them (the authors' way); a bank by the same numbers."""
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    scale = torch.rsqrt(variance + BATCHNORM_EPS)
    return (z - mean) * scale, None if stored is None else (stored - mean) * scale


def _check_alpha(alpha: float, keep: bool, pairs: Pairs | Ends | None) -> None:
    require("alpha", alpha, "[0, inf)" if keep else "[0, 1]", "0 leaves the walk term out")
    if alpha > 0 and pairs is None:
        raise ValueError(f"alpha = {alpha} weighs pairs, and there are none: give pairs, or alpha = 0")


def _check_views(za: Tensor, zb: Tensor, **weights: float) -> None:
    for name, weight in weights.items():
        require(name, weight, "[0, inf)", "it weighs a term, and 0 leaves that out")
    require_tensors(za=za, zb=zb)
    if za.shape != zb.shape:
        raise ValueError(f"the two views differ in shape, {tuple(za.shape)} and {tuple(zb.shape)}: project both alike")
    _check_rows(za)
    _check_rows(zb)


def _check_rows(z: Tensor) -> None:
    if z.ndim != 2 or not z.is_floating_point():
        raise ValueError(f"projections must be floats (B, D), got {tuple(z.shape)} of {z.dtype}: flatten each row")
    if len(z) < 2:
        raise ValueError(f"variance needs at least 2 rows, got {len(z)}: use a larger batch")
