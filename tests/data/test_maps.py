"""Data maps: the loss of a mixed row is that of its two rows, each with its weight; draws that follow from the step."""

import keras
import numpy as np
import pytest

from keras_trainkit import data

RNG = np.random.default_rng(71)
ROWS, CLASSES = 12, 4
IMAGES = RNG.normal(size=(ROWS, 6, 5, 2)).astype("float32")
LABELS = RNG.integers(0, CLASSES, size=ROWS)
WEIGHTS = np.array([1, 0, 2, 0.5, 3, 1, 0, 1, 4, 1, 0.25, 1], "float32")
tensorflow = pytest.mark.tensorflow
KINDS = {"mixup": data.MixUp, "cutmix": data.CutMix}
mixing = pytest.mark.parametrize("kind", KINDS)


def cross_entropies(logits, targets):
    return -(targets * (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))).sum(axis=-1)


def parts_of(kind, mixed, rows=None):
    """Which row each mixed image holds beside its own, and how much of it: read off the pixels, without our code."""
    rows = IMAGES if rows is None else rows
    found = []
    for i, image in enumerate(mixed):
        best = (np.inf, i, 1.0)
        for j in range(len(rows)):
            if kind == "mixup":
                difference = rows[i] - rows[j]
                share = 1.0 if i == j else ((image - rows[j]) * difference).sum() / (difference**2).sum()
                error = np.abs(share * rows[i] + (1 - share) * rows[j] - image).max()
            else:
                own = (image == rows[i]).all(axis=-1)
                error = np.abs(image - np.where(own[..., None], rows[i], rows[j])).max()
                share = own.mean()
            if error < best[0] - 1e-7:
                best = (error, j, share)
        assert best[0] < 1e-5
        found.append(best[1:])
    return [list(column) for column in zip(*found, strict=True)]


# ---------------------------------------------------------------------------------------------- weights and targets


@mixing
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_a_mixed_row_is_that_of_both(kind, weighted):
    logits = RNG.normal(size=(ROWS, CLASSES))
    one_hot = np.eye(CLASSES)[LABELS]
    w = WEIGHTS if weighted else np.ones(ROWS)
    batch = (IMAGES, LABELS, WEIGHTS) if weighted else (IMAGES, LABELS)
    different = 0
    for step in range(5):
        mixed, targets, *weights = KINDS[kind](1.0, classes=CLASSES, seed=3)(step, batch)
        partners, shares = (np.array(part) for part in parts_of(kind, mixed))
        ours = (weights[0] if weighted else 1.0) * cross_entropies(logits, targets)
        theirs = shares * w * cross_entropies(logits, one_hot)
        theirs += (1 - shares) * w[partners] * cross_entropies(logits, one_hot[partners])
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(targets.sum(axis=-1), 1, rtol=1e-5)
        different += (partners != np.arange(ROWS)).sum()
        if weighted:
            np.testing.assert_allclose(weights[0], shares * w + (1 - shares) * w[partners], rtol=1e-4)
    assert different > 20


@mixing
def test_rows_without_weight_neither_mix_nor_are_mixed_in(kind):
    marked = IMAGES.copy()
    marked[WEIGHTS == 0] = np.nan
    for step in range(20):
        mixed, targets, weights = KINDS[kind](1.0, classes=CLASSES)(step, (marked, LABELS, WEIGHTS))
        np.testing.assert_array_equal(np.isnan(mixed).any(axis=(1, 2, 3)), WEIGHTS == 0)
        np.testing.assert_array_equal(weights == 0, WEIGHTS == 0)
        np.testing.assert_array_equal(targets[WEIGHTS == 0], np.eye(CLASSES)[LABELS[WEIGHTS == 0]])
    none = KINDS[kind](1.0, classes=CLASSES)(0, (IMAGES, LABELS, 0 * WEIGHTS))
    np.testing.assert_array_equal(none[0], IMAGES)


@mixing
def test_the_sum_of_the_weights_keeps_its_mean(kind):
    sums = [KINDS[kind](1.0, classes=CLASSES)(s, (IMAGES, LABELS, WEIGHTS))[2].sum() for s in range(600)]
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - WEIGHTS.sum()) < 5 * error and error < 0.05 * WEIGHTS.sum()


