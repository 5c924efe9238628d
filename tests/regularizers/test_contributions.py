"""`regularizers.summary`: one row for each of the model's losses, and their exact sum."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainkit import optimizers, regularizers, schedules
from keras_trainkit.callbacks import HyperparameterSchedule
from keras_trainkit.core import backend

RNG = np.random.default_rng(54)
X = RNG.normal(size=(6, 4)).astype("float32")


class Plain(keras.regularizers.Regularizer):
    """One that does not say how it is configured."""

    def __call__(self, x):
        return 0.3 * x


class Noisy(keras.layers.Layer):
    """Adds two losses of its own, and one in training; its output may be regularized, too."""

    def build(self, _):
        self.w = self.add_weight(shape=(), initializer="ones", name="w", regularizer=Plain())

    def call(self, x, training=False):
        self.add_loss(0.25 * ops.mean(ops.square(x)))
        self.add_loss(0.5 * ops.mean(x))
        if training:
            self.add_loss(ops.sum(self.w))
        return x * self.w


def named(model, x=X, **options):
    """The summary, once it is sure that its rows and its total are the model's losses."""
    found = regularizers.summary(model, x, **options)
    assert [row.value for row in found.rows] == [float(loss) for loss in model.losses]
    assert found.total == float(sum(model.losses))
    return found


def kinds(found):
    return [(row.kind, row.name.rpartition("/")[2]) for row in found.rows]


def dense(units, name, **options):
    return keras.layers.Dense(units, name=name, **options)


def test_weights_by_variable():
    first = dense(3, "first", kernel_regularizer=regularizers.GroupLasso(0.1), bias_regularizer="l1")
    second = dense(2, "second", kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.2))
    model = keras.Sequential([keras.Input((4,)), first, dense(3, "between"), second], name="net")
    found = named(model)
    assert [(row.kind, row.name) for row in found.rows] == [
        ("weight", "net/first/kernel"),
        ("weight", "net/first/bias"),
        ("weight", "net/second/kernel"),
    ]
    assert found.rows[0].regularizer == "GroupLasso(factor=0.1, axis=[-1], scale_by_size=True)"
    assert found.rows[1].regularizer == "L1(l1=0.01)"
    assert found == regularizers.summary(model)  # nothing needs data


