"""A penalty that switches whole groups of weights off together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks, groups


@keras.saving.register_keras_serializable("keras_trainkit")
class GroupLasso(keras.regularizers.Regularizer):
    """The sum over groups of weights of factor sqrt(size of the group) times the l2 norm of the group.

    Like an l1 penalty, but on groups: it drives all weights of a group to zero at the same time, so that a unit, a
    filter or an input can be removed. Weights that share an index along `axis` are one group:

    - `Dense` kernel (inputs, units): -1, the default, is what enters one unit (a column); 0 is what leaves one input
      (a row), which chooses features.
    - `Conv2D` kernel (height, width, inputs, filters): -1 is one filter, -2 one input channel, [-2, -1] one slice of
      height times width.
    - `Embedding` (ids, size): 0 is the vector of one id.

    The root of the group's size lets groups of different sizes compete fairly (Yuan and Lin 2006, "Model selection
    and estimation in regression with grouped variables"); set `scale_by_size=False` for the plain sum of norms (the
    l2,1 norm), which Wen et al. 2016 (arXiv 1608.03665) use for filters. A gradient method brings a group near
    zero, not to it: prune what is small beside the others after training, or take `transforms.DecoupledGroupLasso`
    instead, which sets groups to zero. The gradient of a group that is zero is zero.

    Args:
        factor: the strength (lambda in the papers), at least 0.
        axis: an int or a list of ints, the axes whose indices name the groups; negative ones count from the end.
        scale_by_size: whether each norm is multiplied by the root of the group's size.

    Raises:
        TypeError, ValueError: at construction, for an argument out of its range; when called, for weights without
            such an axis.

    >>> kernel = [[3.0, 0.0], [4.0, 0.0]]
    >>> float(GroupLasso(0.1, scale_by_size=False)(keras.ops.convert_to_tensor(kernel)))  # 0.1 (5 + 0)
    0.5
    >>> round(float(GroupLasso(0.1, axis=0)(keras.ops.convert_to_tensor(kernel))), 4)  # 0.1 sqrt(2) (3 + 4)
    0.9899
    """

    def __init__(self, factor: float = 0.01, axis: int | Sequence[int] = -1, scale_by_size: bool = True) -> None:
        self.factor = checks.number("factor", factor, at_least=0)
        self.axis = groups.checked_axes(axis)
        self.scale_by_size = checks.boolean("scale_by_size", scale_by_size)

    def __call__(self, x: Any) -> Any:
        """The penalty, a scalar in at least float32, for weights `x` of any rank that has the axes."""
        axes = groups.axes_in(x.shape, self.axis)
        size = groups.group_size(x.shape, axes)
        scale = self.factor * (math.sqrt(size) if self.scale_by_size else 1.0)
        return scale * ops.sum(groups.group_norms(x, axes))

    def get_config(self) -> dict[str, Any]:
        """The arguments by name."""
        return {"factor": self.factor, "axis": self.axis, "scale_by_size": self.scale_by_size}
