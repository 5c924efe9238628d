"""The one table of optimizers: each row goes through every contract of test_contracts.py."""

from functools import partial
from math import prod

from keras import ops
from keras.optimizers.schedules import InverseTimeDecay, PolynomialDecay

from keras_trainkit import optimizers
from keras_trainkit.core import randomness
from keras_trainkit.testing import reference
from keras_trainkit.testing.cases import Case, Golden
from keras_trainkit.testing.problems import WIDEST
from keras_trainkit.testing.reference import JointTwin, Twin
from keras_trainkit.transforms import AdaptiveClip, Cautious, Centralize, Lookahead

LOOKAHEAD = {"after": [Lookahead(5, 0.5)]}
CAUTIOUS = {"after": [Cautious()]}
TALL = [(4, 3), (3,), (3, 2, 2, 3)]  # the largest axes of the last shape are not its last ones
D0 = 1e-3  # so that ten steps of a test move the weights by more than rounding
FRANK_WOLFE = InverseTimeDecay(1.0, 1, 0.5)  # 2 / (t + 1) at step t
C_ADAMW = "OFFICIAL C-AdamW formula(c_adamw.py: eps 1e-6, mask on exp_avg, mean clamp 1e-3)"


def each(state_bytes):
    """The bytes of all variables, from those of one."""
    return lambda shapes: sum(state_bytes(shape) for shape in shapes)


def factored_bytes(shape):
    """Rows and columns of the matrices that the last two axes make, or all of a vector."""
    if len(shape) < 2:
        return 4 * prod(shape)
    return 4 * prod(shape[:-2]) * (shape[-2] + shape[-1])


def muon_adam(weight_decay=0.0):
    """What Muon gives to vectors, embeddings and heads."""
    inner = reference.Adam(beta_2=0.95, epsilon=1e-10, epsilon_hat=False)
    return reference.Ratio(inner, 0.015, weight_decay)


def apollo_adam():
    """What APOLLO gives to vectors, embeddings and heads."""
    return reference.Adam(epsilon=1e-6)


def squares(shape):
    """The elements of one square matrix for each axis of a variable that is no vector."""
    return sum(size**2 for size in shape) if len(shape) > 1 else 0


