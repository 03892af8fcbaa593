"""sagkit: VICReg with random-walk positives, and a protocol that measures the structure between classes.

In every batch a similarity graph is built, weighted random walks on it choose further positive pairs, and a weighted
invariance term pulls those together. The house:

    graph  walk  pairing  loss      the method, on torch alone       augment  model    views of a batch; encoders
    data      image sets, vectors, taxonomies                        metrics  structure between classes, local quality
    train     configuration, methods, the training loop, records     pilot    a folder of images to a report
    show      pictures, explore                                     studies  what this repository's results are made by
    examples  the drop-in module in other people's training loops

Imports run downwards only: studies, pilot, show, train, metrics, pairing and loss, walk, then graph, data, augment and
model (pyproject.toml, importlinter). One letter, one meaning, in every signature and comment:

    B  images in a batch           N  nodes of a graph, rows of a feature matrix
    F  width of features h         K  neighbours kept per node
    D  width of projections z      L  steps of a walk
    C  classes                     H, W  height and width of an image, pixels
    S  walks; a path has L + 1     P  pairs

Importing sagkit loads nothing; the names below load torch and jaxtyping when they are first asked for, and
`load_encoder` and `explore` what they take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagkit.loss import sag_vicreg_loss, vicreg_loss, walk_term
    from sagkit.pairing import WalkPairing, gather
    from sagkit.show.explore import explore
    from sagkit.train.record import load_encoder

__version__ = "0.1.0"
__all__ = ["WalkPairing", "explore", "gather", "load_encoder", "sag_vicreg_loss", "vicreg_loss", "walk_term"]

# `sagkit report` and `sagkit assess` are found here; as modules of their own they would stand
# among the files of the method.
__path__.append(str(Path(__file__).parent / "studies" / "dash_m"))


def lazily(package: str, homes: Mapping[str, str], extra: str = "train") -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) that loads the home of a name when the name is first asked for.

    Args:
        package: its `__name__`.
        homes: module by name; `package.name` itself for a name that is a module of the package.
        extra: of pyproject.toml, which brings what those modules import.

    Raises:
        AttributeError: by the function returned, for a name that is not in `homes`.
        ModuleNotFoundError: likewise, for a package that is not installed; says how to install it.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(homes[name])
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{package}.{name}: {remedy(error, extra)}", name=error.name) from None
        return module if homes[name] == f"{package}.{name}" else getattr(module, name)

    return __getattr__


def remedy(error: ModuleNotFoundError, extra: str) -> str:
    """What to do about a package that is not installed, in one line."""
    return f"{error.name} is not installed: pip install 'sagkit[{extra}]'"


def require(name: str, value: Any, interval: str, remedy: str, whole: bool = False) -> None:
    """Refuse an argument outside its range; a Python or numpy scalar, so that no device is waited for.

    Args:
        name: of the argument.
        value: as given.
        interval: such as "[0, 1)" or "[1, inf)"; NaN lies in none, infinity beyond every open end.
        remedy: what to do instead.
        whole: only integers are numbers here.

    Raises:
        ValueError: in one line, for a value outside, and for one that is no number, as True or "3".
    """
    low, high = map(float, interval[1:-1].split(","))
    if high < math.inf or not interval.endswith(")"):
        said = f"in {interval}"
    else:
        said = f"{'at least' if interval[0] == '[' else 'greater than'} {low:g}"
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not number:
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number {said}, got {value!r}: {remedy}")
    if not lies_in(value, interval):
        raise ValueError(f"{name} must be {said}, got {value}: {remedy}")


def lies_in(value: Any, interval: str) -> bool:
    """Whether a number lies in an interval such as "[0, 1)"; NaN lies in none, infinity beyond every open end."""
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return bool(above and (value <= high if interval[-1] == "]" else value < high))  # of a numpy scalar, too


_HOMES = {
    **{name: f"sagkit.{name}" for name in ("graph", "walk", "pairing", "loss", "augment", "model")},
    **{name: f"sagkit.{name}" for name in ("data", "metrics", "train", "pilot", "show", "studies")},
    "WalkPairing": "sagkit.pairing",
    "explore": "sagkit.show.explore",
    "gather": "sagkit.pairing",
    "load_encoder": "sagkit.train.record",
    "sag_vicreg_loss": "sagkit.loss",
    "vicreg_loss": "sagkit.loss",
    "walk_term": "sagkit.loss",
}
__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*_HOMES, "__version__", "__doc__"})
