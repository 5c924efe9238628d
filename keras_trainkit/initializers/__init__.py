"""Weight initializers that Keras lacks; each is a `keras.initializers.Initializer`."""

from keras_trainkit.initializers.scaled_residual import ScaledResidual

__all__ = ["ScaledResidual"]
