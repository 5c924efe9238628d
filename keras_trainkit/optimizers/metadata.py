"""What the list of optimizers tells about each."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Info:
    """Facts about an optimizer, held by its class as `info`.

    Attributes:
        year: of publication.
        paper: an arXiv number, or authors and year.
        state_bytes: bytes of state per parameter with default arguments (SGD's: with momentum); where it depends on the
            shape, that of a matrix of 1024 by 1024.
        sparse: what gradients of a part of the rows get: `"dense"`, the same result as the full gradient;
            `"lazy"`, the rows that they do not hold are left alone.
        constant_rate: whether it is made to go without a schedule of the learning rate.
    """

    year: int
    paper: str
    state_bytes: float
    sparse: str = "dense"
    constant_rate: bool = False