def test_the_squared_error_has_the_same_gradient():
    y, prediction = RNG.normal(size=(ROWS, 1)), RNG.normal(size=(ROWS, 1))
    mixed, targets = data.MixUp(1.0)(0, (IMAGES, y))
    partners, shares = (np.array(part)[:, None] for part in parts_of("mixup", mixed))
    theirs = shares * 2 * (prediction - y) + (1 - shares) * 2 * (prediction - y[partners[:, 0]])
    np.testing.assert_allclose(2 * (prediction - targets), theirs, atol=1e-5)


def test_several_inputs_outputs_and_their_weights():
    x = {"a": IMAGES, "b": RNG.normal(size=(ROWS, 3)).astype("float32")}
    y = {"c": LABELS, "d": RNG.normal(size=ROWS).astype("float32")}
    w = {"c": WEIGHTS, "d": np.where(WEIGHTS == 0, 2, WEIGHTS).astype("float32")}
    mixed, targets, weights = data.MixUp(1.0, classes={"c": CLASSES, "d": None})(0, (x, y, w))
    partners, shares = (np.array(part) for part in parts_of("mixup", mixed["a"]))
    both = shares[:, None] * x["b"] + (1 - shares)[:, None] * x["b"][partners]
    np.testing.assert_allclose(mixed["b"], both, atol=1e-5)
    for name, target in (("c", np.eye(CLASSES)[LABELS]), ("d", y["d"][:, None])):
        own, other = shares * w[name], (1 - shares) * w[name][partners]
        np.testing.assert_allclose(weights[name], own + other, rtol=1e-4)
        expected = own[:, None] * target + other[:, None] * target[partners]
        np.testing.assert_allclose(weights[name][:, None] * targets[name].reshape(ROWS, -1), expected, atol=1e-5)
    shared = data.MixUp(1.0, classes={"c": CLASSES, "d": None})(0, (x, y, WEIGHTS))
    assert shared[2].shape == (ROWS,)


# -------------------------------------------------------------------------------------------------------- the draws


def test_shares_follow_beta():
    ones = np.stack([np.zeros(1), np.ones(1)] * 1000)
    shares = np.concatenate([data.MixUp(0.4)(s, (ones, ones))[0][:, 0] for s in range(5)])
    # A share of itself, or 0 and 1 where both rows are alike; the mean of s (1 - s) is 0.4^2 / (0.8 * 1.8) each second.
    product = shares * (1 - shares)
    expected = 0.5 * 0.4**2 / (0.8 * 1.8)
    assert abs(product.mean() - expected) < 5 * product.std() / np.sqrt(len(product))
    never = data.MixUp(0.4, probability=0.0)(0, (ones, ones))[0]
    np.testing.assert_array_equal(never, ones)


def test_the_probability_is_that_of_a_row():
    x = RNG.normal(size=(4000, 2))
    changed = (data.MixUp(1.0, probability=0.3)(1, (x, x))[0] != x).any(axis=-1)
    assert abs(changed.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)


