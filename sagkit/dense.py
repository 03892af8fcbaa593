"""Backbones of vectors and series: a multilayer perceptron, and convolutions along time.

    mlp-w<width>-l<layers>       (B, F0)   -> [linear, BatchNorm, ReLU] x layers                 -> (B, width)
    conv1d-w<width>-l<layers>    (B, C, T) -> [convolution of 5, stride 2, BatchNorm, ReLU] x layers, mean over time

[K] Plain ones; each further convolution has twice the channels, so that F = width * 2 ** (layers - 1).
"""

from __future__ import annotations

import re
from itertools import pairwise

from torch import nn

NAME = re.compile(r"(mlp|conv1d)-w([1-9]\d*)-l([1-9]\d*)")


def dense_backbone(name: str, inputs: int) -> tuple[nn.Module, int, int]:
    """A backbone by name, its feature width, and the axes its input has behind columns or channels (0 or 1).

    Args:
        name: see above.
        inputs: columns of a vector, or channels of a series.

    Raises:
        ValueError: for another name.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"no encoder of vectors {name!r}: use mlp-w128-l2 for (N, F), conv1d-w32-l3 for (N, C, T)")
    width, layers = int(found[2]), int(found[3])
    if found[1] == "mlp":
        steps = [(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise([inputs, *[width] * layers])]
        return nn.Sequential(*(module for step in steps for module in step)), width, 0
    widths = [inputs, *(width * 2**i for i in range(layers))]
    steps = [
        (nn.Conv1d(a, b, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths)
    ]
    pooled = nn.AdaptiveAvgPool1d(1), nn.Flatten()
    return nn.Sequential(*(module for step in steps for module in step), *pooled), widths[-1], 1
