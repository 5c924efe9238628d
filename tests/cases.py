"""The one table of optimizers: each row goes through every contract of test_contracts.py."""

from functools import partial

from keras.optimizers.schedules import PolynomialDecay

from keras_trainkit import optimizers
from keras_trainkit.testing import reference
from keras_trainkit.testing.cases import Case, Golden
from keras_trainkit.testing.reference import Twin
from keras_trainkit.transforms import AdaptiveClip, Cautious, Centralize, Lookahead

LOOKAHEAD = {"after": [Lookahead(5, 0.5)]}
CAUTIOUS = {"after": [Cautious()]}
C_ADAMW = "OFFICIAL C-AdamW formula(c_adamw.py: eps 1e-6, mask on exp_avg, mean clamp 1e-3)"

CASES = [
    Case(
        "sgd",
        optimizers.SGD,
        twin=lambda: Twin(reference.GradientDescent),
        rates={"parabola": 0.1, "rosenbrock": 0.2, "matrix": 0.3},
        state_bytes=0,
        golden=[
            Golden("lookahead_sgd", "TFA 0.23", LOOKAHEAD, learning_rate=0.1),
            Golden("lookahead_sgd", "po", LOOKAHEAD, learning_rate=0.1),
        ],
    ),
    Case(
        "sgd-momentum",
        optimizers.SGD,
        twin=lambda: Twin(partial(reference.GradientDescent, 0.9)),
        rates={"parabola": 0.02, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=4,
        arguments=lambda: {"momentum": 0.9},
        others={"momentum": 0.5, "nesterov": True},
    ),
    Case(
        "sgd-nesterov",
        optimizers.SGD,
        twin=lambda: Twin(partial(reference.GradientDescent, 0.9, True)),
        rates={"parabola": 0.02, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=4,
        arguments=lambda: {"momentum": 0.9, "nesterov": True},
    ),
    Case(
        "adagrad",
        optimizers.Adagrad,
        twin=lambda: Twin(reference.Adagrad),
        rates={"parabola": 0.5, "rosenbrock": 0.5, "matrix": 0.5},
        state_bytes=4,
        others={"initial_accumulator_value": 0.5, "epsilon": 1e-3},
    ),
    Case(
        "adadelta",
        optimizers.Adadelta,
        twin=lambda: Twin(reference.Adadelta),
        rates={"parabola": 20.0, "rosenbrock": 0.7, "matrix": 20.0},
        state_bytes=8,
        others={"rho": 0.8, "epsilon": 1e-3},
        fit_rate=1.0,
    ),
    Case(
        "rmsprop",
        optimizers.RMSprop,
        twin=lambda: Twin(reference.RMSprop),
        rates={"parabola": 0.02, "rosenbrock": 0.005, "matrix": 0.01},
        state_bytes=4,
    ),
    Case(
        "rmsprop-centered-momentum",
        optimizers.RMSprop,
        twin=lambda: Twin(partial(reference.RMSprop, momentum=0.9, centered=True, epsilon=1e-4)),
        rates={"parabola": 0.001, "rosenbrock": 0.0005, "matrix": 0.001},
        state_bytes=12,
        arguments=lambda: {"momentum": 0.9, "centered": True, "epsilon": 1e-4},
        others={"rho": 0.5, "momentum": 0.5, "epsilon": 1e-3, "centered": False},
        fit_rate=1e-3,
    ),
    Case(
        "adam",
        optimizers.Adam,
        twin=lambda: Twin(reference.Adam),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        others={"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "amsgrad": True, "epsilon_hat": False},
    ),
    Case(
        "adam-amsgrad",
        optimizers.Adam,
        twin=lambda: Twin(partial(reference.Adam, amsgrad=True, epsilon_hat=False)),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=12,
        arguments=lambda: {"amsgrad": True, "epsilon_hat": False},
        golden=[Golden("amsgrad", "torch", {"epsilon": 1e-8})],
    ),
    Case(
        "adamw",
        optimizers.AdamW,
        twin=lambda: Twin(reference.Adam, weight_decay=0.004),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        others={
            "weight_decay": 0.1,
            "beta_1": 0.5,
            "beta_2": 0.9,
            "epsilon": 1e-3,
            "amsgrad": True,
            "epsilon_hat": False,
        },
        golden=[
            Golden("cautious_adamw", C_ADAMW, {"weight_decay": 0.0, "epsilon": 1e-6} | CAUTIOUS),
            Golden("cautious_adamw", "timm", {"weight_decay": 0.0, "epsilon": 1e-8, "epsilon_hat": False} | CAUTIOUS),
        ],
    ),
    Case(
        "radam",
        optimizers.RAdam,
        twin=lambda: Twin(reference.RAdam),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        others={"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        golden=[
            Golden("radam", "torch", {}),
            Golden("radam", "timm.legacy", {}),
            Golden("radam", "TFA 0.23", {"epsilon": 1e-7}),
        ],
    ),
    Case(
        "radam-dressed",
        optimizers.RAdam,
        twin=lambda: Twin(
            reference.RAdam,
            global_clipnorm=2.0,
            weight_decay=0.05,
            before=[reference.centralize, partial(reference.adaptive_clip, clip_factor=0.2)],
            cautious_mask=True,
            lookahead=(4, 0.5),
        ),
        # Centralized gradients cannot move the mean of a kernel's column, so the matrix problem has no solution there.
        rates={"parabola": 0.2, "rosenbrock": 0.05},
        state_bytes=12,
        arguments=lambda: {
            "before": [Centralize(), AdaptiveClip(0.2)],
            "after": [Cautious(), Lookahead(4, 0.5)],
            "global_clipnorm": 2.0,
            "weight_decay": 0.05,
        },
    ),
    Case(
        "lion",
        optimizers.Lion,
        twin=lambda: Twin(reference.Lion),
        # Steps of one size circle a minimum, so they must shrink to reach it.
        rates={"parabola": PolynomialDecay(0.02, 500, 0.0), "rosenbrock": 0.002, "matrix": 0.003},
        state_bytes=4,
        others={"beta_1": 0.5, "beta_2": 0.8},
        golden=[Golden("lion_wd0.1", source, {"weight_decay": 0.1}) for source in ("timm", "optax")],
        fit_rate=1e-3,
    ),
]
