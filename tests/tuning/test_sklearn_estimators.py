"""Estimators that are trained: what they learn, remember, hand on, and refuse."""

import copy
import pickle
import random

import keras
import numpy as np
import pytest
from sklearn.base import clone

from keras_trainkit import optimizers
from keras_trainkit.tuning import KerasClassifier, KerasRegressor

pytestmark = pytest.mark.tensorflow

RNG = np.random.default_rng(3)
X = RNG.normal(size=(48, 3))
SIDES = np.where(X[:, 0] > 0, "right", "left")


def build(meta, units=4, dropout=0.0):
    layers = [keras.layers.Dense(units, "tanh"), keras.layers.Dropout(dropout)]
    return keras.Sequential([keras.Input(meta.input_shape), *layers, keras.layers.Dense(meta.units, meta.activation)])


def classifier(model=build, **parameters):
    parameters = {"optimizer": "sgd", "optimizer__learning_rate": 0.2, "random_state": 1} | parameters
    return KerasClassifier(model, **parameters)


def iterations(estimator):
    return int(estimator.model_.optimizer.iterations)


@pytest.fixture(scope="module")
def fitted():
    return classifier(units=6, epochs=8, batch_size=16, metrics=["accuracy"]).fit(X, SIDES)


def test_it_learns_labels_of_text(fitted):
    assert fitted.classes_.tolist() == ["left", "right"] and fitted.score(X, SIDES) > 0.85
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (48, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(fitted.classes_[probabilities.argmax(axis=1)], fitted.predict(X))
    assert len(fitted.history_["loss"]) == len(fitted.history_["accuracy"]) == 8
    assert fitted.model_.layers[0].units == 6 and fitted.n_features_in_ == 3
    assert not hasattr(clone(fitted), "model_")


def test_a_prediction_does_not_depend_on_its_neighbours(fitted):
    together = fitted.predict_proba(X)
    for rows in (slice(0, 1), slice(3, 8), slice(40, 48)):
        np.testing.assert_array_equal(fitted.predict_proba(X[rows]), together[rows])


def test_random_state_decides_all_and_leaves_the_generators_alone(fitted):
    random.seed(5), np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5), np.random.seed(5)
    again = clone(fitted).fit(X, SIDES)
    assert (random.random(), np.random.random()) == expected
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    assert again.history_ == fitted.history_
    other = clone(fitted).set_params(random_state=2, epochs=1).fit(X, SIDES)
    assert other.history_["loss"][0] != again.history_["loss"][0]


class Scaled(keras.layers.Layer):
    """Known to nobody but this module."""

    def call(self, x):
        return 2 * x


def own_loss(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


def with_own_parts(meta):
    layers = [Scaled(), keras.layers.Dropout(0.5), keras.layers.Dense(1, "sigmoid")]
    model = keras.Sequential([keras.Input(meta.input_shape), *layers])
    model.compile(keras.optimizers.Adam(0.05), own_loss)
    return model


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_copy_goes_on_where_the_other_was(copied):
    one = KerasClassifier(with_own_parts, optimizer__learning_rate=0.1, batch_size=16, random_state=0)
    one.fit(X, SIDES)
    two = copied(one)
    assert iterations(two) == iterations(one) == 3
    two.partial_fit(X, SIDES), one.partial_fit(X, SIDES)
    assert one.history_ == two.history_ and len(two.history_["loss"]) == 2
    for a, b in zip(one.model_.get_weights(), two.model_.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.predict(X), two.predict(X))


def test_warm_start_goes_on_and_fit_begins_anew():
    estimator = classifier(warm_start=True, batch_size=16).fit(X, SIDES)
    estimator.fit(X, SIDES)
    assert iterations(estimator) == 6 and len(estimator.history_["loss"]) == 2
    assert estimator.history_["loss"][1] < estimator.history_["loss"][0]
    with pytest.raises(ValueError, match="classes of the first fit"):
        estimator.fit(X, np.where(X[:, 1] > 0, "up", "down"))
    estimator.set_params(warm_start=False).fit(X, SIDES)
    assert iterations(estimator) == 3 and len(estimator.history_["loss"]) == 1


def test_parts_of_the_data_one_after_the_other():
    order = np.argsort(SIDES, kind="stable")
    estimator = classifier()
    for rows in (order[:8], order[8:]):
        estimator.partial_fit(X[rows], SIDES[rows], classes=["left", "right"])
    assert estimator.classes_.tolist() == ["left", "right"] and iterations(estimator) == 3
    with pytest.raises(ValueError, match="3 features"):
        estimator.partial_fit(X[:, :2], SIDES)


def test_weights_are_repetitions():
    weights = np.arange(48) % 4
    options = {"batch_size": 96, "epochs": 3}
    y = (X @ [1, 2, 3] > 0).astype(int)
    weighted = classifier(**options).fit(X, y, sample_weight=5 * weights)
    repeated = classifier(**options).fit(X.repeat(weights, axis=0), y.repeat(weights))
    plain = classifier(**options).fit(X, y)
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-4)
    assert np.abs(weighted.predict_proba(X) - plain.predict_proba(X)).max() > 0.01


