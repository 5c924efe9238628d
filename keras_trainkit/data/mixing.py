"""`MixUp` and `CutMix`: samples made of two, with targets and weights that are right for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_trainkit.core import checks
from keras_trainkit.data.feed import mapped
from keras_trainkit.data.maps import BatchMap, check_classes, generator, soft_targets


@dataclasses.dataclass(frozen=True)
class _Mixing(BatchMap):
    alpha: float
    classes: Any = None
    probability: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks.number("alpha", self.alpha, above=0)
        check_classes(self.classes)
        checks.number("probability", self.probability, at_least=0, at_most=1)
        checks.integer("seed", self.seed, at_least=0)

    def apply(self, step: int, x: Any, y: Any, weights: Any) -> tuple[Any, Any, Any]:
        """Mixes each row that has a weight with another one of those."""
        targets = soft_targets(y, self.classes)
        for target in keras.tree.flatten(targets):
            if target.ndim > 2:
                raise ValueError(
                    f"{type(self).__name__} mixes one target for each sample, of shape (n,) or (n, classes), and none "
                    f"for each position, such as masks of a segmentation. Received: targets of shape {target.shape}"
                )
        rows = len(keras.tree.flatten(targets)[0])
        own = [_weights(leaf, rows) for leaf in keras.tree.flatten(weights) if leaf is not None]
        draw = generator(self._kind, self.seed, step)
        counted = np.flatnonzero(np.any([w > 0 for w in own], axis=0)) if own else np.arange(rows)
        partner, share = np.arange(rows), np.ones(rows)
        partner[counted] = draw.permutation(counted)
        share[counted] = draw.beta(self.alpha, self.alpha, len(counted))
        alone = draw.random(rows) >= self.probability
        partner[alone], share[partner == np.arange(rows)] = np.flatnonzero(alone), 1.0
        x, share = self._mix(draw, x, partner, share)
        return x, *_mixed_targets(targets, weights, own, partner, share)

    _kind = 0

    def _mix(self, draw: np.random.Generator, x: Any, partner: np.ndarray, share: np.ndarray) -> tuple[Any, np.ndarray]:
        """The inputs, and how much of each is its own."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class MixUp(_Mixing):
    """Each sample is blended with another one of its batch: inputs share x_i + (1 - share) x_j, and targets likewise.

    The share is drawn for each row from the distribution Beta(alpha, alpha); the rows' partners are a permutation of
    the batch. With sample weights w the loss is that of both, each with its own weight: the new row has the weight
    share w_i + (1 - share) w_j, and its target is the mean of y_i and y_j in the proportion of these two terms. So for
    every loss that is linear in the targets, as crossentropies are,

        weight loss(x, y) = share w_i loss(x, y_i) + (1 - share) w_j loss(x, y_j)

    exactly, at the new input x; for the squared error up to a number that no gradient sees. A row of weight 0 takes no
    part: it neither mixes nor is mixed in.

    Draws are a function of the seed and the step, so that a run that is gone on with draws what it would have drawn.
    In `Batches` and `StreamBatches` the whole batch is mixed before the replicas share it.

    Args:
        alpha: above 0; 0.2 for ImageNet, 1 for CIFAR in the paper. Small values leave most samples nearly alone.
        classes: how many classes, for integer labels, whose targets then are rows of so many numbers; or a structure
            like that of `y`. None for floating targets.
        probability: of a sample to be mixed at all, from 0 to 1.
        seed: at least 0.

    Raises:
        TypeError, ValueError: for a value out of its range; in use, for integer labels without `classes`, targets or
            weights for each position, and inputs that are no numbers to blend. (uint8 inputs become floats.)

    Reference: Zhang et al., 2018, arXiv:1710.09412.

    >>> import numpy as np
    >>> x, y = np.array([[0.0], [1.0]]), np.array([0, 1])
    >>> mixed, targets = MixUp(0.4, classes=2, seed=2)(0, (x, y))
    >>> bool(np.allclose(mixed[:, 0], targets[:, 1]))
    True
    """

    alpha: float = 0.2
    _kind = 1

    def _mix(self, draw: np.random.Generator, x: Any, partner: np.ndarray, share: np.ndarray) -> tuple[Any, np.ndarray]:
        def blend(leaf: np.ndarray) -> np.ndarray:
            if leaf.dtype.kind != "f" and leaf.dtype != "uint8":
                raise TypeError(
                    "`x` must hold floating numbers or images of uint8 for MixUp: other numbers, such as tokens, have "
                    f"no mean. Received: inputs of dtype {leaf.dtype}"
                )
            kept = leaf.dtype if leaf.dtype.kind == "f" else np.dtype(keras.config.floatx())
            wide = leaf.astype(np.promote_types(kept, "float32"))
            own = _shaped(share, wide).astype(wide.dtype)
            return (own * wide + (1 - own) * wide[partner]).astype(kept)

        return mapped(blend, x), share


