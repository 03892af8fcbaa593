"""Near duplicates among images, before anything is trained: likely pairs are proposed, aligned pictures decide.

    likely     an image's nearest others by perceptual hash (imagehash.phash: the signs of the 64 lowest frequencies of
               a cosine transform), and by pixels at 16 x 16
    alignment  one picture is scaled and shifted until it lies on the other: the best of ten starts at 16 x 16 pixels,
               then Gauss-Newton steps at 32 x 32
    detail     correlation of what lies between blurs of 9 and 3 pixels, over its own local contrast, where they overlap

What a picture shares with its nearest others says nothing (pages, parts under one camera, charts, apples on white): the
mean and first components of their detail are taken off, and what is left has to be alike, too. A few others that are
themselves as good as equal to it may be copies and do not count among them; many of them are a series and do. More is
asked in a series, and of pairs whose hashes differ much: of copies, only a crop does that, and it leaves detail whole.
Pictures without detail, as of sky, are duplicates only where all pixels agree up to one level: compression hides
copies of them. Memory is linear in the number of images. [R] the hash, [K] the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sagkit.data.load import check_images
from sagkit.graph import nearest_neighbors

NEAREST, BITS = 24, 22  # nearest others looked at, and how many bits of 64 a hash may differ in
COARSE, FINE = 16, 32  # pixels, height and width, of the two alignments
CROP, MOST = 0.1, 0.16  # what a copy may lack of each side, and the largest change of scale and shift of a warp
STILL = 0.02  # change of scale and shift that is none
PLAUSIBLE = 0.85  # correlation at 16 x 16 below which a pair is not aligned further
STEPS = 6  # of Gauss and Newton
CLOSE = 12  # bits within which hashes are near
ALIKE, SURE = 0.7, 0.9  # correlation of detail of duplicates whose hashes are near, and are not
LEFT, SURELY_LEFT = 0.65, 0.85  # of what is left beyond their nearest others; the second also in a series
HUE, COLOURED = 0.6, 8.0  # cosine of their colours, where both have as much as JPEG at quality 10 does not change
NOISE, LEAST_DETAIL = 3.0, 1.5  # of 255 levels: contrast that counts half, and least standard deviation of detail
SERIES, MUCH = 8, 0.4  # others as good as equal, or median correlation of all, that make a series
SHARED = 4  # components that a picture shares with its nearest others
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # of red, green, blue, by which pictures are made grey
CHUNK = 512  # pairs, or images, at a time


def near_duplicates(images: Tensor) -> list[list[int]]:
    """Groups of images that are copies but for compression, scale, brightness, colour, or a crop of up to a tenth.

    A group is a connected component: not every two of it need be alike. Largest group first.

    Args:
        images: uint8 (N, 3, H, W).

    Raises:
        ValueError: for anything else.
    """
    check_images(images)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    kept, equal = distinct(images)
    i, j = torch.cat([equal, *(kept[pairs] for pairs in copies(images, kept))]).T.numpy()
    joined = coo_array((np.ones(len(i)), (i, j)), shape=(len(images),) * 2)
    group = connected_components(joined, directed=False)[1]
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((g.tolist() for g in groups if len(g) > 1), key=lambda g: (-len(g), g))


def distinct(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M,) of the first image of each content, and pairs (P, 2) of a later row with the first of equal pixels."""
    first: dict[bytes, int] = {}
    seen = [first.setdefault(hashlib.sha256(image.contiguous().numpy()).digest(), i) for i, image in enumerate(images)]
    pairs = [(start, i) for i, start in enumerate(seen) if start != i]
    return torch.tensor(sorted(first.values())), torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def copies(images: Tensor, rows: Tensor) -> Iterator[Tensor]:
    """Pairs (P, 2) of positions in `rows` whose images are copies, a chunk at a time."""
    if len(rows) < 2:
        return
    seen = coarse_crops(images, rows)
    most = min(NEAREST, len(rows) - 1)
    signs = hashes(images, rows)
    agreement, by_hash = nearest_neighbors(F.normalize(signs, dim=1), most)
    likeness, by_pixel = nearest_neighbors(seen[:, 0].float(), most)
    likely = [_pairs(by_hash, agreement >= 1 - 2 * BITS / 64 - 1e-4), _pairs(by_pixel, likeness >= PLAUSIBLE)]
    for pairs in torch.cat(likely).unique(dim=0).split(CHUNK):
        yield pairs[same_pixels(*(images[rows[side]] for side in pairs.T))]
        pairs, start = plausible(seen, pairs)
        if not len(pairs):
            continue
        moving, fixed = (images[rows[side]] for side in pairs.T)
        ours, theirs = planes(moving, FINE), planes(fixed, FINE)
        warp = aligned(ours, theirs, start)
        moved, inside = warped(ours, warp)
        busy = torch.minimum(contrast(ours), contrast(theirs)) >= LEAST_DETAIL
        ours, theirs = detail(moved), detail(theirs)
        possible = ((warp - starts()[0]).abs().amax(dim=1) <= MOST) & same_hue(moving, fixed)
        close = (signs[pairs[:, 0]] * signs[pairs[:, 1]]).sum(dim=1) >= 64 - 2 * CLOSE
        alike = busy & possible & (correlation(ours, theirs, inside) >= torch.where(close, ALIKE, SURE))
        for those, away in as_moved(pairs, warp, alike):  # what the pictures of one group of pairs share with others
            others = planes(images[rows[by_pixel[pairs[those[0], 0 if len(away) else 1]]]], FINE)
            if len(away):
                others, _ = warped(others, away.expand(len(others), 3))
            left, serial = beyond_others(ours[those], theirs[those], detail(others))
            alike[those] = left >= torch.where(close[those] & (not serial), LEFT, SURELY_LEFT)
        yield pairs[alike]


