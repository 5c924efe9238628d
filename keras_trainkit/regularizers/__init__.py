"""Penalties that Keras lacks; each is a `keras.regularizers.Regularizer`. And what they contribute to a loss."""

from keras_trainkit.regularizers.contributions import Contribution, Summary, summary
from keras_trainkit.regularizers.elastic_net import ElasticNet
from keras_trainkit.regularizers.entropy_penalty import EntropyPenalty
from keras_trainkit.regularizers.group_lasso import GroupLasso
from keras_trainkit.regularizers.hoyer import Hoyer
from keras_trainkit.regularizers.soft_orthogonal import SoftOrthogonal
from keras_trainkit.regularizers.spectral_norm import SpectralNorm
from keras_trainkit.regularizers.srip import SRIP

__all__ = [
    "Contribution",
    "ElasticNet",
    "EntropyPenalty",
    "GroupLasso",
    "Hoyer",
    "SRIP",
    "SoftOrthogonal",
    "SpectralNorm",
    "Summary",
    "summary",
]
