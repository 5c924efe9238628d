"""Finding optimizers by name."""

import pickle

import keras
import pytest

import keras_trainkit
from keras_trainkit import optimizers, transforms


def test_every_named_optimizer_is_listed_exported_and_described():
    names = optimizers.list()
    assert len(names) >= 8 and names == sorted(names)
    for name in names:
        kind = type(optimizers.get(name))
        assert kind.__name__ in optimizers.__all__ and getattr(optimizers, kind.__name__) is kind
        info = optimizers.info(name)
        assert 1940 < info.year < 2030 and info.paper and info.state_bytes >= 0 and info.sparse in ("dense", "lazy")


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("*adam*", {"adam", "adamw", "radam"}, {"sgd", "lion"}),
        ("RADAM", {"radam"}, {"adam"}),
        ("ada*", {"adadelta", "adagrad", "adam"}, {"radam"}),
        ("x", set(), {"adam"}),
    ],
)
def test_patterns(pattern, inside, outside):
    found = set(optimizers.list(pattern))
    assert inside <= found
    assert not outside & found


def test_get_takes_names_configurations_and_optimizers():
    assert isinstance(optimizers.get("RAdam", learning_rate=0.5), optimizers.RAdam)
    by_dictionary = optimizers.get({"name": "sgd", "learning_rate": 0.5, "momentum": 0.9})
    assert by_dictionary.momentum == 0.9
    made = optimizers.Lion(1e-3, after=[transforms.Lookahead(3, 0.25)])
    again = optimizers.get(keras.optimizers.serialize(made))
    assert again.get_config() == made.get_config()
    assert optimizers.get(made) is made
    theirs = keras.optimizers.Nadam(0.1)
    assert optimizers.get(theirs) is theirs


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("raddam", "Did you mean 'radam'"),
        ("", "must name an optimizer"),
        (None, "must name an optimizer"),
        (3, "Received: identifier=3"),
    ],
)
def test_unknown_names(identifier, message):
    with pytest.raises(ValueError, match=message):
        optimizers.get(identifier)


def test_arguments_do_not_go_with_an_optimizer():
    with pytest.raises(ValueError, match="go with a name"):
        optimizers.get(optimizers.SGD(0.1), momentum=0.9)


def test_compile_takes_ours_and_a_saved_model_brings_it_back(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizers.RAdam(1e-3, before=[transforms.AdaptiveClip()]), "mse")
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again.optimizer) is optimizers.RAdam
    assert again.optimizer.before == [transforms.AdaptiveClip()]


def test_package_exposes_its_parts():
    for name in ("optimizers", "schedules", "transforms", "callbacks", "precision", "distribution"):
        assert getattr(keras_trainkit, name).__name__ == f"keras_trainkit.{name}"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = keras_trainkit.nonsense


def test_the_list_is_a_list_and_shows_a_table():
    found = optimizers.list("adam*")
    assert found == sorted(found) and isinstance(found, list) and found[0] == "adam" and "adamw" in found
    header, *lines = repr(found).splitlines()
    assert header.split() == ["optimizer", "year", "paper", "state", "bytes/parameter", "sparse", "gradients"]
    assert [line.split()[0] for line in lines] == found
    assert lines[0].split() == ["adam", "2014", "arXiv:1412.6980", "8", "dense"]
    assert str(found) == repr(found)
    assert repr(optimizers.list("nothing")) == "[]"
    page = optimizers.list("adam")._repr_html_()
    assert page.count("<tr>") == 2 and "<td>arXiv:1412.6980</td>" in page
    assert pickle.loads(pickle.dumps(found)) == found
