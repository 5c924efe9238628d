"""Helpers around a model's `train_step`, its own or a user's: what needs the loss, a second gradient, or the batch."""

from keras_trainkit.training.agreement import r_drop
from keras_trainkit.training.installation import plain
from keras_trainkit.training.jacobian import jacobian_penalty
from keras_trainkit.training.micro_batches import micro_batch_size, micro_batches
from keras_trainkit.training.sharpness import asam, gsam, looksam, sam
from keras_trainkit.training.weighing import weigh_samples

__all__ = [
    "asam",
    "gsam",
    "jacobian_penalty",
    "looksam",
    "micro_batch_size",
    "micro_batches",
    "plain",
    "r_drop",
    "sam",
    "weigh_samples",
]