def test_activities_and_what_layers_add_keep_their_names_and_order():
    both = Noisy(name="both", activity_regularizer=keras.regularizers.L2(0.1))
    layers = [
        dense(4, "soft", activation="softmax", activity_regularizer=regularizers.EntropyPenalty(0.1)),
        both,
        Noisy(name="plain"),
        keras.layers.ActivityRegularization(l1=0.01, name="last"),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    found = named(model)
    assert sorted(kinds(found)) == sorted(
        [
            ("activity", "soft"),
            ("add_loss", "both"),
            ("add_loss", "both"),
            ("activity", "both"),
            ("add_loss", "plain"),
            ("add_loss", "plain"),
            ("activity", "last"),
            ("weight", "w"),
            ("weight", "w"),
        ]
    )
    of_both = [row for row in found.rows if row.name.endswith("both")]
    assert [row.kind for row in of_both] == ["add_loss", "add_loss", "activity"]
    divisor = 6 if backend.divides_activity_penalties() else 1
    squares = float(ops.sum(ops.square(model.layers[0](X))))
    assert of_both[-1].value == pytest.approx(0.1 * squares / divisor, rel=1e-5)
    assert next(row for row in found.rows if row.kind == "weight").regularizer == "Plain"
    # Everything is as it was, and training adds its own.
    assert isinstance(both.activity_regularizer, keras.regularizers.L2)
    assert len(named(model, training=True).rows) == len(found.rows) + 2


def test_nested_models_and_shared_layers_are_counted_as_keras_counts_them():
    shared = dense(4, "shared", kernel_regularizer="l2", activity_regularizer="l1")
    inner_in = keras.Input((4,))
    inner = keras.Model(inner_in, dense(4, "deep", kernel_regularizer="l1")(shared(inner_in)), name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(shared(shared(inputs))) + inner(inputs))
    found = named(model)
    assert [row.name for row in found.rows if row.kind == "weight"] == [v.path for v in model.variables[::2]]
    assert sum(row.kind == "activity" for row in found.rows) == 4  # two calls here, one in each call of the inner
    assert len({row.value for row in found.rows}) > 4


def test_frozen_weights_do_not_count():
    model = keras.Sequential([keras.Input((4,)), dense(3, "a", kernel_regularizer="l2"), dense(2, "b")])
    model.layers[0].trainable = False
    assert named(model).rows == [] and named(model).total == 0


def test_without_data_it_says_what_it_did_not_see():
    layers = [dense(3, "a", kernel_regularizer="l2", activity_regularizer="l1"), Noisy(name="noisy")]
    model = keras.Sequential([keras.Input((4,)), *layers], name="net")
    found = regularizers.summary(model)
    assert [row.kind for row in found.rows] == ["weight", "weight"]
    assert len(found.unseen) == 1 and found.unseen[0].endswith("a")
    assert str(found).endswith(f"Not counted, because they need `inputs`: {found.unseen[0]}.")
    model(X)
    assert len(regularizers.summary(model).unseen) == 2  # now it is known that the other adds losses
    assert named(model).unseen == []


def test_the_table_has_shares_and_a_total():
    layers = [dense(2, "a", kernel_initializer="ones", kernel_regularizer=regularizers.ElasticNet(1.0, 1.0))]
    layers.append(keras.layers.Activation("softmax", activity_regularizer=regularizers.EntropyPenalty(0.5), name="b"))
    model = keras.Sequential([keras.Input((3,)), *layers], name="net")
    found = named(model, np.zeros((2, 3), "float32"))
    lines = [line.split() for line in str(found).splitlines()]
    assert lines[0] == ["kind", "of", "regularizer", "contribution", "share"]
    assert lines[1][:2] == ["activity", "b"] and lines[1][-2:] == ["-0.346574", "5.5%"]
    assert lines[2][:2] == ["weight", "net/a/kernel"] and lines[2][-2:] == ["6", "94.5%"]
    assert lines[3] == ["total", "5.65343"]


def test_several_inputs_and_outputs():
    one, other = keras.Input((4,), name="one"), keras.Input((2,), name="other")
    both = dense(3, "both", activity_regularizer="l2")
    model = keras.Model({"one": one, "other": other}, [both(one), keras.layers.Concatenate()([both(one), other])])
    assert [row.kind for row in named(model, {"one": X, "other": X[:, :2]}).rows] == ["activity", "activity"]


def test_after_fit_and_for_a_layer_alone():
    layer = dense(3, "a", kernel_regularizer=regularizers.Hoyer(1e-3), activity_regularizer="l2")
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, X[:, :3], verbose=0)
    found = named(model)
    assert [row.kind for row in found.rows] == ["activity", "weight"]
    assert named(layer) == found


@pytest.mark.tensorflow
def test_under_a_schedule_it_is_what_counts_now():
    model = keras.Sequential(
        [keras.Input((4,)), dense(3, "a", kernel_regularizer="l2", activity_regularizer=keras.regularizers.L1(0.5))]
    )
    model.compile(optimizers.SGD(0.0), "mse")
    plain = named(model).total
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(named(model))

    follow = HyperparameterSchedule(regularization=schedules.Linear(0.0, 4, 1.0))
    model.fit(X[:4], X[:4, :3], batch_size=1, verbose=0, callbacks=[follow, Look()])
    np.testing.assert_allclose([found.total / plain for found in seen], [0.25, 0.5, 0.75, 1.0], rtol=1e-5)
    assert seen[0].rows[1].regularizer == "Scheduled(regularizer=L2(l2=0.01))"


def test_what_it_cannot_show_is_an_error():
    with pytest.raises(TypeError, match="`model` must be a model or a layer of Keras. Received: model='net'"):
        regularizers.summary("net")
    with pytest.raises(ValueError, match="`model` must be built, or `inputs` be given"):
        regularizers.summary(keras.Sequential([dense(3, "a", kernel_regularizer="l2")]))
    with pytest.raises(ValueError):
        regularizers.summary(keras.Sequential([keras.Input((4,)), dense(3, "a")]), X[:, :2])


def test_a_failing_call_leaves_the_layers_as_they_were():
    layer = dense(3, "a", activity_regularizer=keras.regularizers.L2(0.1))
    model = keras.Sequential([keras.Input((4,)), layer])
    with pytest.raises(ValueError):
        regularizers.summary(model, X[:, :2])
    assert isinstance(layer.activity_regularizer, keras.regularizers.L2)
