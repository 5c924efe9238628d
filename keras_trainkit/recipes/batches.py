"""Batches to train on: a seeded order that changes every epoch, all of one size, so that no replica gets less."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_trainkit.recipes.errors import RecipeError


def steps_per_epoch(examples: int, batch_size: int, accumulation: int) -> int:
    """Steps of one epoch: as many whole batches as the examples fill, in whole updates.

    What is left over is not lost: the next epoch begins with it.

    >>> steps_per_epoch(1000, batch_size=32, accumulation=4)
    28
    """
    needed = batch_size * accumulation
    if examples < needed:
        times = f" x accumulation {accumulation}" if accumulation > 1 else ""
        raise RecipeError(
            f"one update takes {needed} examples (batch_size {batch_size}{times}), the training set has {examples}; "
            "lower batch_size"
        )
    return examples // needed * accumulation


def endless(x: np.ndarray, y: np.ndarray, batch_size: int, seed: int) -> tf.data.Dataset:
    """Pass after pass over the examples, each in a new order that follows from the seed, in batches of one size.

    `fit` takes it with `steps_per_epoch`, and then goes on where the last epoch ended. An iterator begins with the
    first pass whenever it is made: `Dataset.shuffle` would count the iterators, of which `fit` makes more under
    tf.distribute, and two replicas would see another order than one.
    """
    examples, labels = tf.constant(x), tf.constant(y)
    rows = tf.range(len(x), dtype="int64")

    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(rows, seed=tf.stack([seed, number]))
        return tf.data.Dataset.from_tensor_slices(order)

    batches = tf.data.Dataset.counter().flat_map(one_pass).batch(batch_size, drop_remainder=True)
    return batches.map(lambda chosen: (tf.gather(examples, chosen), tf.gather(labels, chosen))).prefetch(2)
