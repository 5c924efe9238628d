"""Seeded splits of row numbers into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def split_rows(rows: int, fractions: Sequence[float], seed: int, labels: np.ndarray | None = None) -> list[np.ndarray]:
    """Splits `range(rows)` into `1 + len(fractions)` disjoint parts, in seeded random order.

    Args:
        rows: number of rows.
        fractions: share of each part after the first; the first part (training) takes the rest.
        seed: the same seed gives the same parts on any machine.
        labels: class ids, shape `(rows,)`. Given, each part keeps the classes' shares (stratified), and a class with
            too few rows to share stays in the first part.

    Returns:
        Arrays of row numbers, the first part first.

    >>> [part.tolist() for part in split_rows(6, [0.5], seed=0, labels=np.array([0, 0, 0, 0, 1, 1]))]
    [[2, 5, 0], [1, 3, 4]]
    """
    generator = np.random.default_rng(seed)
    if labels is None:
        groups = [generator.permutation(rows)]
    else:
        groups = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    parts: list[list[np.ndarray]] = [[] for _ in range(1 + len(fractions))]
    for group in groups:
        counts = [round(fraction * len(group)) for fraction in fractions]
        ends = np.cumsum([len(group) - sum(counts), *counts])
        for part, end, count in zip(parts, ends, [int(ends[0]), *counts], strict=True):
            part.append(group[end - count : end])
    # Rows come class by class here: without this shuffle `fit(shuffle=False)` would see one class after another.
    return [generator.permutation(np.concatenate(part)) for part in parts]
