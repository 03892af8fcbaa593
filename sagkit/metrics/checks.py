"""The one check that every metric makes of its features: finite numbers."""

from __future__ import annotations

import numpy as np


def require_finite(features) -> None:
    """Refuse features (N, F), tensor or array, of which a row holds NaN or infinity.

    Raises:
        ValueError: with the number of such rows and the first.
    """
    x = np.asarray(features)
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise ValueError(f"{bad.sum()} of {len(x)} feature rows are not finite (first: row {bad.argmax()}): drop them")
