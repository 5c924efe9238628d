"""Helpers around a model's `train_step`, its own or a user's: what needs the loss, a second gradient, or the batch."""

from keras_trainkit.training.installation import plain
from keras_trainkit.training.micro_batches import micro_batch_size, micro_batches
from keras_trainkit.training.sharpness import asam, gsam, looksam, sam
from keras_trainkit.training.weighing import weigh_samples

__all__ = ["asam", "gsam", "looksam", "micro_batch_size", "micro_batches", "plain", "sam", "weigh_samples"]
