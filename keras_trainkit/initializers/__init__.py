"""Weight initializers that Keras lacks: for one variable, as Keras's, and functions for a whole model."""

from keras_trainkit.initializers.coordinate_check import CoordinateCheck, coordinate_check
from keras_trainkit.initializers.coordinate_drawing import plot_coordinate_checks
from keras_trainkit.initializers.delta_orthogonal import DeltaOrthogonal
from keras_trainkit.initializers.dirac import Dirac
from keras_trainkit.initializers.fixup import fixup
from keras_trainkit.initializers.icnr import ICNR
from keras_trainkit.initializers.lsuv import lsuv
from keras_trainkit.initializers.mup import MuP, MuPVariable, mup
from keras_trainkit.initializers.report import InitializationReport, InitializedVariable
from keras_trainkit.initializers.scaled_residual import ScaledResidual
from keras_trainkit.initializers.sparse import Sparse
from keras_trainkit.initializers.t_fixup import t_fixup
from keras_trainkit.initializers.zero import ZerO

__all__ = [
    "CoordinateCheck",
    "DeltaOrthogonal",
    "Dirac",
    "ICNR",
    "InitializationReport",
    "InitializedVariable",
    "MuP",
    "MuPVariable",
    "ScaledResidual",
    "Sparse",
    "ZerO",
    "coordinate_check",
    "fixup",
    "lsuv",
    "mup",
    "plot_coordinate_checks",
    "t_fixup",
]