def test_boxes_cover_every_pixel_and_any_share():
    x = np.arange(1000, dtype="float32")[:, None, None, None] * np.ones((1, 40, 30, 1), "float32")
    mixed = data.CutMix(1.0)(0, (x, np.ones(1000, "float32")))[0]
    foreign = (mixed != x)[..., 0]
    hit = foreign.mean(axis=0)
    assert hit.min() > 0.05 and hit[20, 15] > hit[0, 0]
    for box in foreign:
        rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        assert box.sum() == len(rows) * len(columns)
    # Of a box with sides r = sqrt(u), u uniform, and any centre, r - r^2 / 4 of each side lies inside on average:
    # its area is E (r - r^2 / 4)^2 = 1/2 - 1/5 + 1/48; whole pixels take some of it away.
    shares = foreign.mean(axis=(1, 2))
    assert abs(shares.mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 5 * shares.std() / np.sqrt(1000) + 0.02


def test_channels_first_is_the_same():
    last = data.CutMix(1.0, CLASSES, data_format="channels_last")(2, (IMAGES, LABELS))
    first = data.CutMix(1.0, CLASSES, data_format="channels_first")(2, (np.moveaxis(IMAGES, -1, 1), LABELS))
    np.testing.assert_array_equal(np.moveaxis(first[0], 1, -1), last[0])
    np.testing.assert_array_equal(first[1], last[1])


@mixing
def test_draws_follow_from_seed_and_step(kind):
    def mixed(seed, step):
        return KINDS[kind](1.0, classes=CLASSES, seed=seed)(step, (IMAGES, LABELS))[0]

    np.testing.assert_array_equal(mixed(1, 5), mixed(1, 5))
    assert (mixed(1, 5) != mixed(1, 6)).any() and (mixed(1, 5) != mixed(2, 5)).any()


def test_unsigned_bytes_are_blended_as_floats_and_cut_as_they_are():
    pixels = RNG.integers(0, 256, size=(ROWS, 6, 5, 2)).astype("uint8")
    assert data.MixUp(1.0, CLASSES)(0, (pixels, LABELS))[0].dtype == "float32"
    assert data.CutMix(1.0, CLASSES)(0, (pixels, LABELS))[0].dtype == "uint8"
    assert data.MixUp(1.0, CLASSES)(0, (IMAGES.astype("float16"), LABELS))[0].dtype == "float16"


# ------------------------------------------------------------------------------------------------------- soft labels


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
def test_smoothing_of_labels_equals_kerass_of_rows(shape):
    logits = RNG.normal(size=(ROWS, CLASSES)).astype("float32")
    _, soft = data.LabelSmoothing(0.2, CLASSES)(0, (IMAGES, LABELS.reshape(shape)))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    assert float(loss(soft, logits)) == pytest.approx(float(theirs(np.eye(CLASSES)[LABELS], logits)), rel=1e-5)
    binary = (LABELS > 1).astype("float32")[:, None]
    _, soft = data.LabelSmoothing(0.2)(0, (IMAGES, binary))
    plain = keras.losses.BinaryCrossentropy(from_logits=True)
    smooth = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2)
    assert float(plain(soft, logits[:, :1])) == pytest.approx(float(smooth(binary, logits[:, :1])), rel=1e-5)


def test_smoothing_and_mixing_commute():
    batch = (IMAGES, LABELS, WEIGHTS)
    smooth, mix = data.LabelSmoothing(0.1, CLASSES), data.MixUp(1.0, CLASSES)
    for a, b in zip(mix(0, smooth(0, batch)), smooth(0, mix(0, batch)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_rows_of_labels_for_each_position():
    y = RNG.integers(0, 3, size=(2, 4, 5))
    assert data.OneHot(3)(0, (IMAGES[:2], y))[1].shape == (2, 4, 5, 3)
    ready = np.eye(3, dtype="int32")[LABELS % 3]
    np.testing.assert_array_equal(data.OneHot(3)(0, (IMAGES, ready))[1], ready)


# --------------------------------------------------------------------------------------------------------- in training


def feeds(maps, **options):
    order = {"seed": 4, "batch_size": 8, "maps": maps} | options
    x, y = np.arange(20, dtype="float32")[:, None], np.arange(20) % CLASSES
    yield data.Batches(x, y, np.linspace(0, 1, 20, dtype="float32"), **order)

    def read(epoch):
        for start in range(0, 20, 4):
            rows = np.roll(np.arange(20), 7 * epoch)[start : start + 4]
            yield x[rows], y[rows], np.linspace(0, 1, 20, dtype="float32")[rows]

    yield data.StreamBatches(read, **order)


MAPS = [data.LabelSmoothing(0.1, CLASSES), data.MixUp(1.0, seed=2)]


def seen(feed, epochs=1):
    return [[np.array(part) for part in batch] for _ in range(epochs) for batch in feed]


@pytest.mark.parametrize("number", [0, 1])
def test_a_run_that_goes_on_draws_the_same(number):
    whole = seen(list(feeds(MAPS))[number], epochs=2)
    first, second = (list(feeds(MAPS))[number] for _ in range(2))
    iterator = iter(first)
    taken = [next(iterator) for _ in range(2)]
    assert len(taken) == 2
    second.restore(first.state())
    rest = seen(second, epochs=2)
    assert len(whole) == 6 and len(rest) == 4
    for a, b in zip(whole[2:], rest, strict=True):
        for mine, theirs in zip(a, b, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    # Epochs differ; the targets are mixed, and the plain feed's are not.
    assert any((a[0] != b[0]).any() for a, b in zip(whole[:3], whole[3:], strict=True))
    assert whole[0][1].shape == (8, CLASSES)
    with pytest.raises(ValueError, match="here `maps` is"):
        list(feeds([data.MixUp(0.5, CLASSES)]))[number].restore(first.state())
    with pytest.raises(ValueError, match="here `maps` is \\[\\]"):
        list(feeds(None))[number].restore(first.state())
    with pytest.raises(ValueError, match="it lacks `maps`"):
        first.restore(list(feeds(None))[number].state())


def model_for(strategy=None):
    import contextlib

    with strategy.scope() if strategy else contextlib.nullcontext():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(CLASSES, kernel_initializer="zeros")])
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False)
    return model


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("options", [{}, {"batch_size": data.RandomSize([4, 8])}])
def test_fit_trains_on_what_iteration_shows(number, options):
    def loss_and_gradient(weights, batch):
        x, y, w = (np.asarray(part, "float64") for part in batch)
        kernel, bias = weights
        logits = x @ kernel + bias
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        inner = w[:, None] * (p - y) / len(x)
        return [x.T @ inner, inner.sum(axis=0)]

    model = model_for()
    model.fit(list(feeds(MAPS, **options))[number], epochs=2, verbose=0)
    weights = [np.zeros((1, CLASSES)), np.zeros(CLASSES)]
    for batch in seen(list(feeds(MAPS, **options))[number], epochs=2):
        weights = [w - 0.01 * g for w, g in zip(weights, loss_and_gradient(weights, batch), strict=True)]
    for a, b in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@tensorflow