def blocked(shape, limit=2):
    """The elements of a square matrix for each side of each block."""
    counts = [-(-size // limit) for size in shape]
    sides = [-(-size // count) for size, count in zip(shape, counts, strict=True)]
    return prod(counts) * sum(side**2 for side in sides)


def kron(index, triangular, seed=0, **arguments):
    """The twin of Kron for the variable number `index`, with the numbers that the optimizer draws."""

    def uniform(step, stream):
        return float(ops.convert_to_numpy(randomness.uniform([], seed, step, stream)))

    def normal(shape, step):
        return ops.convert_to_numpy(randomness.normal(list(shape), seed, step, 2 + index, WIDEST)).astype("float64")

    return reference.Kron(triangular, uniform, normal, **arguments)


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
        everywhere=True,
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
        "lazyadam",
        optimizers.LazyAdam,
        twin=lambda: Twin(reference.Adam),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        others={"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "amsgrad": True, "epsilon_hat": False},
        golden=[Golden("lazy_adam(dense)", "TFA 0.23", {})],
        everywhere=True,
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
        everywhere=True,
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
        everywhere=True,
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
    Case(
        "adamw16",
        optimizers.AdamW16,
        twin=lambda: Twin(reference.numbered(reference.Adam16), weight_decay=0.004),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=4,
        others={"weight_decay": 0.1, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "epsilon_hat": False, "seed": 1},
        slot_dtype="bfloat16",
    ),
    Case(
        "adam-mini",
        optimizers.AdamMini,
        twin=lambda: Twin(reference.AdamMini),
        rates={"parabola": PolynomialDecay(0.1, 500, 0.0), "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=lambda shapes: 4 * sum(prod(s) + (s[-1] if len(s) > 1 else 1) for s in shapes),
        others={
            "beta_1": 0.5,
            "beta_2": 0.9,
            "epsilon": 1e-3,
            "heads": 1,
            "blocks": [["bias", "b"]],
        },
        names=["query", "bias", "conv"],
    ),
    Case(
        "apollo",
        optimizers.APOLLO,
        twin=lambda: Twin(iter([reference.APOLLO(2, stream=0), apollo_adam(), apollo_adam()]).__next__),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=lambda shapes: 8 * (2 * max(shapes[0]) + sum(map(prod, shapes[1:]))),
        arguments=lambda: {"rank": 2},
    ),
    Case(
        "apollo-everywhere",
        optimizers.APOLLO,
        twin=lambda: Twin(
            iter(
                [
                    reference.APOLLO(1, 4.0, "tensor", 5, None, 3, stream=0),
                    apollo_adam(),
                    reference.APOLLO(1, 4.0, "tensor", 5, None, 3, stream=1),
                ]
            ).__next__
        ),
        rates={"matrix": 0.02},
        state_bytes=lambda shapes: 8 * sum(max(prod(s[:-1]), s[-1]) if len(s) > 1 else prod(s) for s in shapes),
        arguments=lambda: {
            "rank": 1,
            "scale": 4.0,
            "scaling": "tensor",
            "update_interval": 5,
            "growth_limit": None,
            "seed": 3,
            "head": None,
        },
        others={
            "rank": 2,
            "scale": 1.0,
            "scaling": "channel",
            "update_interval": 7,
            "growth_limit": 1.01,
            "beta_1": 0.5,
            "beta_2": 0.9,
            "epsilon": 1e-2,
            "seed": 4,
            "layouts": [["conv", "iioo"]],
            "exclude_layers": ["conv"],
            "exclude_embeddings": False,
            "head": "conv",
        },
        names=["embedding", "bias", "conv"],
    ),
    Case(
        "adabelief",
        optimizers.AdaBelief,
        twin=lambda: Twin(reference.AdaBelief),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        others={"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "rectify": True},
        golden=[Golden("adabelief", source, {}) for source in ("timm", "TFA 0.23")],
    ),
    Case(
        "adabelief-rectified",
        optimizers.AdaBelief,
        twin=lambda: Twin(partial(reference.AdaBelief, epsilon=1e-14, rectify=True)),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        arguments=lambda: {"epsilon": 1e-14, "rectify": True},
    ),
    Case(
        "yogi",
        optimizers.Yogi,
        twin=lambda: Twin(reference.Yogi),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        others={
            "beta_1": 0.5,
            "beta_2": 0.9,
            "epsilon": 1e-2,
            "initial_momentum": 0.1,
            "initial_accumulator_value": 0.1,
            "epsilon_hat": True,
        },
        golden=[
            Golden("yogi", "po", {}),
            Golden("yogi", "optax", {}),
            Golden("yogi", "TFA 0.23", {"initial_momentum": 0.0, "epsilon_hat": True}),
        ],
    ),
    Case(
        "nadam",
        optimizers.NAdam,
        twin=lambda: Twin(reference.NAdam),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        others={"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "momentum_decay": 0.1},
        golden=[Golden("nadam", "torch", {})],
    ),
    Case(
        "adamax",
        optimizers.Adamax,
        twin=lambda: Twin(reference.Adamax),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        others={"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
    ),
    Case(
        "adopt",
        optimizers.ADOPT,
        twin=lambda: Twin(reference.ADOPT),
        rates={"parabola": 0.05, "rosenbrock": 0.2, "matrix": 0.05},
        state_bytes=8,
        first_move=2,
        others={"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.5, "clip_exponent": 0.1},
        golden=[Golden("adopt", source, {}) for source in ("OFFICIAL iShohei220 ADOPT", "optax", "timm(clip_exp .25)")],
    ),
    Case(
        "ademamix",
        optimizers.AdEMAMix,
        twin=lambda: Twin(reference.AdEMAMix),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=12,
        others={"beta_1": 0.5, "beta_2": 0.9, "beta_3": 0.99, "alpha": 1.0, "epsilon": 1e-3},
        golden=[Golden("ademamix", source, {}) for source in ("OFFICIAL apple", "optax")],
        fit_rate=3e-3,
    ),
    Case(
        "adan",
        optimizers.Adan,
        twin=lambda: Twin(reference.Adan),
        rates={"parabola": 0.05, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=16,
        golden=[Golden("adan_wd0", source, {}) for source in ("OFFICIAL sail-sg", "timm")]
        + [
            Golden("adan_wd0.02", "OFFICIAL sail-sg prox", {"weight_decay": 0.02}),
            Golden("adan_wd0.02", "timm(noprox)", {"weight_decay": 0.02, "proximal": False}),
        ],
    ),
    Case(
        "adan-decayed",
        optimizers.Adan,
        twin=lambda: Twin(partial(reference.Adan, weight_decay=0.02)),
        rates={"rosenbrock": 0.02},
        state_bytes=16,
        arguments=lambda: {"weight_decay": 0.02},
        others={"beta_1": 0.5, "beta_2": 0.5, "beta_3": 0.9, "epsilon": 1e-3, "proximal": False},
    ),
    Case(
        "mars",
        optimizers.MARS,
        twin=lambda: Twin(reference.MARS),
        rates={"parabola": 0.05, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=12,
        others={"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "gamma": 0.5},
        golden=[Golden("mars_adamw", source, {}) for source in ("OFFICIAL MARS", "po")],
    ),
    Case(
        "laprop",
        optimizers.LaProp,
        twin=lambda: Twin(reference.LaProp),
        rates={"parabola": 0.05, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        others={"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        golden=[Golden("laprop", source, {}) for source in ("timm", "po")],
    ),
    Case(
        "madgrad",
        optimizers.MADGRAD,
        twin=lambda: Twin(reference.MADGRAD),
        rates={"parabola": 0.05, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=12,
        others={"momentum": 0.5, "epsilon": 1e-3},
        golden=[Golden("madgrad", source, {}) for source in ("timm", "po", "optax")],
    ),
    Case(
        "lamb",
        optimizers.LAMB,
        twin=lambda: Twin(partial(reference.LAMB, weight_decay=0.1)),
        rates={"parabola": 0.02, "rosenbrock": 0.01, "matrix": 0.02},
        state_bytes=8,
        arguments=lambda: {"weight_decay": 0.1},
        others={"weight_decay": 0.01, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        golden=[Golden("lamb_wd0.1", source, {}) for source in ("TFA 0.23", "timm(always_adapt,no clip)", "optax")],
    ),
    Case(
        "novograd",
        optimizers.NovoGrad,
        twin=lambda: Twin(partial(reference.NovoGrad, weight_decay=0.05)),
        rates={"parabola": 0.01, "rosenbrock": 0.002, "matrix": 0.01},
        state_bytes=4,
        arguments=lambda: {"weight_decay": 0.05},
        others={"weight_decay": 0.5, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "grad_averaging": True},
        golden=[Golden("novograd", source, {"weight_decay": 0.0}) for source in ("TFA 0.23", "timm", "optax", "po")],
        fit_rate=3e-3,
    ),
    Case(
        "lars",
        optimizers.LARS,
        twin=lambda: Twin(partial(reference.LARS, weight_decay=1e-3)),
        rates={"parabola": 1.0, "rosenbrock": 2.0, "matrix": 1.0},
        state_bytes=4,
        arguments=lambda: {"weight_decay": 1e-3},
        others={"weight_decay": 0.01, "momentum": 0.5, "trust_coefficient": 0.01, "epsilon": 0.1},
        golden=[
            Golden("lars_wd0.1", "timm", {"weight_decay": 0.1}, learning_rate=1.0),
            Golden("lars_wd0", "timm", {"weight_decay": 0.0}, learning_rate=1.0),
            Golden("lars_wd0", "optax", {"weight_decay": 0.0}, learning_rate=1.0),
        ],
        fit_rate=1.0,
    ),
    Case(
        "sgdw",
        optimizers.SGDW,
        twin=lambda: Twin(partial(reference.GradientDescent, 0.9), weight_decay=0.1),
        rates={"parabola": 0.02},
        state_bytes=4,
        arguments=lambda: {"weight_decay": 0.1},
        others={"weight_decay": 0.01, "momentum": 0.5, "nesterov": True},
        golden=[Golden("sgdw", source, {}) for source in ("timm", "po", "TFA 0.23")],
    ),
    Case(
        "muon",
        optimizers.Muon,
        # The kernel of the convolution comes last, so it counts as the head.
        twin=lambda: Twin(iter([reference.Muon(), muon_adam(), muon_adam()]).__next__),
        rates={"parabola": 5.0, "rosenbrock": 1.0, "matrix": PolynomialDecay(0.3, 1500, 0.0)},
        state_bytes=lambda shapes: 4 * (prod(shapes[0]) + 2 * sum(prod(shape) for shape in shapes[1:])),
        golden=[Golden("muon2d", "torch", {"layouts": [[".", "oi"]], "ns_dtype": "bfloat16"})],
        fit_rate=0.05,
        everywhere=True,
    ),
    Case(
        "muon-everywhere",
        optimizers.Muon,
        twin=lambda: Twin(
            iter(
                [
                    reference.Muon(0.9, False, "spectral", 4, 0.1),
                    muon_adam(0.2),
                    reference.Muon(0.9, False, "spectral", 4, 0.1),
                ]
            ).__next__
        ),
        rates={"matrix": PolynomialDecay(0.3, 1500, 0.0)},
        state_bytes=lambda shapes: 4 * sum(prod(shape) * (1 if len(shape) > 1 else 2) for shape in shapes),
        arguments=lambda: {
            "momentum": 0.9,
            "nesterov": False,
            "scale": "spectral",
            "ns_steps": 4,
            "weight_decay": 0.1,
            "adam_weight_decay": 0.2,
            "head": None,
        },
        others={
            "weight_decay": 0.2,
            "momentum": 0.5,
            "nesterov": True,
            "scale": "rms",
            "coefficients": [2.0, -1.5, 0.5],
            "ns_steps": 3,
            "ns_dtype": "bfloat16",
            "layouts": [["kernel", "bioo"]],
            "exclude_layers": ["kernel"],
            "exclude_embeddings": False,
            "head": "kernel",
            "adam_lr_ratio": 0.5,
            "adam_beta_1": 0.5,
            "adam_beta_2": 0.5,
            "epsilon": 1e-3,
            "adam_weight_decay": 0.0,
        },
        names=["embedding", "vector", "kernel"],
        fit_rate=0.05,
    ),
    Case(
        "adafactor",
        optimizers.Adafactor,
        twin=lambda: Twin(reference.Adafactor),
        # Steps of one relative size circle a minimum, so they must shrink to reach it.
        rates={"parabola": PolynomialDecay(0.1, 500, 0.0), "rosenbrock": 0.01, "matrix": 0.02},
        state_bytes=each(factored_bytes),
        others={
            "beta_2_decay": -0.5,
            "epsilon_1": 0.1,
            "epsilon_2": 3.0,
            "clip_threshold": 0.5,
            "relative_step": False,
            "scale_parameter": False,
            "beta_1": 0.5,
            "factored_axes": "largest",
            "min_dim_size_to_factor": 4,
        },
        golden=[Golden("adafactor", source, {}) for source in ("torch", "optax(min_dim 1)", "po")],
        felt_rate=1.0,
        shapes=TALL,
    ),
    Case(
        "adafactor-absolute",
        optimizers.Adafactor,
        twin=lambda: Twin(
            partial(
                reference.Adafactor,
                relative_step=False,
                scale_parameter=False,
                beta_1=0.9,
                clip_threshold=0.7,
                largest=True,
                smallest=3,
            )
        ),
        rates={"parabola": PolynomialDecay(0.05, 500, 0.0), "rosenbrock": 0.005, "matrix": 0.02},
        state_bytes=each(lambda shape: 4 * prod(shape) + {(4, 3): 28, (3,): 12, (3, 2, 2, 3): 96}[shape]),
        arguments=lambda: {
            "relative_step": False,
            "scale_parameter": False,
            "beta_1": 0.9,
            "clip_threshold": 0.7,
            "factored_axes": "largest",
            "min_dim_size_to_factor": 3,
        },
        shapes=TALL,
    ),
    Case(
        "prodigy",
        optimizers.Prodigy,
        twin=lambda: JointTwin(partial(reference.Prodigy, d0=D0)),
        rates={"parabola": 1.0, "rosenbrock": 1.0, "matrix": 1.0},
        state_bytes=16,
        arguments=lambda: {"d0": D0},
        golden=[
            Golden("prodigy", "OFFICIAL prodigyopt", {"d0": 1e-6}, learning_rate=1.0),
            Golden("prodigy", "po", {"d0": 1e-6}, learning_rate=1.0),
            Golden("prodigy", "optax", {"d0": 1e-6, "use_bias_correction": True}, learning_rate=1.0),
        ],
        fit_rate=1.0,
        drift=5.0,
        replica_tolerance=1e-5,
    ),
    Case(
        "prodigy-dressed",
        optimizers.Prodigy,
        twin=lambda: JointTwin(
            partial(
                reference.Prodigy,
                d0=D0,
                beta_1=0.0,
                beta_3=0.98,
                d_coef=3.0,
                growth_rate=1.2,
                use_bias_correction=True,
                slice_p=5,
                weight_decay=0.3,
            )
        ),
        rates={"parabola": 1.0},
        state_bytes=each(lambda shape: 4 * prod(shape) + 8 * -(-prod(shape) // 5)),
        arguments=lambda: {
            "d0": D0,
            "beta_1": 0.0,
            "beta_3": 0.98,
            "d_coef": 3.0,
            "growth_rate": 1.2,
            "use_bias_correction": True,
            "slice_p": 5,
            "weight_decay": 0.3,
        },
        others={
            "weight_decay": 0.1,
            "beta_1": 0.5,
            "beta_2": 0.9,
            "beta_3": 0.9,
            "epsilon": 1e-2,
            "d0": 1e-2,
            "d_coef": 2.0,
            "growth_rate": 1.1,
            "use_bias_correction": False,
            "safeguard_warmup": True,
            "slice_p": 3,
            "decouple": False,
        },
        fit_rate=1.0,
        felt_rate=0.2,
        drift=5.0,
        replica_tolerance=1e-5,
    ),
    Case(
        "dadaptadam",
        optimizers.DAdaptAdam,
        twin=lambda: JointTwin(partial(reference.DAdaptAdam, d0=D0)),
        rates={"parabola": 1.0, "rosenbrock": 1.0, "matrix": 1.0},
        state_bytes=12,
        arguments=lambda: {"d0": D0},
        golden=[
            Golden("dadapt_adam", "OFFICIAL dadaptation", {"d0": 1e-6}, learning_rate=1.0),
            Golden("dadapt_adam", "po", {"d0": 1e-6}, learning_rate=1.0),
            Golden("dadapt_adam", "optax", {"d0": 1e-6, "use_bias_correction": True}, learning_rate=1.0),
        ],
        fit_rate=0.1,
        drift=5.0,
    ),
    Case(
        "dadaptadam-dressed",
        optimizers.DAdaptAdam,
        twin=lambda: JointTwin(partial(reference.DAdaptAdam, d0=D0, growth_rate=1.02, weight_decay=0.3)),
        rates={"parabola": 1.0},
        state_bytes=12,
        arguments=lambda: {"d0": D0, "growth_rate": 1.02, "weight_decay": 0.3},
        others={
            "weight_decay": 0.1,
            "beta_1": 0.5,
            "beta_2": 0.9,
            "epsilon": 1e-2,
            "d0": 1e-2,
            "growth_rate": 1.05,
            "use_bias_correction": True,
            "decouple": False,
        },
        fit_rate=1.0,
        felt_rate=0.2,
        drift=5.0,
    ),
    Case(
        "cocob",
        optimizers.COCOB,
        twin=lambda: Twin(reference.COCOB),
        rates={"parabola": 1.0, "rosenbrock": 1.0, "matrix": 1.0},
        state_bytes=16,
        others={"alpha": 10.0, "epsilon": 1.0},
        golden=[Golden("cocob", "TFA 0.23", {}, learning_rate=1.0)],
        fit_rate=1.0,
        replica_tolerance=1e-5,
    ),
    Case(
        "proximaladagrad",
        optimizers.ProximalAdagrad,
        twin=lambda: Twin(partial(reference.ProximalAdagrad, l1=1e-3, l2=2e-3)),
        rates={"parabola": 0.5, "rosenbrock": 0.5, "matrix": 0.5},
        state_bytes=4,
        arguments=lambda: {"l1_regularization_strength": 1e-3, "l2_regularization_strength": 2e-3},
        others={
            "initial_accumulator_value": 0.5,
            "l1_regularization_strength": 0.0,
            "l2_regularization_strength": 0.0,
        },
        golden=[Golden("proximal_adagrad(l1=.001,l2=.002)", "TFA 0.23", {})],
    ),
    Case(
        "conditionalgradient",
        optimizers.ConditionalGradient,
        twin=lambda: Twin(partial(reference.ConditionalGradient, 8.0)),
        rates=dict.fromkeys(["parabola", "rosenbrock", "matrix"], FRANK_WOLFE),
        state_bytes=0,
        arguments=lambda: {"lambda_": 8.0},
        others={"lambda_": 2.0, "epsilon": 1.0, "ord": "nuclear"},
        golden=[Golden("cond_grad_frobenius", "TFA 0.23", {"lambda_": 1.0})],
    ),
    Case(
        "conditionalgradient-nuclear",
        optimizers.ConditionalGradient,
        twin=lambda: Twin(partial(reference.ConditionalGradient, 12.0, nuclear=True)),
        rates=dict.fromkeys(["parabola", "rosenbrock", "matrix"], FRANK_WOLFE),
        state_bytes=0,
        arguments=lambda: {"lambda_": 12.0, "ord": "nuclear"},
    ),
    Case(
        "schedulefreesgd",
        optimizers.ScheduleFreeSGD,
        twin=lambda: Twin(partial(reference.ScheduleFreeSGD, warmup_steps=5, weight_decay=0.01)),
        rates={"parabola": 0.1, "rosenbrock": 0.2, "matrix": 0.3},
        state_bytes=4,
        half_state_bytes=8,
        arguments=lambda: {"weight_decay": 0.01, "warmup_steps": 5},
        others={"weight_decay": 0.5, "momentum": 0.5, "warmup_steps": 10, "r": 1.0, "weight_lr_power": 0.0},
        golden=[Golden("sf_sgd", "schedulefree(y)", {"weight_decay": 0.0, "warmup_steps": 0}, learning_rate=1.0)],
        fit_rate=0.1,
    ),
    Case(
        "schedulefreeadamw",
        optimizers.ScheduleFreeAdamW,
        twin=lambda: Twin(reference.ScheduleFreeAdamW),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        half_state_bytes=12,
        golden=[
            Golden("sf_adamw", "schedulefree(y)", {}),
            Golden("sf_adamw", "po(y)", {}),
            Golden("sf_adamw_warm5", "schedulefree(y)", {"warmup_steps": 5}),
        ],
        everywhere=True,
    ),
    Case(
        "schedulefreeadamw-dressed",
        optimizers.ScheduleFreeAdamW,
        twin=lambda: Twin(
            partial(reference.ScheduleFreeAdamW, warmup_steps=7, r=0.5, weight_decay=0.1), global_clipnorm=2.0
        ),
        rates={"parabola": 0.1},
        state_bytes=8,
        half_state_bytes=12,
        arguments=lambda: {"warmup_steps": 7, "r": 0.5, "weight_decay": 0.1, "global_clipnorm": 2.0},
        others={
            "beta_1": 0.5,
            "beta_2": 0.9,
            "epsilon": 1e-3,
            "warmup_steps": 20,
            "r": 0.0,
            "weight_lr_power": 0.0,
            "weight_decay": 0.01,
        },
    ),
    Case(
        "schedulefreeradam",
        optimizers.ScheduleFreeRAdam,
        twin=lambda: Twin(partial(reference.ScheduleFreeRAdam, weight_decay=0.1)),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=8,
        half_state_bytes=12,
        first_move=5,
        arguments=lambda: {"weight_decay": 0.1},
        others={
            "beta_1": 0.5,
            "beta_2": 0.9,
            "epsilon": 1e-3,
            "r": 1.0,
            "weight_lr_power": 0.0,
            "silent_sgd_phase": False,
            "weight_decay": 0.01,
        },
        golden=[Golden("sf_radam", source, {"weight_decay": 0.0}) for source in ("schedulefree(y)", "po(y)")],
    ),
    Case(
        "schedulefreeradam-loud",
        optimizers.ScheduleFreeRAdam,
        twin=lambda: Twin(partial(reference.ScheduleFreeRAdam, silent_sgd_phase=False, weight_lr_power=0.0)),
        rates={"parabola": 0.1},
        state_bytes=8,
        half_state_bytes=12,
        arguments=lambda: {"silent_sgd_phase": False, "weight_lr_power": 0.0},
    ),
    Case(
        "soap",
        optimizers.SOAP,
        twin=lambda: Twin(reference.SOAP),
        rates={"parabola": 0.1, "rosenbrock": 0.02, "matrix": 0.05},
        state_bytes=lambda shapes: 4 * sum(2 * prod(s) + 2 * squares(s) for s in shapes),
        golden=[Golden("soap", source, {}) for source in ("OFFICIAL SOAP(1d precond False)", "po")],
        others={
            "beta_1": 0.5,
            "beta_2": 0.9,
            "shampoo_beta": 0.5,
            "epsilon": 1e-2,
            "precondition_frequency": 3,
            "max_precond_dim": 3,
            "merge_dims": True,
            "precondition_1d": True,
            "normalize_grads": True,
            "correct_bias": False,
        },
        first_move=2,
    ),
    Case(
        "shampoo",
        optimizers.Shampoo,
        twin=lambda: Twin(
            iter([reference.Shampoo(view=view, momentum=0.3) for view in ([4, 3], [3], [8, 3])]).__next__
        ),
        rates={"parabola": 0.07, "rosenbrock": 0.015, "matrix": 0.03},
        state_bytes=lambda shapes: (
            4 * sum(3 * prod(s) + 2 * (squares([prod(s[:-1]), s[-1]]) - (len(s) < 2)) for s in shapes)
        ),
        arguments=lambda: {"momentum": 0.3},
        others={
            "beta_1": 0.0,
            "beta_2": 1.0,
            "epsilon": 1e-2,
            "momentum": 0.5,
            "nesterov": True,
            "block_size": 2,
            "merge_dims": False,
            "precondition_frequency": 2,
            "start_preconditioning_step": 1,
            "exponent_override": 3.0,
            "grafting": "sgd",
            "grafting_beta_2": 0.9,
            "grafting_epsilon": 1e-2,
        },
        replica_tolerance=3e-4,
    ),
    Case(
        "shampoo-blocked",
        optimizers.Shampoo,
        twin=lambda: Twin(
            iter(
                [
                    reference.Shampoo(
                        0.5, 1.0, 1e-4, 3, 5, None, "rmsprop", 0.99, view=view, blocks=blocks, momentum=0.3
                    )
                    for view, blocks in [([4, 3], [2, 2]), ([3], [2]), ([2, 2, 2, 3], [2, 2, 2, 2])]
                ]
            ).__next__
        ),
        rates={"parabola": 0.05, "rosenbrock": 0.01, "matrix": 0.03},
        state_bytes=lambda shapes: 4 * sum(3 * prod(s) + 2 * blocked(s) for s in shapes),
        arguments=lambda: {
            "beta_1": 0.5,
            "beta_2": 1.0,
            "epsilon": 1e-4,
            "block_size": 2,
            "merge_dims": False,
            "precondition_frequency": 3,
            "start_preconditioning_step": 5,
            "grafting": "rmsprop",
            "grafting_beta_2": 0.99,
            "momentum": 0.3,
        },
    ),
    Case(
        "kron",
        optimizers.Kron,
        twin=lambda: Twin(iter([kron(0, [True] * 2), kron(1, [False]), kron(2, [True] * 4)]).__next__),
        rates={"parabola": 0.02, "rosenbrock": 0.01, "matrix": PolynomialDecay(0.02, 1500, 0.0)},
        state_bytes=lambda shapes: 4 * sum(prod(s) + (squares(s) or sum(s)) for s in shapes),
        others={
            "beta_1": 0.5,
            "preconditioner_update_probability": 0.3,
            "max_size_triangular": 3,
            "min_ndim_triangular": 3,
            "memory_save_mode": "one_diag",
            "momentum_into_precond_update": False,
            "precond_lr": 0.3,
            "precond_init_scale": 0.5,
            "seed": 1,
        },
    ),
    Case(
        "kron-diagonal",
        optimizers.Kron,
        twin=lambda: Twin(
            iter(
                [
                    kron(
                        i, [False] * rank, seed=3, beta_1=0.0, probability=0.5, momentum_fits=False, rate=0.3, scale=0.5
                    )
                    for i, rank in enumerate([2, 1, 4])
                ]
            ).__next__
        ),
        rates={"matrix": PolynomialDecay(0.02, 1500, 0.0)},
        state_bytes=lambda shapes: 4 * sum(sum(s) for s in shapes),
        arguments=lambda: {
            "beta_1": 0.0,
            "preconditioner_update_probability": 0.5,
            "memory_save_mode": "all_diag",
            "momentum_into_precond_update": False,
            "precond_lr": 0.3,
            "precond_init_scale": 0.5,
            "seed": 3,
        },
    ),
]
