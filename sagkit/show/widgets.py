"""Controls over the views of `scenes`: move a slider, the picture is drawn again; a refused setting is said in words.

    walk_player(scene, start=5)           in JupyterLab; the pure function behind it is scenes.walk_view

Each widget is a Panel: controls, a picture (PNG), and a line of text that says what the picture shows. All of it works
by keyboard (Tab to a control, arrow keys to move it); a picture changes when a control is let go of, not while it is
dragged. It begins at the settings it is given, so that it can go on from a still picture above it. A page that shows no
widgets shows one sentence instead. [K]
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import ipywidgets as ipw
from matplotlib.figure import Figure
from traitlets import TraitError

from sagkit.graph import KERNELS
from sagkit.show import scenes
from sagkit.show.scenes import MOST_RESULTS, Gallery, search_view

WIDE = {"description_width": "9em"}


class Panel(ipw.VBox):
    """Controls over a pure function that returns a Picture.

    Args:
        draw: called with the controls' values by name; a ValueError it raises becomes the message.
        controls: ipywidgets with a `value`, by the argument they set.
        name: what the panel is called.
        first: values of controls to begin with, by argument; the others begin at their own.

    Raises:
        ValueError: for a control that there is not, or a value that it does not take.

    `picture.value` is the PNG last drawn, `text.value` the line under it, `message.value` a refusal or empty. After a
    refusal the last good picture stays, under the message.
    """

    def __init__(
        self, draw: Callable[..., Figure], controls: dict[str, ipw.Widget], name: str, first: dict | None = None
    ):
        for argument, value in (first or {}).items():
            _set_control(controls, argument, value)
        self.draw, self.controls, self.name = draw, controls, name
        self.picture = ipw.Image(format="png", layout=ipw.Layout(max_width="100%"))
        self.text, self.message = ipw.HTML(), ipw.HTML()
        rows = [ipw.HBox(list(controls.values()), layout=ipw.Layout(flex_flow="row wrap"))]
        super().__init__([*rows, self.message, self.picture, self.text])
        for control in controls.values():
            control.observe(self._redraw, "value")
        self._redraw()

    def _redraw(self, change=None) -> None:
        try:
            figure = self.draw(**{name: control.value for name, control in self.controls.items()})
        except ValueError as refusal:
            self.message.value = (
                '<div role="alert" style="border-left: 6px solid #D55E00; padding: 4px 8px; color: #222; '
                f'background: #fff3e6"><b>Not possible:</b> {escape(str(refusal), quote=False)}</div>'
            )
            return
        self.message.value = ""
        self.picture.value = figure.quick_png()
        self.text.value = f'<div role="status">{escape(figure.says, quote=False)}</div>'

    def __repr__(self) -> str:
        return (
            f"[{self.name}: run this cell in JupyterLab to move its controls; the picture above is one of its settings]"
        )


def _set_control(controls: dict[str, ipw.Widget], argument: str, value) -> None:
    if argument not in controls:
        raise ValueError(f"no control for {argument!r}: choose from {', '.join(controls)}")
    try:
        controls[argument].value = value
    except TraitError:
        raise ValueError(f"{argument} = {value!r} is no choice of its control: see its options") from None
    if controls[argument].value != value:  # a slider stops at its ends without a word
        raise ValueError(f"{argument} = {value} lies outside its slider, which ends at {controls[argument].value}")


def _whole(description: str, value: int, low: int, high: int) -> ipw.IntSlider:
    return ipw.IntSlider(value, low, high, description=description, continuous_update=False, style=WIDE)


def _share(description: str, value: float, high: float = 1.0) -> ipw.FloatSlider:
    return ipw.FloatSlider(
        value, min=0.0, max=high, step=0.05, description=description, continuous_update=False, style=WIDE
    )


def _number(description: str, value: int) -> ipw.IntText:
    return ipw.IntText(value, description=description, continuous_update=False, style=WIDE)


def _tick(description: str) -> ipw.Checkbox:
    return ipw.Checkbox(False, description=description, indent=False, style=WIDE)


def graph_explorer(scene: scenes.Scene, **first) -> Panel:
    """K, kernel, temperature and mutual filter of the batch's graph; see `scenes.graph_view`."""
    controls = {
        "k": _whole("neighbours K", 10, 1, 30),
        "kernel": ipw.Dropdown(options=KERNELS, value="cosine", description="kernel", style=WIDE),
        "temperature": ipw.FloatText(0.1, step=0.05, description="temperature", continuous_update=False, style=WIDE),
        "mutual": _tick("mutual edges only"),
    }
    return Panel(lambda **settings: scenes.graph_view(scene, **settings), controls, "graph explorer", first)