@dataclasses.dataclass(frozen=True)
class CutMix(_Mixing):
    """A box of each image is replaced by what is there in another image of the batch, and targets by area.

    A share is drawn from Beta(alpha, alpha); the box has the image's proportions, 1 - share of its area and a centre
    anywhere in it, and ends where the image ends. The share then is that of the pixels that stayed. Targets and sample
    weights as in `MixUp`, with the same equation.

    Args:
        alpha: above 0; 1 in the paper: all shares alike.
        classes: as for `MixUp`.
        probability: as for `MixUp`; 0.5 for CIFAR in the paper.
        seed: at least 0.
        data_format: "channels_last" or "channels_first"; None for that of Keras's configuration.

    Raises:
        TypeError, ValueError: as for `MixUp`; in use, for inputs that are not images of one size, shape
            `(n, h, w, c)` or `(n, c, h, w)`.

    Reference: Yun et al., 2019, arXiv:1905.04899.

    >>> import numpy as np
    >>> x, y = np.stack([np.zeros((4, 4, 1)), np.ones((4, 4, 1))]), np.array([0, 1])
    >>> mixed, targets = CutMix(1.0, classes=2, seed=1)(0, (x, y))
    >>> bool(np.allclose(mixed.mean(axis=(1, 2, 3)), targets[:, 1]))
    True
    """

    alpha: float = 1.0
    data_format: str | None = None
    _kind = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_format is not None:
            checks.one_of("data_format", self.data_format, ["channels_last", "channels_first"])

    def _mix(self, draw: np.random.Generator, x: Any, partner: np.ndarray, share: np.ndarray) -> tuple[Any, np.ndarray]:
        last = (self.data_format or keras.config.image_data_format()) == "channels_last"
        shapes = [leaf.shape for leaf in keras.tree.flatten(x)]
        sizes = {shape[1:3] if last else shape[2:4] for shape in shapes if len(shape) == 4}
        if len(sizes) != 1 or any(len(shape) != 4 for shape in shapes):
            raise ValueError(
                f"`x` must hold images of one size for CutMix, of four axes each. Received: inputs of shapes {shapes}"
            )
        size = np.array(sizes.pop())
        centre = draw.integers(0, size, (len(share), 2))
        lengths = (np.sqrt(1 - share)[:, None] * size).astype("int64")
        begin = np.clip(centre - lengths // 2, 0, size)
        end = np.clip(centre + (lengths + 1) // 2, 0, size)

        def paste(leaf: np.ndarray) -> np.ndarray:
            new = leaf.copy()
            for row, other in enumerate(partner):
                box = tuple(slice(b, e) for b, e in zip(begin[row], end[row], strict=True))
                place = box if last else (slice(None), *box)
                new[row][place] = leaf[other][place]
            return new

        return mapped(paste, x), 1 - np.prod(end - begin, axis=1) / np.prod(size)


def _mixed_targets(
    targets: Any, weights: Any, own: list[np.ndarray], partner: np.ndarray, share: np.ndarray
) -> tuple[Any, Any]:
    leaves = keras.tree.flatten(targets)
    if not own:
        return keras.tree.pack_sequence_as(targets, [_mean(leaf, partner, share) for leaf in leaves]), weights
    if len(own) not in (1, len(leaves)):
        raise ValueError(
            f"`sample_weight` must hold one array, or one for each of the {len(leaves)} targets. "
            f"Received: {len(own)} arrays"
        )
    mine = [share * w for w in own]
    others = [(1 - share) * w[partner] for w in own]
    totals = [a + b for a, b in zip(mine, others, strict=True)]
    # Where neither counts the row stays as it is.
    parts = [np.where(t > 0, a / np.where(t > 0, t, 1), 1.0) for a, t in zip(mine, totals, strict=True)]
    parts = parts * len(leaves) if len(parts) == 1 else parts
    mixed = [_mean(leaf, partner, part) for leaf, part in zip(leaves, parts, strict=True)]
    given = keras.tree.flatten(weights)
    new = [t.reshape(w.shape).astype(_floating(w)) for t, w in zip(totals, given, strict=True)]
    return keras.tree.pack_sequence_as(targets, mixed), keras.tree.pack_sequence_as(weights, new)


def _mean(target: np.ndarray, partner: np.ndarray, part: np.ndarray) -> np.ndarray:
    own = _shaped(part, target)
    return (own * target + (1 - own) * target[partner]).astype(target.dtype)


def _weights(weights: np.ndarray, rows: int) -> np.ndarray:
    if weights.size != rows:
        raise ValueError(
            "`sample_weight` must hold one number for each sample where samples are mixed. "
            f"Received: weights of shape {weights.shape} for {rows} samples"
        )
    if (weights < 0).any():
        raise ValueError(f"`sample_weight` must be at least 0 where samples are mixed. Received: {weights.min()}")
    return weights.reshape(rows).astype("float64")


def _shaped(vector: np.ndarray, like: np.ndarray) -> np.ndarray:
    return vector.reshape([-1] + [1] * (like.ndim - 1))


def _floating(array: np.ndarray) -> Any:
    return array.dtype if array.dtype.kind == "f" else keras.config.floatx()
