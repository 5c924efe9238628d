"""Optimizers: each is a docstring and a chain of transforms. `get` and `list` find them, `wrap` takes Keras's."""

# One line for each optimizer; the registry finds the rest.
from keras_trainkit.optimizers.adabelief import AdaBelief as AdaBelief
from keras_trainkit.optimizers.adadelta import Adadelta as Adadelta
from keras_trainkit.optimizers.adafactor import Adafactor as Adafactor
from keras_trainkit.optimizers.adagrad import Adagrad as Adagrad
from keras_trainkit.optimizers.adam import Adam as Adam
from keras_trainkit.optimizers.adamax import Adamax as Adamax
from keras_trainkit.optimizers.adammini import AdamMini as AdamMini
from keras_trainkit.optimizers.adamw import AdamW as AdamW
from keras_trainkit.optimizers.adamw16 import AdamW16 as AdamW16
from keras_trainkit.optimizers.adan import Adan as Adan
from keras_trainkit.optimizers.ademamix import AdEMAMix as AdEMAMix
from keras_trainkit.optimizers.adopt import ADOPT as ADOPT
from keras_trainkit.optimizers.apollo import APOLLO as APOLLO
from keras_trainkit.optimizers.cocob import COCOB as COCOB
from keras_trainkit.optimizers.conditionalgradient import ConditionalGradient as ConditionalGradient
from keras_trainkit.optimizers.dadaptadam import DAdaptAdam as DAdaptAdam
from keras_trainkit.optimizers.kron import Kron as Kron
from keras_trainkit.optimizers.lamb import LAMB as LAMB
from keras_trainkit.optimizers.laprop import LaProp as LaProp
from keras_trainkit.optimizers.lars import LARS as LARS
from keras_trainkit.optimizers.lazyadam import LazyAdam as LazyAdam
from keras_trainkit.optimizers.lion import Lion as Lion
from keras_trainkit.optimizers.madgrad import MADGRAD as MADGRAD
from keras_trainkit.optimizers.mars import MARS as MARS
from keras_trainkit.optimizers.muon import Muon as Muon
from keras_trainkit.optimizers.nadam import NAdam as NAdam
from keras_trainkit.optimizers.novograd import NovoGrad as NovoGrad
from keras_trainkit.optimizers.prodigy import Prodigy as Prodigy
from keras_trainkit.optimizers.proximaladagrad import ProximalAdagrad as ProximalAdagrad
from keras_trainkit.optimizers.radam import RAdam as RAdam
from keras_trainkit.optimizers.rmsprop import RMSprop as RMSprop
from keras_trainkit.optimizers.schedulefreeadamw import ScheduleFreeAdamW as ScheduleFreeAdamW
from keras_trainkit.optimizers.schedulefreeradam import ScheduleFreeRAdam as ScheduleFreeRAdam
from keras_trainkit.optimizers.schedulefreesgd import ScheduleFreeSGD as ScheduleFreeSGD
from keras_trainkit.optimizers.sgd import SGD as SGD
from keras_trainkit.optimizers.sgdw import SGDW as SGDW
from keras_trainkit.optimizers.shampoo import Shampoo as Shampoo
from keras_trainkit.optimizers.soap import SOAP as SOAP
from keras_trainkit.optimizers.yogi import Yogi as Yogi

from keras_trainkit.optimizers.metadata import Info  # isort: skip
from keras_trainkit.optimizers.registry import classes, get, info, list  # isort: skip
from keras_trainkit.optimizers.wrapped import Wrapped, wrap  # isort: skip

__all__ = ["Info", "Wrapped", "get", "info", "list", "wrap"]
__all__ += [kind.__name__ for kind in classes()]