def walk_player(scene: scenes.Scene, **first) -> Panel:
    """Start, length, restart and seed of one walk; see `scenes.walk_view`."""
    controls = {
        "length": _whole("walk length L", 4, 1, 7),
        "restart": _share("restart", 0.0),
        "seed": _number("seed", 0),
        "start": _number("start at image", 0),
        "k": _whole("neighbours K", 10, 1, 30),
        "mutual": _tick("mutual edges only"),
    }
    return Panel(lambda **settings: scenes.walk_view(scene, **settings), controls, "walk player", first)


def pairing_board(scene: scenes.Scene, **first) -> Panel:
    """Anchor, length, K and alpha of the pairing; see `scenes.pairing_view`."""
    controls = {
        "anchor": _number("anchor image", 0),
        "length": _whole("walk length L", 2, 1, 8),
        "k": _whole("neighbours K", 10, 1, 30),
        "alpha": _share("alpha", 0.3, 2.0),
        "walks": _whole("walks per image", 16, 1, 32),
        "mutual": _tick("mutual edges only"),
    }
    return Panel(lambda **settings: scenes.pairing_view(scene, **settings), controls, "pairing board", first)


def loss_explorer(za, zb, features, **first) -> Panel:
    """Loss terms against alpha for projections za, zb (B, D) and features (B, F); see `scenes.loss_view`."""
    controls = {
        "alpha": _share("alpha", 0.3, 2.0),
        "k": _whole("neighbours K", 10, 1, 30),
        "length": _whole("walk length L", 2, 1, 8),
        "keep": ipw.Checkbox(True, description="keep the augmentation term whole", indent=False),
    }
    return Panel(lambda **settings: scenes.loss_view(za, zb, features, **settings), controls, "loss explorer", first)


def dendrogram_cutter(scene: scenes.Scene, **first) -> Panel:
    """Number of clusters and linkage of the tree of classes; see `scenes.dendrogram_view`."""
    classes = len(scene.labels.unique())
    controls = {
        "clusters": _whole("clusters", 3, 1, classes),
        "method": ipw.Dropdown(options=scenes.LINKAGES, value="average", description="linkage", style=WIDE),
    }
    return Panel(lambda **settings: scenes.dendrogram_view(scene, **settings), controls, "dendrogram", first)


class SearchPanel(Panel):
    """A panel whose results are buttons, by number: one click, or Tab and Enter, and the search goes on from there.

    `steps` are the buttons, `back` returns to the query before.
    """

    def __init__(self, gallery: Gallery, controls: dict[str, ipw.Widget]):
        self.gallery, self.before = gallery, []  # before: queries to go back to, the last one at the end
        self.found, self.shown = [], None  # rows behind the buttons, and the query they belong to
        self.steps = [ipw.Button(layout=ipw.Layout(width="4.2em")) for _ in range(MOST_RESULTS)]
        self.back = ipw.Button(description="back", icon="arrow-left", disabled=True, layout=ipw.Layout(width="6em"))
        super().__init__(lambda **settings: search_view(gallery, **settings), controls, "look-alike search")
        for number, button in enumerate(self.steps):
            button.on_click(lambda _, number=number: self._go(self.found[number]))
        self.back.on_click(lambda _: self._return())
        row = ipw.HBox([ipw.Label("search on from"), *self.steps, self.back], layout=ipw.Layout(flex_flow="row wrap"))
        self.children = (*self.children[:1], row, *self.children[1:])

    def _go(self, row: int) -> None:
        self.before.append(self.shown)
        self.controls["query"].value = row

    def _return(self) -> None:
        self.controls["query"].value = self.before.pop()
        self.back.disabled = not self.before  # where the query was typed in by hand, nothing is drawn again

    def _redraw(self, change=None) -> None:
        super()._redraw(change)
        self.back.disabled = not self.before
        if not self.message.value:
            settings = {name: control.value for name, control in self.controls.items()}
            self.found, self.shown = self.gallery.alike(**settings)[1], settings["query"]
        for number, button in enumerate(self.steps):
            known = number < len(self.found)
            button.description, button.disabled = str(number + 1), not known
            button.tooltip = self.gallery.names[self.found[number]] if known else ""


def look_alikes(gallery: Gallery, query: int = 0) -> SearchPanel:
    """Search by example; a numbered button searches on from that result; see `scenes.search_view`."""
    most = min(MOST_RESULTS, len(gallery) - 1)
    controls = {"query": _number("image", query), "results": _whole("results", most, 1, most)}
    return SearchPanel(gallery, controls)
