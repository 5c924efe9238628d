"""Trains on 8 host devices of JAX and prints what it found as JSON; run by test_model_parallel.py in its own process.

`python parallel_program.py OPTIMIZER...`, `... transformer PAGE` or `... slots`, in the folder of the tests.
"""

import json
import pathlib
import sys

import jax
import keras
import numpy as np
from keras import layers

sys.path.insert(0, ".")
from cases import CASES

from keras_trainkit import distribution, optimizers
from keras_trainkit.core import backend
from keras_trainkit.transforms import Lookahead

RNG = np.random.default_rng(11)
MESH = {"batch": 2, "model": 4}
ROWS = {case.name: case for case in CASES}
REPLICATED = ("adamw", "shampoo")  # the rows that DataParallel trains, too
EPOCHS = {"schedulefreeradam": 3}  # its first five updates move nothing
DRESS = {"global_clipnorm": 0.3, "gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 3}


def perceptron():
    """Every kind of variable that the layout splits and that the optimizers treat in their own ways, and as tiny."""
    return keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(16, 8),
            layers.Flatten(),
            layers.Dense(12, "tanh"),
            layers.Dense(8, "tanh"),
            layers.Dense(4),
        ]
    )


def transformer():
    """One block of causal attention and of a perceptron, with dropout."""
    tokens = keras.Input((8,), dtype="int32")
    stream = layers.Embedding(20, 16)(tokens)
    calm = layers.LayerNormalization()(stream)
    stream += layers.MultiHeadAttention(4, 4, dropout=0.1)(calm, calm, use_causal_mask=True)
    wide = layers.Dense(32, "gelu")(layers.LayerNormalization()(stream))
    stream += layers.Dropout(0.1)(layers.Dense(16)(wide))
    return keras.Model(tokens, layers.Dense(20)(layers.LayerNormalization()(stream)))


def fresh(placed=None):
    """Begins anew, under this distribution or none."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    keras.distribution.set_distribution(placed)


def on_one_device(variables):
    return sum(v.value.addressable_shards[0].data.nbytes for v in variables)


def trained(make, optimizer, x, y, placed=None, epochs=1):
    """The weights after training, and the model."""
    fresh(placed)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(), loss)
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return np.concatenate([w.ravel() for w in model.get_weights()]), model


def rows(names):
    """For each optimizer how far its weights are from those of one device, and how its slots lie."""
    x, y = RNG.integers(0, 16, (56, 3)), RNG.integers(0, 4, 56)
    found = {}
    for name in names:
        make = lambda case=ROWS[name]: case.optimizer(case.fit_rate, **DRESS)  # noqa: E731
        epochs = EPOCHS.get(name, 1)
        alone, _ = trained(perceptron, make, x, y, epochs=epochs)
        fresh()
        layout = distribution.layout_for(perceptron, MESH, optimizer=make())
        begun = np.concatenate([w.ravel() for w in perceptron().get_weights()])
        if name in REPLICATED:
            copied, _ = trained(perceptron, make, x, y, keras.distribution.DataParallel())
            found[name] = {"data parallel": float(np.abs(copied - alone).max())}
        split, model = trained(perceptron, make, x, y, layout.distribution(), epochs)
        layout.check(model)
        found.setdefault(name, {}).update(
            {
                "moved": float(np.abs(alone - begun).max()),
                "model parallel": float(np.abs(split - alone).max()),
                "planned": [layout.bytes_per_device.parameters, layout.bytes_per_device.slots],
                "measured": [on_one_device(model.variables), on_one_device(model.optimizer.variables)],
                "strange slots": strange_slots(model),
            }
        )
    return found


def strange_slots(model):
    """Slots of a variable's shape that do not lie as the variable does, once trained."""
    strange = []
    for variable in model.trainable_variables:
        own = [v for v in model.optimizer.variables if v.name.startswith(variable.path.replace("/", "_") + "_")]
        same = [v for v in own if v.shape == variable.shape]
        assert len(same) >= 2, own  # the accumulator and the average at least
        shards = variable.value.sharding
        strange += [v.path for v in same if not v.value.sharding.is_equivalent_to(shards, len(v.shape))]
    return strange


def wide():
    """The transformer on 2 x 4 devices, beside one."""
    x = RNG.integers(0, 20, (40, 8))
    y = np.roll(x, -1, axis=1)

    def make():
        # The bias of the keys has no gradient but rounding, which Adam would blow up without so large an epsilon.
        return optimizers.AdamW(0.01, global_clipnorm=1.0, epsilon=1e-3)

    alone, _ = trained(transformer, make, x, y, epochs=4)
    fresh()
    begun = np.concatenate([w.ravel() for w in transformer().get_weights()])
    fresh()
    layout = distribution.layout_for(transformer, MESH, optimizer=make())
    split, model = trained(transformer, make, x, y, layout.distribution(), epochs=4)
    layout.check(model)
    shards = {v.path: list(v.value.addressable_shards[0].data.shape) for v in model.trainable_variables}
    moved, difference = (float(np.abs(alone - other).max()) for other in (begun, split))
    return {"moved": moved, "difference": difference, "shards": shards}


def looked_up():
    """Keras's Adafactor, and ours, with a layout map whose patterns find the names of the slots, too."""
    found = {}
    for kind in (keras.optimizers.Adafactor, optimizers.Adafactor):
        mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"), keras.distribution.list_devices())
        layouts = keras.distribution.LayoutMap(mesh)
        layouts[".*kernel.*"] = (None, "model")
        fresh(keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch"))
        variable = keras.Variable(np.ones((8, 12), "float32"), name="kernel")
        try:
            optimizer = kind()
            optimizer.build([variable])
            found[kind.__module__.partition(".")[0]] = [
                backend.axes_of(v) for v in optimizer.variables if v.shape in ((8,), (12,))
            ]
        except (ValueError, IndexError) as error:
            found[kind.__module__.partition(".")[0]] = repr(error)
    return found


def large():
    """Slots of a variable so large that Keras compiles what makes their first value; how much of them a device has."""
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"), keras.distribution.list_devices())
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["table"] = ("model", None)
    fresh(keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch"))
    table = keras.Variable(keras.initializers.Ones(), (2**18, 32), name="table")
    optimizer = optimizers.SGD(0.1, after=[Lookahead(5, 0.5)])
    optimizer.build([table])
    slow = next(v for v in optimizer.variables if v.shape == table.shape)
    return {"rows": slow.value.addressable_shards[0].data.shape[0], "mean": float(jax.numpy.mean(slow.value))}


def page(path):
    """Runs the code of a page of the documentation; how many blocks, and whether the sums are those that it shows."""
    fresh()
    text = pathlib.Path(path).read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```py\n")[1:]]
    namespace = {"__name__": "__documentation__"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"block {number}", "exec"), namespace)
    sums = str(namespace["layout"]).partition("bytes on each device")[2]
    return [len(blocks), sums.strip() in text]


assert len(jax.devices()) == 8
if sys.argv[1] == "transformer":
    report = {"transformer": wide(), "page": page(sys.argv[2])}
elif sys.argv[1] == "slots":
    report = {"looked up": looked_up(), "large": large()}
else:
    report = rows(sys.argv[1:])
print(json.dumps(report))
