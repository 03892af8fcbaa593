"""A board in a notebook: a front end (board.js) that asks, and a pure function that answers.

    board = Board(explorer.ask, "explore")          what `sagkit.explore` returns
    loss_explorer(za, zb, features)                 boards over one picture of `scenes`, drawn anew at every move
    dendrogram_cutter(scene)

The front end is one ES module without dependencies, carried by anywidget, so that JupyterLab, Notebook 7 and VS Code
show it without a network; `serve` gives the same module to a browser tab. A page that shows no widgets shows one
sentence instead. [K]
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import anywidget

from sagkit.show import scenes
from sagkit.show.plots import Picture


class Board(anywidget.AnyWidget):
    """A widget whose front end asks questions, each a dictionary, and shows the answers.

    Args:
        ask: from a question to its answer, both plain data; see `answers.Explorer.ask`.
        name: what a page without widgets calls it.
    """

    _esm = Path(__file__).parent / "board.js"
    _css = Path(__file__).parent / "board.css"

    def __init__(self, ask: Callable[[dict], dict], name: str):
        super().__init__()
        self.ask, self.name = ask, name
        self.on_msg(self._asked)

    def _asked(self, _, message: dict, buffers) -> None:
        if message["question"].get("about") == "map":  # slow: the kernel answers other questions meanwhile
            Thread(target=self._answer, args=(message,), daemon=True).start()
        else:
            self._answer(message)

    def _answer(self, message: dict) -> None:
        self.send({"id": message["id"], "answer": self.ask(message["question"])})

    def __repr__(self) -> str:
        return f"[{self.name}: run this cell in JupyterLab, Notebook 7 or VS Code to move around in it]"


def picture_board(draw: Callable[..., Picture], controls: list[dict], name: str, first: Mapping[str, Any]) -> Board:
    """A board over a function from settings to a Picture.

    Args:
        draw: called with the controls' values by name; a ValueError it raises is told beside the last picture.
        controls: as `range_of`, `choice_of` and `tick_of` make them; their values are what the board begins with.
        name: what the board is called.
        first: values to begin with instead, by control.

    Raises:
        ValueError: for a control that there is not, or a first setting that `draw` refuses.
    """
    setting = {control["name"]: control.pop("value") for control in controls}
    for argument in first:
        if argument not in setting:
            raise ValueError(f"no control for {argument!r}: choose from {', '.join(setting)}")
    setting |= first

    def answer(chosen: Mapping[str, Any]) -> dict:
        figure, buffer = draw(**chosen), BytesIO()
        figure.savefig(buffer, format="svg")
        return {"url": f"data:image/svg+xml;base64,{b64encode(buffer.getvalue()).decode()}", "says": figure.says}

    answer(setting)

    def ask(question: dict) -> dict:
        if question.get("about") == "begin":
            return {"kind": "picture", "title": name, "controls": controls, "setting": setting}
        try:
            return answer(question["setting"])
        except ValueError as refusal:
            return {"refused": str(refusal)}

    return Board(ask, name)


def range_of(name: str, label: str, value: float, low: float, high: float, step: float = 1) -> dict:
    """A slider."""
    ends = {"min": low, "max": high, "step": step}
    return {"name": name, "label": label, "kind": "range", "value": value, "help": ""} | ends


def choice_of(name: str, label: str, value: str, options) -> dict:
    """A drop-down list."""
    return {"name": name, "label": label, "kind": "choice", "value": value, "options": list(options), "help": ""}


def tick_of(name: str, label: str, value: bool) -> dict:
    """A tick box."""
    return {"name": name, "label": label, "kind": "tick", "value": value, "help": ""}


def loss_explorer(za, zb, features, **first) -> Board:
    """Loss terms against alpha for projections za, zb (B, D) and features (B, F); see `scenes.loss_view`."""
    controls = [
        range_of("alpha", "alpha", 0.3, 0, 1, 0.05),
        range_of("k", "neighbours K", min(10, len(features) - 1), 1, min(30, len(features) - 1)),
        range_of("length", "walk length L", 2, 1, 8),
        tick_of("keep", "keep the augmentation term whole", True),
    ]
    return picture_board(lambda **setting: scenes.loss_view(za, zb, features, **setting), controls, "loss terms", first)


def dendrogram_cutter(scene, **first) -> Board:
    """Number of clusters and linkage of the tree of classes; see `scenes.dendrogram_view`."""
    classes = len(scene.labels.unique())
    controls = [
        range_of("clusters", "clusters", min(3, classes), 1, classes),
        choice_of("method", "linkage", "average", scenes.LINKAGES),
    ]
    return picture_board(lambda **setting: scenes.dendrogram_view(scene, **setting), controls, "dendrogram", first)
