"""Adafactor: Adam's second moment in the memory of a row and a column."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import TransformOptimizer, chain, checks
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import (
    AverageDisplacement,
    ClipUpdateRms,
    ScaleByFactoredRms,
    ScaleByLearningRate,
    ScaleByParameterRms,
    ScaleByRelativeRate,
)
from keras_trainkit.transforms.factored import AXES


@keras.saving.register_keras_serializable("keras_trainkit")
class Adafactor(TransformOptimizer):
    """Second moments kept as row and column means, and steps in proportion to the weights.

    With decay b = 1 - t^beta_2_decay and s = g^2 + epsilon_1, a matrix keeps r = b r + (1 - b) mean(s over columns)
    and c = b c + (1 - b) mean(s over rows), and v = r c / mean(r); a vector or scalar keeps v itself. Then

    - u = g / sqrt(v), divided by max(1, rms(u) / clip_threshold);
    - w = w - rho max(epsilon_2, rms(w)) u, where rho = min(learning_rate, 1 / sqrt(t)).

    State: 4 bytes for each row and each column of a matrix (n, m), 4 (n + m) in all, and 4 bytes per element of a
    vector. A convolution kernel (..., n, m) keeps the rows and columns of each of its matrices. A `beta_1` costs
    4 bytes per parameter more.

    Equal to torch, Keras and optax (with `min_dim_size_to_factor=1`) in their settings. They differ in this:

    - axes: the last two in the paper's code, Keras and torch; the two largest in optax, which leaves variables with
      one of them below 128 unfactored;
    - rate: torch and Keras always bound it by 1 / sqrt(t) (in Keras `relative_step` changes nothing); optax does not;
    - epsilon_1: torch bounds the mean of r from below by 1.2e-7 and does not add it to the squares, which differs for
      gradients below 1e-3.

    Files of Keras's Adafactor cannot be continued from: its state is another (it keeps a full second moment, too).

    Reference: Shazeer and Stern, 2018, arXiv:1804.04235.

    Args:
        learning_rate: the relative step size, or a schedule; the paper's and torch's is 0.01, Keras's 0.001.
        beta_2_decay: the exponent with which the second moment's decay goes to 1; at most 0.
        epsilon_1: added to the squared gradient, at least 0.
        epsilon_2: the least root mean square that weights are taken to have, at least 0.
        clip_threshold: the largest root mean square of u, above 0.
        relative_step: bound the rate by 1 / sqrt(t).
        scale_parameter: multiply by the root mean square of the weights.
        beta_1: the decay of an average of the steps, from 0 to below 1; 0 keeps none.
        factored_axes: `"last"` or `"largest"`: which two axes of a variable of higher rank are factored.
        min_dim_size_to_factor: variables of which one of the two axes is shorter keep a full second moment.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> from keras_trainkit import optimizers
    >>> optimizers.Adafactor(1e-2, beta_1=0.9).clip_threshold
    1.0
    """

    info = Info(year=2018, paper="arXiv:1804.04235", state_bytes=0.0078125)

    def __init__(
        self,
        learning_rate: Any = 0.01,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0,
        relative_step: bool = True,
        scale_parameter: bool = True,
        beta_1: float = 0.0,
        factored_axes: str = "last",
        min_dim_size_to_factor: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta_2_decay = checks.number("beta_2_decay", beta_2_decay, at_most=0)
        self.epsilon_1 = checks.number("epsilon_1", epsilon_1, at_least=0)
        self.epsilon_2 = checks.number("epsilon_2", epsilon_2, at_least=0)
        self.clip_threshold = checks.number("clip_threshold", clip_threshold, above=0)
        self.relative_step = checks.boolean("relative_step", relative_step)
        self.scale_parameter = checks.boolean("scale_parameter", scale_parameter)
        self.beta_1 = checks.number("beta_1", beta_1, at_least=0, below=1)
        self.factored_axes = checks.one_of("factored_axes", factored_axes, AXES)
        self.min_dim_size_to_factor = checks.integer("min_dim_size_to_factor", min_dim_size_to_factor, at_least=1)

    def transform(self) -> Any:
        links: list[Any] = [
            ScaleByFactoredRms(self.beta_2_decay, self.epsilon_1, self.factored_axes, self.min_dim_size_to_factor),
            ClipUpdateRms(self.clip_threshold),
        ]
        if self.scale_parameter:
            links.append(ScaleByParameterRms(self.epsilon_2))
        links.append(ScaleByRelativeRate() if self.relative_step else ScaleByLearningRate())
        if self.beta_1:
            links.append(AverageDisplacement(self.beta_1))
        return chain(*links)
