"""Helpers around a model's `train_step`, its own or a user's: what needs the loss itself, or a second gradient."""

from keras_trainkit.training.sharpness import asam, gsam, looksam, plain, sam

__all__ = ["asam", "gsam", "looksam", "plain", "sam"]
