"""Weight penalties that Keras lacks; each is a `keras.regularizers.Regularizer`."""

from keras_trainkit.regularizers.group_lasso import GroupLasso

__all__ = ["GroupLasso"]