@pytest.mark.parametrize("number", [0, 1])
def test_two_replicas_equal_one_device(two_replicas, number):
    # Epochs of 20 in batches of 8: the last 4 are real rows on both; of 6, the last 2.
    for size in (8, 6):
        ends = []
        for strategy in (None, two_replicas):
            model = model_for(strategy)
            model.fit(list(feeds(MAPS, batch_size=size))[number], epochs=2, verbose=0)
            ends.append(model.get_weights())
        for a, b in zip(*ends, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)
        assert np.abs(ends[0][0]).max() > 1e-3


def test_a_filled_up_batch_holds_copies_of_mixed_rows():
    batches = data.Batches(IMAGES[:5], LABELS[:5], batch_size=4, seed=1, maps=[data.MixUp(1.0, CLASSES)], shard=(0, 2))
    other = data.Batches(IMAGES[:5], LABELS[:5], batch_size=4, seed=1, maps=[data.MixUp(1.0, CLASSES)], shard=(1, 2))
    alone = data.Batches(IMAGES[:5], LABELS[:5], batch_size=4, seed=1, maps=[data.MixUp(1.0, CLASSES)])
    shares = [list(batches), list(other)]
    whole = list(alone)
    np.testing.assert_array_equal(np.concatenate([s[0][0] for s in shares]), whole[0][0])
    for share in shares:
        np.testing.assert_array_equal(share[1][0], whole[1][0])


def test_any_function_is_a_map():
    def negated(step, batch):
        x, y = batch
        return -x, y + step

    batches = data.Batches(np.ones((4, 1)), np.zeros(4), batch_size=2, maps=[negated])
    assert [(x.ravel().tolist(), y.tolist()) for x, y in batches] == [([-1, -1], [0, 0]), ([-1, -1], [1, 1])]
    assert batches.state()["maps"] == ["negated"]
    only = data.Batches(np.ones((3, 1)), None, np.ones(3), batch_size=2, maps=[lambda step, batch: batch])
    assert [y for _, y, _ in only] == [None, None]


@tensorflow
@mixing
def test_in_a_tf_data_pipeline(kind):
    import tensorflow as tf

    change = KINDS[kind](1.0, classes=CLASSES)
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, WEIGHTS)).batch(5).repeat(2).enumerate().map(change)
    assert [tuple(s.shape) for s in dataset.element_spec] == [(None, 6, 5, 2), (None, CLASSES), (None,)]
    found = list(dataset.as_numpy_iterator())
    bounds = [(0, 5), (5, 10), (10, 12)] * 2
    for step, ((begin, end), batch) in enumerate(zip(bounds, found, strict=True)):
        rows = slice(begin, end)
        for a, b in zip(batch, change(step, (IMAGES[rows], LABELS[rows], WEIGHTS[rows])), strict=True):
            np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------------- what Keras does


