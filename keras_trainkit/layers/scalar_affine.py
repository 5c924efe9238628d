"""One learned factor and one learned shift for a whole tensor."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks


@keras.saving.register_keras_serializable("keras_trainkit")
class ScalarAffine(keras.layers.Layer):
    """inputs * scale + bias with two learned scalars, which start at 1 and 0.

    What Fixup has in the place of normalization: a bias (`use_scale=False`) before each convolution, dense layer and
    activation, and one factor at the end of each residual branch. `initializers.fixup` sets the weights of these.

    Reference: Zhang et al. 2019, arXiv 1901.09321, section 4, step 3.

    Args:
        use_scale: whether there is a factor.
        use_bias: whether there is a shift; one of both there must be.
        **kwargs: what every Keras layer takes (`name`, `dtype`).

    Call arguments:
        inputs: a floating tensor of any shape.

    Returns:
        A tensor of the same shape, in the layer's compute dtype. A mask passes through.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range.

    >>> import numpy as np
    >>> layer = ScalarAffine()
    >>> np.array(layer(np.ones((1, 2)))).tolist(), layer.count_params()
    ([[1.0, 1.0]], 2)
    """

    def __init__(self, use_scale: bool = True, use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_scale = checks.boolean("use_scale", use_scale)
        self.use_bias = checks.boolean("use_bias", use_bias)
        if not (use_scale or use_bias):
            raise ValueError("`use_scale` or `use_bias` must be True. Received: use_scale=False, use_bias=False")
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Makes the scalars."""
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones") if self.use_scale else None
        self.bias = self.add_weight(name="bias", shape=(), initializer="zeros") if self.use_bias else None
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The inputs times one number plus another."""
        outputs = inputs if self.scale is None else inputs * ops.cast(self.scale, inputs.dtype)
        return outputs if self.bias is None else outputs + ops.cast(self.bias, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The inputs' shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {**super().get_config(), "use_scale": self.use_scale, "use_bias": self.use_bias}
