"""What a person looks at: pictures from arrays, scenes from settings, and widgets that move the settings.

`plots` takes arrays only, `scenes` turns a batch and settings into a picture, `widgets` are controls over scenes,
`tables` sets figures in Markdown.
"""

from importlib import import_module

_HOME = {  # loaded when first asked for: a table does not wait for matplotlib and ipywidgets
    "Gallery": "sagkit.show.scenes",
    "Picture": "sagkit.show.plots.style",
    "look_alikes": "sagkit.show.widgets",
    "make_scene": "sagkit.show.scenes",
    "save": "sagkit.show.plots.style",
    "search_view": "sagkit.show.scenes",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
