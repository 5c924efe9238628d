"""A model of one weight whose gradient is always 1: each update shows the optimizer's rate, momentum and decay."""

import keras
import numpy as np

ONES = np.ones((12, 1), "float32")


@keras.saving.register_keras_serializable("tests")
class Weight(keras.layers.Layer):
    """Multiplies by one weight; counts how often it is traced in training."""

    def __init__(self, start=0.0, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.start, self.regularizer, self.traced = start, regularizer, 0

    def build(self, _):
        initial = keras.initializers.Constant(self.start)
        self.w = self.add_weight(shape=(), initializer=initial, regularizer=self.regularizer)

    def call(self, x, training=False):
        self.traced += bool(training)
        return x * self.w

    def get_config(self):
        return {**super().get_config(), "start": self.start, "regularizer": self.regularizer}


@keras.saving.register_keras_serializable("tests")
def mean(y, prediction):
    return prediction


def model_of(optimizer, start=0.0, regularizer=None, **options):
    model = keras.Sequential([keras.Input((1,)), Weight(start, regularizer)])
    model.compile(optimizer, loss=mean, **options)
    return model


class Watch(keras.callbacks.Callback):
    """The weight before training and after each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        self.seen.append(float(self.model.get_weights()[0]))

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(float(self.model.get_weights()[0]))

    def steps(self):
        return -np.diff(self.seen)


def fit(model, *callbacks, epochs=1, batches=12, **options):
    """Trains on batches of 1 and returns by how much the weight fell at each."""
    watch = Watch()
    x = ONES[:batches]
    model.fit(x, x, batch_size=1, epochs=epochs, verbose=0, callbacks=[*callbacks, watch], **options)
    return watch.steps()
