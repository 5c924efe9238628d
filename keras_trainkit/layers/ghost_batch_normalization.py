"""Batch normalization by parts of the batch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import backend, checks, numerics
from keras_trainkit.layers.positions import beside_channels, channel_axis, kept_positions, sum_over_positions


@keras.saving.register_keras_serializable("keras_trainkit")
class GhostBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization whose statistics in training are those of small parts of the batch, the ghost batches.

    A large batch then has the noise of a small one in its statistics, and generalizes like it. Hoffer et al. 2017,
    arXiv 1705.08741. All else is Keras's `BatchNormalization`: the weights, the arguments, inference by moving
    statistics, `training=None` and `trainable=False`. With one ghost batch it computes the same.

    - **Parts.** A batch of B samples has G = max(1, B // ghost_batch_size) ghost batches of neighbours, whose sizes
      differ by at most one and are never below `ghost_batch_size` (but for a batch that is itself smaller): 70 samples
      by 32 are two of 35, and no remainder of 6 is normalized by itself. (TabNet's cuts 70 samples into 24, 24 and 22;
      Keras 2 refused such a batch.)
    - **Moving statistics** take one step of `momentum` for a batch, towards the mean over the ghost batches of their
      means and of their variances, each counted by its positions. (The paper takes one step for each ghost batch; Keras
      2's `virtual_batch_size` one for a batch, as here.) The variance is that inside the ghost batches, by n, which for
      n values is (n - 1) / n of the population's: `layers.refresh_batch_statistics` gives the latter.
    - **Replicas.** Each cuts its own share of the batch, and none waits for another to normalize. The moving statistics
      are those of all replicas, and equal on all, at the cost of one short sum over replicas for each layer and step.
      (In Keras, `synchronized=False` records each replica's own share and saves the first one's.) `synchronized=True`
      would ask for statistics over all replicas, which is the opposite of a ghost batch, and is refused: use Keras's.
    - **Masks** (batch, positions...) say which positions count, on any backend and `axis`. A batch of which none counts
      leaves the moving statistics as they are, and so does a replica without data.

    Shapes: (batch, ..., channels, ...) to the same. Computed in at least float32; returned in the compute dtype.

    Args:
        ghost_batch_size: int; how many samples a ghost batch has at least.
        axis: the channels' axis: -1, or 1 for channels first.
        momentum: of the moving statistics, from 0 to 1.
        epsilon: float above 0, added to the variance.
        **kwargs: the other arguments of `keras.layers.BatchNormalization` but `renorm`; `name`, `dtype` and the like.

    Raises:
        ValueError: for an argument out of range, and for `synchronized=True` or `renorm=True`.

    >>> import numpy as np
    >>> layer = GhostBatchNormalization(2, epsilon=1e-6)
    >>> x = np.array([[1.0], [3.0], [50.0], [90.0]], "float32")
    >>> np.round(np.array(layer(x, training=True)), 3).ravel().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(
        self, ghost_batch_size: int, axis: int = -1, momentum: float = 0.99, epsilon: float = 1e-3, **kwargs: Any
    ) -> None:
        self.ghost_batch_size = checks.integer("ghost_batch_size", ghost_batch_size, at_least=1)
        for name, instead in (("synchronized", "Keras's BatchNormalization"), ("renorm", "Keras's own")):
            if kwargs.get(name):
                raise ValueError(
                    f"`{name}` must be False: ghost batches have statistics of their own; {instead} has it. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        super().__init__(
            axis=checks.integer("axis", axis),
            momentum=checks.number("momentum", momentum, at_least=0, at_most=1),
            epsilon=checks.number("epsilon", epsilon, above=0),
            **kwargs,
        )

    def build(self, input_shape: Any) -> None:
        """Makes the weights of Keras's `BatchNormalization`."""
        channel_axis(self.axis, input_shape)
        super().build(input_shape)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The input normalized by its ghost batches in training, by the moving statistics else."""
        if not (training and self.trainable):
            return super().call(inputs, training=False)
        x = numerics.widened(inputs)
        axis = self.axis % len(x.shape)
        kept = None if mask is None else kept_positions(mask, x, axis)
        ghost, ghosts = self._ghosts(ops.shape(x)[0])

        def sums(values: Any) -> Any:
            """(ghosts, channels)"""
            chosen = values if kept is None else ops.where(kept, values, ops.zeros_like(values))
            return ops.segment_sum(sum_over_positions(chosen, axis), ghost, ghosts)

        def of_samples(values: Any) -> Any:
            return beside_channels(ops.take(values, ghost, axis=0), x, axis)

        count = sums(ops.ones_like(x))
        some = ops.maximum(count, 1.0)
        mean = sums(x) / some
        apart = x - of_samples(mean)
        variance = sums(ops.square(apart)) / some
        self._record(count, mean, variance)
        outputs = apart * of_samples(ops.rsqrt(variance + self.epsilon))
        if self.scale:
            outputs = outputs * beside_channels(self.gamma, x, axis)
        if self.center:
            outputs = outputs + beside_channels(self.beta, x, axis)
        return ops.cast(outputs, self.compute_dtype)

    def _ghosts(self, batch: Any) -> tuple[Any, Any]:
        """The ghost batch of each sample, (batch,), and how many there are."""
        if isinstance(batch, int):
            ghosts = max(batch // self.ghost_batch_size, 1)
            return ops.arange(batch, dtype="int32") * ghosts // max(batch, 1), ghosts
        ghosts = ops.maximum(batch // self.ghost_batch_size, 1)
        return ops.arange(batch, dtype="int32") * ghosts // ops.maximum(batch, 1), ghosts

    def _record(self, count: Any, mean: Any, variance: Any) -> None:
        """Moves the moving statistics towards those of all ghost batches of all replicas."""
        sums = [ops.sum(values, axis=0) for values in (count, count * mean, count * variance)]
        total = backend.all_reduce_sum([ops.stop_gradient(ops.stack(sums))])[0]
        count = total[0]
        for moving, row in ((self.moving_mean, 1), (self.moving_variance, 2)):
            old = ops.cast(moving, total.dtype)
            new = old * self.momentum + total[row] / ops.maximum(count, 1.0) * (1.0 - self.momentum)
            moving.assign(ops.where(count > 0, new, old))

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        config = {**super().get_config(), "ghost_batch_size": self.ghost_batch_size}
        return {name: value for name, value in config.items() if not name.startswith(("renorm", "synchronized"))}