def hashes(images: Tensor, rows: Tensor) -> Tensor:
    """Perceptual hashes of the images at `rows` as signs, float32 (M, 64)."""
    from imagehash import phash

    found = [phash(Image.fromarray(images[row].permute(1, 2, 0).contiguous().numpy())).hash.ravel() for row in rows]
    return torch.from_numpy(np.stack(found)).float() * 2 - 1


def coarse_crops(images: Tensor, rows: Tensor) -> Tensor:
    """Standardised pixels of each image and of its nine crops, float16 (M, 10, COARSE²)."""
    found = torch.empty(len(rows), len(starts()), COARSE**2, dtype=torch.float16)
    for part in torch.arange(len(rows)).split(CHUNK):
        small = planes(images[rows[part]], COARSE)
        for n, start in enumerate(starts()):
            x = warped(small, start.expand(len(part), 3))[0].flatten(1)
            found[part, n] = F.normalize(x - x.mean(dim=1, keepdim=True), dim=1).half()
    return found


def plausible(seen: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs that coarse pixels allow, each as (the one to move, the other), and the start (P, 3) that fits best."""
    i, j = pairs.T
    forth, back = ((seen[a].float() @ seen[b, 0].float()[:, :, None])[:, :, 0] for a, b in ((i, j), (j, i)))
    best = torch.cat([forth, back], dim=1).max(dim=1)
    oriented = torch.where((best.indices >= forth.shape[1])[:, None], pairs.flip(1), pairs)
    good = best.values >= PLAUSIBLE
    return oriented[good], starts()[best.indices % forth.shape[1]][good]


def starts() -> Tensor:
    """Warps of scale and shift, in half sides: none, and a crop by CROP at nine places; (10, 3)."""
    shifts = torch.cartesian_prod(*[torch.tensor([-CROP, 0.0, CROP])] * 2)
    return torch.cat([torch.tensor([[1.0, 0.0, 0.0]]), F.pad(shifts, (1, 0), value=1 - CROP)])


def planes(images: Tensor, side: int) -> Tensor:
    """Luma at side x side pixels, float (P, 1, side, side)."""
    luma = (images.float() * LUMA).sum(dim=1, keepdim=True)
    return F.interpolate(luma, (side, side), mode="bilinear", antialias=True)


def blur(x: Tensor, side: int) -> Tensor:
    """Mean over a window of odd side; beyond the edge the picture is mirrored."""
    return F.avg_pool2d(F.pad(x, (side // 2,) * 4, mode="reflect"), side, 1)


def detail(x: Tensor) -> Tensor:
    """What lies between blurs of 9 and 3 pixels, over its local contrast: a strong edge weighs as texture does."""
    band = blur(x, 3) - blur(x, 9)
    return band / (blur(band**2, 9).sqrt() + NOISE)


def contrast(x: Tensor) -> Tensor:
    """Standard deviation (P,) of the band behind `detail`, in levels."""
    return (blur(x, 3) - blur(x, 9)).flatten(1).std(dim=1)


def warped(x: Tensor, warp: Tensor) -> tuple[Tensor, Tensor]:
    """Images under warps (P, 3) of scale and shift, in half sides, and where that lies inside them."""
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = warp[:, 0]
    theta[:, :, 2] = warp[:, 1:]
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    inside = (grid.abs() <= 1).all(dim=-1)[:, None]
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False), inside.float()


def correlation(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """Pearson correlation (P,) of images (P, 1, H, W) where `inside`."""
    weight = inside / inside.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    x, y = (v - (v * weight).sum(dim=(1, 2, 3), keepdim=True) for v in (x, y))
    both, one, other = ((a * b * weight).sum(dim=(1, 2, 3)) for a, b in ((x, y), (x, x), (y, y)))
    return both / (one * other).sqrt().clamp(min=1e-6)


def as_moved(pairs: Tensor, warp: Tensor, alike: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of alike pairs whose others are the same, and how these are to be moved.

    Where nothing was moved, those are the nearest others of the fixed picture, as they are: an empty warp. Else each
    pair has those of the moving one, and they move with it.
    """
    still = (warp - starts()[0]).abs().amax(dim=1) <= STILL
    unmoved = (alike & still).nonzero().flatten()
    for row in pairs[unmoved, 1].unique().tolist():
        yield unmoved[pairs[unmoved, 1] == row], warp[:0]
    for row in (alike & ~still).nonzero():
        yield row, warp[row]


def aligned(x: Tensor, y: Tensor, warp: Tensor) -> Tensor:
    """Warps (P, 3) that move x onto y, by Gauss-Newton on gain, offset, scale and shift.

    Args:
        x: (P, 1, H, H) in levels.
        y: likewise.
        warp: (P, 3) to start from.
    """
    soft, wanted, side = blur(x, 3), blur(y, 3), x.shape[-1]
    v = (torch.arange(side) * 2 + 1) / side - 1
    for _ in range(STEPS):
        moved, inside = warped(soft, warp)
        right, down = F.pad(moved, (1, 1, 0, 0), mode="replicate"), F.pad(moved, (0, 0, 1, 1), mode="replicate")
        gx, gy = (right[..., 2:] - right[..., :-2]) * side / 4, (down[..., 2:, :] - down[..., :-2, :]) * side / 4
        columns = [gx * v + gy * v[:, None], gx, gy, moved, torch.ones_like(moved)]  # of a change of scale, shift, gain
        a = (torch.cat(columns, dim=1) * inside).flatten(2)  # (P, 5, pixels)
        gram = a @ a.mT
        ridge = 1e-4 * torch.diag_embed(gram.diagonal(dim1=1, dim2=2).clamp(min=1e-3))
        solved = torch.linalg.solve(gram + ridge, a @ (wanted * inside).flatten(2).mT)[:, :, 0]
        warp = warp + (solved[:, :3] / solved[:, 3:4].clamp(min=0.2) * warp[:, :1]).clamp(-0.05, 0.05)
    return warp


def same_pixels(x: Tensor, y: Tensor) -> Tensor:
    """Whether all pixels of images agree up to one level, bool (P,)."""
    return (x.short() - y.short()).abs().flatten(1).amax(dim=1) <= 1


def same_hue(x: Tensor, y: Tensor) -> Tensor:
    """Whether the colours of images lie on one side of grey, bool (P,); grey ones go with every colour."""
    small = (F.adaptive_avg_pool2d(side.float(), 4) for side in (x, y))
    a, b = ((side - side.mean(dim=1, keepdim=True)).flatten(1) for side in small)
    coloured = torch.minimum(a.norm(dim=1), b.norm(dim=1)) >= COLOURED * a.shape[1] ** 0.5
    return ~coloured | (F.cosine_similarity(a, b, dim=1) >= HUE)


def beyond_others(x: Tensor, y: Tensor, others: Tensor) -> tuple[Tensor, bool]:
    """Correlation (P,) of details x and y (P, 1, H, W) without what y's nearest others (n, 1, H, W) share with it, and
    whether these are a series. All of y are of one picture."""
    x, y, others = x.flatten(1), y.flatten(1), others.flatten(1)
    likeness = F.cosine_similarity(others, y[:1], dim=1)
    many = int((likeness >= ALIKE).sum()) > SERIES
    others = others if many else others[likeness < ALIKE]
    centre = others.mean(dim=0) if len(others) else torch.zeros(x.shape[1])
    basis = torch.linalg.svd(others - centre, full_matrices=False).Vh[: min(SHARED, len(others) // 4)]
    left, right = (v - centre - (v - centre) @ basis.T @ basis for v in (x, y))
    return F.cosine_similarity(left, right, dim=1), many or float(likeness.median()) >= MUCH


def _pairs(neighbors: Tensor, near: Tensor) -> Tensor:
    """Pairs (P, 2), smaller row first, of rows and those of their neighbours that are near."""
    row, column = near.nonzero(as_tuple=True)
    return torch.stack([row, neighbors[row, column]], dim=1).sort(dim=1).values
