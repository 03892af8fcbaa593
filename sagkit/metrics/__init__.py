"""How good features are: local quality, global structure, and how far either figure may be trusted.

`semantic` correlates distances with a reference (`ranks` and `stats` are its exact statistics and their uncertainty),
`tree` compares hierarchies, `labelfree` needs no labels, `local` has neighbours, probe and search, `purity` judges
pairs, `checks` is the border that all arrays pass, and `evaluate` is all of it for one encoder.
"""

from sagkit import lazily

_HOME = {  # loaded when first asked for: a command that needs one room does not wait for the others
    "Index": "sagkit.metrics.local",
    "class_distances": "sagkit.data.taxonomy",
    "hierarchy_distances": "sagkit.data.taxonomy",
    "knn_accuracy": "sagkit.metrics.local",
    "label_free": "sagkit.metrics.evaluate",
    "linear_probe": "sagkit.metrics.local",
    "paired_difference": "sagkit.metrics.semantic",
    "rank_correlation": "sagkit.metrics.semantic",
    "structure_score": "sagkit.metrics.labelfree",
    "visit_agreement": "sagkit.metrics.labelfree",
}
__all__ = sorted(_HOME)
__getattr__ = lazily(__name__, _HOME)