def test_weights_of_classes_multiply_those_of_rows():
    weights = np.linspace(1, 2, 48)
    by_class = classifier(class_weight={"left": 1, "right": 9}).fit(X, SIDES, sample_weight=weights)
    by_row = classifier().fit(X, SIDES, sample_weight=weights * np.where(SIDES == "right", 9, 1))
    np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X), rtol=1e-5)
    with pytest.raises(ValueError, match="zero"):
        classifier().fit(X, SIDES, sample_weight=np.zeros(48))


def test_any_number_of_labels_at_once():
    y = np.stack([X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
    estimator = classifier(epochs=6, batch_size=8).fit(X, y)
    assert estimator.predict(X).shape == (48, 2) and estimator.predict(X).dtype == y.dtype
    np.testing.assert_array_equal(estimator.predict_proba(X) > 0.5, estimator.predict(X))
    assert (estimator.predict(X) == y).mean() > 0.7
    assert estimator.meta_.target_type == "multilabel-indicator"


def test_several_classifications_have_an_output_each():
    def heads(meta):
        inputs = keras.Input(meta.input_shape)
        pairs = zip(meta.units, meta.activation, strict=True)
        return keras.Model(inputs, [keras.layers.Dense(units, kind)(inputs) for units, kind in pairs])

    y = np.stack([np.digitize(X[:, 0], [-0.5, 0.5]), 10 * (X[:, 1] > 0)], axis=1)
    estimator = classifier(heads, epochs=8, batch_size=8).fit(X, y, sample_weight=np.ones(48))
    first, second = estimator.predict_proba(X)
    assert first.shape == (48, 3) and second.shape == (48, 2)
    assert [classes.tolist() for classes in estimator.classes_] == [[0, 1, 2], [0, 10]]
    assert estimator.predict(X).shape == (48, 2) and (estimator.predict(X) == y).mean() > 0.7


def test_a_regression_has_the_shape_of_its_targets():
    def net(meta):
        return keras.Sequential([keras.layers.Dense(meta.units)])  # knows its input only when it sees it

    options = {"optimizer__learning_rate": 0.05, "epochs": 12, "batch_size": 8, "random_state": 0}
    y = X @ [1.0, -2.0, 0.5]
    one = KerasRegressor(net, **options).fit(X, y)
    assert one.predict(X).shape == (48,) and one.predict(X).dtype == "float64" and one.score(X, y) > 0.9
    two = KerasRegressor(net, **options).fit(X, np.stack([y, -y], axis=1).astype("float32"))
    assert two.predict(X).shape == (48, 2) and two.predict(X).dtype == "float32"
    assert KerasRegressor(net).partial_fit(X, y[:, None]).predict(X).shape == (48, 1)


def compiled(meta):
    model = build(meta)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", metrics=["mae"])
    return model


def test_what_the_function_compiled_stays_but_for_what_is_given():
    own = KerasClassifier(compiled).fit(X, SIDES).model_
    assert (own.optimizer.momentum, own.loss) == (0.9, "mse")
    estimator = KerasClassifier(compiled, optimizer__learning_rate=0.25).fit(X, SIDES)
    rate = estimator.model_
    assert (rate.optimizer.momentum, float(rate.optimizer.learning_rate), rate.loss) == (0.9, 0.25, "mse")
    assert "mae" in estimator.history_
    other = KerasClassifier(compiled, optimizer="lion").fit(X, SIDES)
    assert isinstance(other.model_.optimizer, optimizers.Lion) and other.model_.loss == "mse"
    assert isinstance(pickle.loads(pickle.dumps(other)).model_.optimizer, optimizers.Lion)
    anew = KerasClassifier(compiled, loss="binary_crossentropy").fit(X, SIDES)
    assert anew.model_.loss == "binary_crossentropy" and anew.model_.optimizer.momentum == 0.9


def test_a_linear_last_layer_gives_logits():
    def linear(meta, units=1):
        return keras.Sequential([keras.Input(meta.input_shape), keras.layers.Dense(units)])

    for units in (1, 2):
        estimator = classifier(linear, units=units, epochs=5, batch_size=8).fit(X, SIDES)
        assert estimator.model_.loss.get_config()["from_logits"] and estimator.score(X, SIDES) > 0.85
        assert estimator.predict_proba(X).min() > 0
        np.testing.assert_allclose(estimator.predict_proba(X).sum(axis=1), 1, rtol=1e-5)
    wrong = classifier(linear, loss="hinge").fit(X, SIDES)
    with pytest.raises(ValueError, match="from_logits=True"):
        wrong.predict_proba(100 * X)


def test_a_model_is_a_template():
    given = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
    before = given.get_weights()
    estimator = classifier(given, optimizer__learning_rate=0.0).fit(X, SIDES)
    for a, b in zip(before, estimator.model_.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    clone(estimator).set_params(optimizer__learning_rate=0.5).fit(X, SIDES)
    for a, b in zip(before, given.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not given.compiled


def test_held_out_rows_have_the_shares_of_the_classes():
    def share(y_true, y_pred):
        return keras.ops.mean(y_true)

    order = np.argsort(SIDES)
    estimator = classifier(validation_split=0.25, metrics=[share]).fit(X[order], SIDES[order])
    assert estimator.history_["val_share"][0] == pytest.approx((SIDES == "right").mean(), abs=0.05)
    with pytest.raises(ValueError, match="`validation_split` must leave rows"):
        classifier(validation_split=0.01).fit(X[:3], SIDES[:3])


@pytest.mark.parametrize("as_function", [False, True])
def test_callbacks_are_new_in_each_fit(as_function):
    given = keras.callbacks.EarlyStopping("loss", min_delta=100, patience=1)
    made = []

    def factory():
        made.append(keras.callbacks.EarlyStopping("loss", min_delta=100, patience=1))
        return made[-1:]

    estimator = classifier(epochs=5, callbacks=factory if as_function else [given])
    for _ in range(2):
        assert len(estimator.fit(X, SIDES).history_["loss"]) == 2
    assert len(made) == 2 * as_function and given.stopped_epoch == 0


def test_images_keep_their_shape():
    def convolutions(meta):
        layers = [keras.layers.Conv2D(2, 2), keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")]
        return keras.Sequential([keras.Input(meta.input_shape), *layers])

    images = RNG.normal(size=(16, 4, 4, 1))
    estimator = classifier(convolutions).fit(images, np.arange(16) % 2)
    assert estimator.meta_.n_features == 16 and estimator.predict(images).shape == (16,)
    with pytest.raises(ValueError, match=r"shape \(4, 4, 1\)"):
        estimator.predict(images[:, :, :3])


@pytest.mark.parametrize(
    ("model", "parameters", "message"),
    [
        (None, {}, "`model` must be a function"),
        (lambda: 3, {}, "`model` must return a Keras model"),
        (build, {"batch_size": 0}, "`batch_size`"),
        (build, {"epochs": 1.5}, "`epochs`"),
        (build, {"validation_split": 1}, "`validation_split`"),
        (build, {"loss": ["mse", "mse"]}, "`loss` must be one for each"),
        (lambda: keras.Sequential([keras.layers.Dense(3, "softmax")]), {}, "1 or 2 units.*3 units"),
        (lambda: keras.Sequential([keras.layers.Reshape((3, 1))]), {}, r"one output of shape \(batch, units\)"),
    ],
)
def test_what_cannot_be_trained(model, parameters, message):
    with pytest.raises((TypeError, ValueError), match=message):
        KerasClassifier(model, **parameters).fit(X, SIDES)
