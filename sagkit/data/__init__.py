"""What is trained on and judged on: image sets, vectors and series, and what their classes mean.

`load` finds every image source and makes it an `ImageSet`; `datasets` makes one of torch's data sets; `folder` says
which files of a folder are pictures, and of which class and split, `decode` reads them; `mapped` keeps more of them
than memory holds; `shapes` and `series` draw data with a known tree, `emoji` pictures in one that Unicode made;
`taxonomy` says how far apart two classes are.
"""

from sagkit import lazily

_HOME = {  # loaded when first asked for: a command that needs one room does not wait for the others
    "ImageSet": "sagkit.data.load",
    "SeriesView": "sagkit.data.series",
    "TableView": "sagkit.data.series",
    "VectorSet": "sagkit.data.series",
    "attribution": "sagkit.data.load",
    "collect": "sagkit.data.datasets",
    "load_bank": "sagkit.data.load",
    "load_folder": "sagkit.data.load",
    "load_images": "sagkit.data.load",
    "make_shapes": "sagkit.data.load",
    "validation_split": "sagkit.data.load",
}
__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME)
