"""Which values of a metric are the better ones. Needs no Keras."""

from __future__ import annotations

_HIGHER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "fbeta", "r2", "iou", "top_k", "dice")


def is_higher_better(metric: str, mode: str = "auto") -> bool:
    """Whether a larger value of a metric is the better one.

    >>> is_higher_better("val_accuracy"), is_higher_better("val_loss"), is_higher_better("score", "max")
    (True, False, True)
    """
    name = metric.removeprefix("val_")
    return mode == "max" or (mode == "auto" and any(word in name for word in _HIGHER_IS_BETTER))
