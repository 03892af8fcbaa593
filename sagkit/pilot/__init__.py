"""From a folder of images, or an array of features, to a report: look-alikes, anomalies, structure, cost.

`run` is the whole pilot on a folder, `budget` fits a training into a given time, `network` is what looks at the images,
`embedding`, `duplicates` and `anomaly` are the first analyses, `page` is the HTML report, `photos` a folder to try it
on, and `assess` measures any embedding against its floor.
"""

from sagkit import lazily

_HOME = {  # loaded when first asked for: a command that needs one room does not wait for the others
    "Index": "sagkit.metrics.local",
    "SCORES": "sagkit.pilot.anomaly",
    "embed": "sagkit.pilot.embedding",
    "load_embedding": "sagkit.pilot.embedding",
    "near_duplicates": "sagkit.pilot.duplicates",
    "pilot": "sagkit.pilot.run",
    "save_embedding": "sagkit.pilot.embedding",
}
__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME, extra="pilot")
