"""`optimizers.wrap`: Keras's optimizers and users' own with the kit's options."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, transforms
from keras_trainkit.testing import contracts
from keras_trainkit.testing.contracts import Case, assert_close, fit, small_model
from keras_trainkit.testing.problems import Stepper

RNG = np.random.default_rng(2)
INITIAL = [RNG.normal(size=(4, 3)), RNG.normal(size=3)]
GRADIENTS = [[RNG.normal(size=(4, 3)), RNG.normal(size=3)] for _ in range(12)]
FOREIGN = [
    "SGD",
    "RMSprop",
    "Adam",
    "AdamW",
    "Adadelta",
    "Adagrad",
    "Adamax",
    "Adafactor",
    "Nadam",
    "Ftrl",
    "Lion",
    "Lamb",
]


@keras.saving.register_keras_serializable("test_wrap")
class SignDescent(keras.optimizers.Optimizer):
    """A user's own optimizer, written as Keras's documentation says."""

    def __init__(self, learning_rate=0.01, sharpness=1.0, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.sharpness = sharpness

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.counts = self.add_optimizer_variables(variables, "count")

    def update_step(self, gradient, variable, learning_rate):
        count = self.counts[self._get_variable_index(variable)]
        self.assign_add(count, ops.ones(count.shape, count.dtype))
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * ops.tanh(self.sharpness * ops.cast(gradient, variable.dtype)))

    def get_config(self):
        return super().get_config() | {"sharpness": self.sharpness}


class Wrapping:
    """Stands where a contract expects a class: makes the Keras optimizer with its own options, and wraps it."""

    lazy = False

    def __init__(self, name):
        self.name = name

    def __call__(self, learning_rate, after=None, last_window="apply", **options):
        inner = getattr(keras.optimizers, self.name)(learning_rate, **options)
        return optimizers.wrap(inner, after=after, last_window=last_window)


def foreign_case(name):
    if not hasattr(keras.optimizers, name):
        pytest.skip(f"this Keras has no {name}")
    rates = {"Adadelta": 1.0, "SGD": 0.1, "Adagrad": 0.1, "Ftrl": 0.1}
    return Case(name, Wrapping(name), twin=dict, rates={}, state_bytes=0, fit_rate=rates.get(name, 0.01))


# One of each kind of state: the others' slots are Adam's or RMSprop's.
KINDS = ["Adam", "SGD", "RMSprop", "Adafactor", "Lion", "Ftrl", "Lamb", "Muon"]
at_length = [pytest.param(n, marks=[] if n == "Adam" else [pytest.mark.exhaustive]) for n in KINDS]


@pytest.mark.parametrize("name", at_length)
def test_a_wrapped_optimizer_keeps_the_contracts_of_replicas_and_windows(name, request):
    case = foreign_case(name)
    contracts.micro_batches_equal_big_ones(case)
    if name in ("Adam", "Adafactor", "Ftrl"):  # the wrapper's own affair; three kinds of state will do
        contracts.follows_window_policy(case)
        if keras.backend.backend() == "tensorflow":
            contracts.sparse_equals_dense(case)
    if keras.backend.backend() == "tensorflow":
        two_replicas = request.getfixturevalue("two_replicas")
        contracts.overflow_skips_everywhere(case, two_replicas)
        contracts.replicas_agree(case, two_replicas)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_bare_wrapper_changes_nothing(name):
    if not hasattr(keras.optimizers, name):
        pytest.skip(f"this Keras has no {name}")
    kind = getattr(keras.optimizers, name)
    theirs = Stepper(kind(0.01), INITIAL, dtype="float32").run(GRADIENTS)
    ours = Stepper(optimizers.wrap(kind(0.01)), INITIAL, dtype="float32").run(GRADIENTS)
    assert_close(ours, theirs, 1e-6)


@pytest.mark.parametrize(
    "inner", [lambda **k: keras.optimizers.Nadam(0.01, **k), lambda **k: SignDescent(0.01, 2.0, **k)]
)
def test_options_are_taken_over_and_right_on_two_replicas(inner, request):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("replicas are TensorFlow's")
    strategy = request.getfixturevalue("two_replicas")

    def make():
        options = {"global_clipnorm": 0.5, "weight_decay": 0.01, "use_ema": True, "gradient_accumulation_steps": 2}
        return optimizers.wrap(
            inner(**options),
            before=[transforms.Centralize()],
            after=[transforms.Lookahead(2, 0.5), transforms.Cautious()],
        )

    alone = small_model(make())
    with strategy.scope():
        together = small_model(make())
    start = alone.get_weights()
    fit(alone, epochs=3)
    fit(together, epochs=3)
    assert int(ops.convert_to_numpy(together.optimizer.iterations)) == 6
    assert max(np.abs(a - b).max() for a, b in zip(start, alone.get_weights(), strict=True)) > 1e-3
    assert_close(together.get_weights(), alone.get_weights(), 2e-6)


def test_before_and_after_are_those_of_the_kits_own_optimizers():
    options = {"before": [transforms.AdaptiveClip(0.1)], "after": [transforms.Lookahead(3, 0.5)]}
    wrapped = Stepper(optimizers.wrap(keras.optimizers.Adam(0.01), **options), INITIAL, dtype="float32").run(GRADIENTS)
    own = Stepper(optimizers.Adam(0.01, **options), INITIAL, dtype="float32").run(GRADIENTS)
    assert_close(wrapped, own, 1e-6)


def test_one_of_ours_gets_the_transforms_added():
    optimizer = optimizers.wrap(
        optimizers.RAdam(0.02, beta_1=0.8, before=[transforms.Centralize()], clipnorm=1.0),
        before=[transforms.AdaptiveClip(0.1)],
        after=[transforms.Cautious()],
    )
    assert type(optimizer) is optimizers.RAdam
    assert optimizer.before == [transforms.Centralize(), transforms.AdaptiveClip(0.1)]
    assert optimizer.after == [transforms.Cautious()]
    assert (optimizer.beta_1, optimizer.clipnorm) == (0.8, 1.0)


@pytest.mark.parametrize("inner", [lambda: keras.optimizers.Nadam(0.01), lambda: SignDescent(0.01, 2.0)])
def test_a_saved_wrapper_resumes_exactly(inner, tmp_path):
    whole = small_model(optimizers.wrap(inner(), after=[transforms.Lookahead(3, 0.5)], use_ema=True))
    fit(whole, epochs=1)
    whole.save(tmp_path / "w.keras")
    fit(whole, epochs=1)
    half = keras.models.load_model(tmp_path / "w.keras")
    fit(half, epochs=1)
    assert_close(half.get_weights(), whole.get_weights(), 0.0)


def test_schedules_pass_through():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.001])
    theirs = Stepper(keras.optimizers.Nadam(schedule), INITIAL, dtype="float32").run(GRADIENTS)
    ours = Stepper(optimizers.wrap(keras.optimizers.Nadam(schedule)), INITIAL, dtype="float32").run(GRADIENTS)
    assert_close(ours, theirs, 1e-6)


def test_what_cannot_be_wrapped_says_why():
    with pytest.raises(TypeError, match="`optimizer` must be a Keras optimizer"):
        optimizers.wrap("adam")
    with pytest.raises(ValueError, match="must be the one inside"):
        optimizers.wrap(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    used = keras.optimizers.SGD(0.1)
    used.build([keras.Variable(np.ones(2))])
    with pytest.raises(ValueError, match="must not have been used or built"):
        optimizers.wrap(used)