@pytest.mark.shows(
    "maps",
    "`MixUp`, `CutMix` with sample weights",
    keras="weights stay where they were; rows of weight 0 are blended into others",
    kit="the loss of a row is that of both, each with its weight",
)
@tensorflow
@mixing
def test_layers_of_keras_know_no_weights(kind):
    layer = {"mixup": keras.layers.MixUp, "cutmix": keras.layers.CutMix}[kind](seed=1, data_format="channels_last")
    marked = IMAGES.copy()
    marked[WEIGHTS == 0] = 1e6
    one_hot = np.eye(CLASSES, dtype="float32")[LABELS]
    out = layer({"images": marked, "labels": one_hot, "sample_weights": WEIGHTS}, training=True)
    np.testing.assert_array_equal(out["sample_weights"], WEIGHTS)
    counted = np.asarray(out["images"])[WEIGHTS > 0]
    assert np.abs(counted).max() > 1e3


@pytest.mark.shows(
    "maps",
    "`MixUp` with integer labels",
    keras="an error, or a matrix of rows by rows",
    kit="rows of classes, with `classes`; else an error that says so",
)
@tensorflow
def test_mixup_of_keras_makes_nonsense_of_labels():
    layer = keras.layers.MixUp(seed=1, data_format="channels_last")
    with pytest.raises(Exception, match="int64|float"):
        layer({"images": IMAGES, "labels": LABELS}, training=True)
    out = layer({"images": IMAGES, "labels": LABELS.astype("float32")}, training=True)
    assert out["labels"].shape == (ROWS, ROWS)
    with pytest.raises(ValueError, match="`classes` must be given for integer labels"):
        data.MixUp()(0, (IMAGES, LABELS))


@pytest.mark.shows(
    "maps",
    "the targets of `CutMix`",
    keras="the share of a box with fractions of pixels",
    kit="the share of the pixels that changed",
)
@tensorflow
def test_cutmix_of_keras_counts_fractions_of_pixels():
    colours = np.eye(ROWS, dtype="float32")
    x = colours[:, None, None, :] * np.ones((1, 6, 5, 1), "float32")
    out = keras.layers.CutMix(seed=1, data_format="channels_last")({"images": x, "labels": colours}, training=True)
    assert np.abs(np.asarray(out["images"]).mean(axis=(1, 2)) - np.asarray(out["labels"])).max() > 0.01
    mixed, targets = data.CutMix(1.0, data_format="channels_last")(0, (x, colours))
    np.testing.assert_allclose(mixed.mean(axis=(1, 2)), targets, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.MixUp(0.0), "`alpha` must be a number above 0"),
        (lambda: data.MixUp(probability=1.5), "`probability` must be a number at least 0 and at most 1"),
        (lambda: data.CutMix(seed=-1), "`seed` must be an integer at least 0"),
        (lambda: data.CutMix(data_format="first"), "`data_format` must be one of"),
        (lambda: data.OneHot(1), "`classes` must be an integer at least 2"),
        (lambda: data.LabelSmoothing(2.0), "`smoothing` must be a number"),
        (lambda: data.OneHot(3)(0, (IMAGES, LABELS)), "labels from 0 to 2, or rows of 3 numbers. Received: 3"),
        (lambda: data.MixUp()(0, (IMAGES, IMAGES)), "none for each position.*Received: targets of shape"),
        (lambda: data.MixUp(classes=4)(0, (IMAGES, LABELS.reshape(6, 2))), "none for each position"),
        (lambda: data.MixUp()(0, IMAGES), "`y` must be given"),
        (lambda: data.MixUp(classes=4)(0, (LABELS[:, None], LABELS)), "such as tokens, have no mean"),
        (lambda: data.CutMix(classes=4)(0, (IMAGES[:, 0], LABELS)), "images of one size for CutMix"),
        (lambda: data.MixUp(classes=4)(0, (IMAGES, LABELS, IMAGES)), "one number for each sample"),
        (lambda: data.MixUp(classes=4)(0, (IMAGES, LABELS, -WEIGHTS)), "`sample_weight` must be at least 0"),
        (lambda: data.MixUp(classes=[3, 4])(0, (IMAGES, LABELS)), "one for each of the 1 targets"),
        (lambda: data.Batches(IMAGES, maps=data.MixUp()), "`maps` must be a list of functions"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_arrays_stay_arrays():
    x, y, w = data.CutMix(1.0, CLASSES)(3, (IMAGES, LABELS, WEIGHTS))
    assert all(type(part) is np.ndarray for part in (x, y, w))
