"""Slow NumPy twins of the optimizers, written from the papers with no regard for speed: one array at a time.

A twin holds its state in plain attributes. `displacement(parameter, gradient, rate)` returns what to add to the
parameter. The twins of `before` and `after` transforms are functions and classes of their own; `Twin` joins them.
"""

from keras_trainkit.testing.reference.classic import (
    LARS,
    Adadelta,
    Adagrad,
    ConditionalGradient,
    GradientDescent,
    ProximalAdagrad,
    RMSprop,
)
from keras_trainkit.testing.reference.factored import (
    Adafactor,
)
from keras_trainkit.testing.reference.matrix import (
    SOAP,
    Kron,
    Muon,
    Ratio,
    Shampoo,
)
from keras_trainkit.testing.reference.memory import (
    APOLLO,
    Adam16,
    AdamMini,
    numbered,
)
from keras_trainkit.testing.reference.moments import (
    ADOPT,
    LAMB,
    MADGRAD,
    MARS,
    AdaBelief,
    Adam,
    Adamax,
    Adan,
    AdEMAMix,
    LaProp,
    Lion,
    NAdam,
    NovoGrad,
    RAdam,
    Yogi,
)
from keras_trainkit.testing.reference.options import (
    Lookahead,
    SkipNonfinite,
    SkipSpikes,
    ZClip,
    adaptive_clip,
    cautious,
    centralize,
    corrected_decay,
    decoupled_decay,
    decoupled_group_lasso,
    decoupled_l1,
    factors,
)
from keras_trainkit.testing.reference.ratefree import (
    COCOB,
    DAdaptAdam,
    JointTwin,
    Prodigy,
)
from keras_trainkit.testing.reference.schedule_free import (
    ScheduleFreeAdamW,
    ScheduleFreeRAdam,
    ScheduleFreeSGD,
)
from keras_trainkit.testing.reference.twin import (
    Twin,
)

__all__ = [
    "ADOPT",
    "APOLLO",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adafactor",
    "Adam",
    "Adam16",
    "AdamMini",
    "Adamax",
    "Adan",
    "COCOB",
    "ConditionalGradient",
    "DAdaptAdam",
    "GradientDescent",
    "JointTwin",
    "Kron",
    "LAMB",
    "LARS",
    "LaProp",
    "Lion",
    "Lookahead",
    "MADGRAD",
    "MARS",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Prodigy",
    "ProximalAdagrad",
    "RAdam",
    "RMSprop",
    "Ratio",
    "SOAP",
    "Shampoo",
    "SkipNonfinite",
    "SkipSpikes",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Twin",
    "Yogi",
    "ZClip",
    "adaptive_clip",
    "cautious",
    "centralize",
    "corrected_decay",
    "decoupled_decay",
    "decoupled_group_lasso",
    "decoupled_l1",
    "factors",
    "numbered",
]
